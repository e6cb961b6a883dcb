"""The former place of `mlpdata.convert.plan`, for scripts that import it."""

import sys

from mlpdata.convert import plan

sys.modules[__name__] = plan
