"""One large file, plain, gzip or behind a URL, read at offsets by many processes at once. Nothing is extracted."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from mlpdata.archive.gzip import GzipFile
from mlpdata.archive.url import UrlFile
from mlpdata.errors import Error, cannot_read, reading
from mlpdata.fetch import http

END_BYTES = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"


class PlainFile:
    """A file read at offsets. Pickles as its path; each process opens it for itself. Raises Error where it cannot."""

    compressed = False

    def __init__(self, path: Path | str):
        self.path = str(path)
        self._fd: int | None = None
        with reading(self.path):
            self.size = os.stat(path).st_size

    def __getstate__(self):
        return {**self.__dict__, "_fd": None}

    def read_at(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; fewer only at the end of the file."""
        try:
            fd = self._descriptor()
            data = os.pread(fd, size, offset)
            while len(data) < size and (more := os.pread(fd, size - len(data), offset + len(data))):
                data += more
        except OSError as e:  # no context manager: this runs once for each header of a tar
            raise cannot_read(self.path, e) from None
        return data

    def will_read(self, offset: int, size: int) -> None:
        """Let the system read a stretch ahead, in one sweep instead of member by member."""
        if hasattr(os, "posix_fadvise"):
            with reading(self.path):
                os.posix_fadvise(self._descriptor(), offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _descriptor(self) -> int:
        if self._fd is None:
            self._fd = os.open(self.path, os.O_RDONLY)
        return self._fd


Blob = PlainFile | GzipFile | UrlFile


def open_blob(path: Path | str) -> Blob:
    """Open a file or a URL by its content, not by its name. Raises Error where it cannot be read."""
    if http.is_url(str(path)):
        blob = UrlFile(str(path))
        if blob.read_at(0, 2) == GZIP_MAGIC:
            raise Error(f"{path} is a gzip stream, which cannot be read in place; download it first")
        return blob
    with reading(path), open(path, "rb") as f:
        magic = f.read(2)
    return GzipFile(path) if magic == GZIP_MAGIC else PlainFile(path)


def fingerprint(path: str) -> dict:
    """The size of a file and a hash of both its ends: enough to notice that another file has taken its name.

    A file on disk and the same file behind a URL have one fingerprint. A directory and a repository have none ({}):
    the revision identifies a repository.
    """
    if path.startswith("hf:") or os.path.isdir(path):
        return {}
    blob = UrlFile(path) if http.is_url(path) else PlainFile(path)
    ends = blob.read_at(0, END_BYTES) + blob.read_at(max(0, blob.size - END_BYTES), END_BYTES)
    blob.close()
    return {"bytes": blob.size, "xxh3_of_ends": xxhash.xxh3_64_hexdigest(ends)}
