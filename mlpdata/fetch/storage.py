"""Files of an object storage, read by ranges through fsspec: `transfer` fetches them as it fetches URLs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mlpdata.errors import Error, first_line
from mlpdata.fetch import http
from mlpdata.fetch.retry import TransientError
from mlpdata.system.optional import missing

RANGE_BYTES = 8 << 20  # of one request
# Exceptions of these packages are the network's or the server's doing, whatever they are called.
PACKAGES = ("aiobotocore", "aiohttp", "azure", "botocore", "fsspec", "gcsfs", "google", "s3fs")

T = TypeVar("T")


@contextlib.contextmanager
def storage_errors(where: str) -> Iterator[None]:
    """Raise what goes wrong in a storage as an Error of one line. where: its address, for the message."""
    try:
        yield
    except ImportError as e:
        if where.startswith(("s3:", "s3a:")):
            raise missing("s3fs", where) from None
        raise Error(f"cannot reach {where}: {first_line(e)}") from None  # fsspec says which package it needs
    except FileNotFoundError as e:
        raise Error(f"{where} lacks {e.filename or first_line(e)}") from None
    except Exception as e:
        if not isinstance(e, (OSError, ValueError)) and not _is_of_storage(e):
            raise
        raise Error(f"cannot use {where}: {first_line(e)}") from None


def _is_of_storage(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in PACKAGES


@dataclass(frozen=True, kw_only=True)
class StorageFile:
    """One file of a storage, as `transfer` takes it in the place of a Login.

    fs: a file system of fsspec. path: the file's inside it. where: the address of the storage, for messages.
    """

    fs: Any
    path: str
    where: str

    def session(self, url: str) -> StorageFile:
        """What `get` is called with: fsspec keeps the connections."""
        return self

    def get(self, session: Any, url: str, start: int = 0, stop: int | None = None, tag: str = "") -> _Stretch:
        """As http.get."""

        def look() -> dict:
            self.fs.invalidate_cache()
            return self.fs.info(self.path)

        info = self._ask(look)
        size, now = info.get("size"), str(info.get("ETag") or info.get("LastModified") or info.get("mtime") or "")
        if not isinstance(size, int):
            raise Error(f"{url}: the storage does not say how long it is")
        if (tag and now != tag) or start > size:
            raise http.FileChangedError("the file has changed in the storage")
        return _Stretch(file=self, start=start, stop=size if stop is None else min(stop, size), size=size, tag=now)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to stop, or fewer. Raises TransientError for what another try may mend, else Error."""
        data = self._ask(lambda: self.fs.cat_file(self.path, start=start, end=stop))
        if len(data) > stop - start:
            raise Error(f"{self.where} serves no ranges of its files; copy them with a program of the storage's own")
        return data

    def _ask(self, ask: Callable[[], T]) -> T:
        with storage_errors(self.where):
            try:
                return http.in_time(ask)
            except (FileNotFoundError, PermissionError):
                raise
            except Exception as e:
                if not isinstance(e, OSError) and not _is_of_storage(e):
                    raise
                raise TransientError(first_line(e)) from None


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """The bytes from start to stop of a file of `size` bytes, which are still to be read."""

    file: StorageFile
    start: int
    stop: int
    size: int
    tag: str
    ranges: bool = True
    is_page: bool = False

    def chunks(self) -> Iterator[bytes]:
        """As http.Response.chunks."""
        at = self.start
        while at < self.stop and (piece := self.file.read(at, min(self.stop, at + RANGE_BYTES))):
            at += len(piece)
            yield piece

    def close(self) -> None:
        """Nothing is open between two requests."""
