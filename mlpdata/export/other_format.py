"""The same shard directory in the other format, without the archive: made by the engine of `convert`."""

from __future__ import annotations

from mlpdata.convert.derived import derive
from mlpdata.derive.derivation import Derivation
from mlpdata.export.options import ExportOptions
from mlpdata.export.writer import Say
from mlpdata.shards.manifest import Manifest


def export_shards(options: ExportOptions, say: Say = print) -> Manifest:
    """Make a shard directory of betons or tars of another directory. Returns its manifest, which names its parent.

    Pixels, and encoded images where the new format stores such ones, are those of the directory. Raises Error.
    """
    return derive(
        # On record is the command that makes the same bytes: `export` has no --seed and no --shard-size.
        Derivation(command="subset", directories=(options.root,), splits=options.splits),
        options.out,
        format=options.to,
        codec=None if options.codec == "stored" else options.codec,
        quality=options.quality,
        workers=options.workers,
        quiet=options.quiet,
        say=say,
    )
