"""`ExportOptions`: what `mlpdata export` is asked for. Nothing heavy is imported: the command line uses it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlpdata.choices import EXPORT_CODECS, EXPORTS, FORMATS
from mlpdata.errors import Error


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `mlpdata export` was asked for. Raises Error for values that make no sense.

    >>> ExportOptions(root=Path("shards/a"), to="zip", out=Path("a"))
    Traceback (most recent call last):
    mlpdata.errors.Error: 'zip' is not one of folder, parquet, npz, arrow, mds, litdata, tfrecord
    """

    root: Path  # the shard directory
    to: str  # the format
    out: Path
    splits: tuple[str, ...] = ()  # (): all
    codec: str = "stored"
    quality: int = 90  # of JPEGs that are encoded
    format: str | None = None  # which of the directory's formats is read; None: see samples.format_to_read
    file_bytes: int | None = None  # of a file, about; None: what is usual in the format
    workers: int | None = None  # None: the cores
    quiet: bool = False

    def __post_init__(self):
        for value, choices in ((self.to, EXPORTS), (self.codec, EXPORT_CODECS)):
            if value not in choices:
                raise Error(f"{value!r:.80} is not one of {', '.join(choices)}")
        if self.format not in (None, *FORMATS["both"]):
            raise Error(f"format {self.format!r:.80} is neither 'beton' nor 'tar'")
        if not 1 <= self.quality <= 100:
            raise Error(f"quality is from 1 to 100, not {self.quality}")
        for name in ("file_bytes", "workers"):
            if (getattr(self, name) or 1) < 1:
                raise Error(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def command(self) -> str:
        """The command that makes these bytes anywhere: without paths, and without what does not change the bytes."""
        words = ["mlpdata export", self.root.resolve().name, f"--to {self.to}"]
        words += [f"--split {split}" for split in self.splits]
        words += [f"--codec {self.codec}"] if self.to != "npz" else []
        words += [f"--quality {self.quality}"] if self.codec == "jpg" else []
        words += [f"--format {self.format}"] if self.format else []
        words += [f"--file-mb {self.file_bytes / 1e6:g}"] if self.file_bytes else []
        return " ".join(words)
