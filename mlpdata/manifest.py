"""The former place of `mlpdata.shards.manifest`, for scripts that import it."""

import sys

from mlpdata.shards import manifest

sys.modules[__name__] = manifest
