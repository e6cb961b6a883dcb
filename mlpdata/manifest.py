"""The former place of `mlpdata.shards.manifest` and of the class list, for scripts that import it."""

from mlpdata.shards.classes import *  # noqa: F403
from mlpdata.shards.manifest import *  # noqa: F403
from mlpdata.shards.text import *  # noqa: F403
