"""`ExportOptions`: what `mlpdata export` is asked for. Nothing heavy is imported: the command line uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlpdata.choices import EXPORT_CODECS, EXPORTS, FORMATS
from mlpdata.errors import Error
from mlpdata.system.files import resolved

DEFAULT_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `mlpdata export`. Raises Error for values that make no sense.

    >>> ExportOptions(root=Path("shards/a"), to="zip", out=Path("a"))
    Traceback (most recent call last):
    mlpdata.errors.Error: 'zip' is not one of folder, parquet, npz, arrow, mds, litdata, tfrecord, beton, tar
    """

    root: Path  # the shard directory
    to: str  # the format
    out: Path | str  # a string is a URL, to which only shard directories go
    splits: tuple[str, ...] = ()  # (): all
    codec: str = "stored"
    quality: int | None = None  # of JPEGs that are encoded; None: 90, or that of stored ones
    format: str | None = None  # which of the directory's formats is read; None: see samples.format_to_read
    file_bytes: int | None = None  # of a file, about; None: what is usual in the format
    workers: int | None = None  # None: the cores
    quiet: bool = False

    def __post_init__(self):
        for value, choices in ((self.to, EXPORTS), (self.codec, EXPORT_CODECS)):
            if value not in choices:
                raise Error(f"{value!r:.80} is not one of {', '.join(choices)}")
        if isinstance(self.out, str) and self.to not in FORMATS["both"]:
            raise Error(f"-o {self.out}: an export as {self.to} goes to a local folder; copy it from there")
        if self.format not in (None, *FORMATS["both"]):
            raise Error(f"format {self.format!r:.80} is neither 'beton' nor 'tar'")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise Error(f"quality must be from 1 to 100, not {self.quality}")
        if self.to in FORMATS["both"] and (self.format or self.file_bytes):
            raise Error(f"--to {self.to} makes a shard directory: --format and --file-mb are for other formats")
        for name in ("file_bytes", "workers"):
            if (getattr(self, name) or 1) < 1:
                raise Error(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def command(self) -> str:
        """The command that makes these bytes anywhere: without paths, and without what does not change the bytes."""
        words = ["mlpdata export", resolved(self.root).name, f"--to {self.to}"]
        words += [f"--split {split}" for split in self.splits]
        words += [f"--codec {self.codec}"] if self.to != "npz" else []
        words += [f"--quality {self.quality or DEFAULT_QUALITY}"] if self.codec == "jpg" else []
        words += [f"--format {self.format}"] if self.format else []
        words += [f"--file-mb {self.file_bytes / 1e6:g}"] if self.file_bytes else []
        return " ".join(words)
