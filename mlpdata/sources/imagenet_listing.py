"""What an ImageNet archive holds: the extent of every class, what lies in no class, and a cache of both.

A gzip stream has to be decompressed once from front to back to be listed. Its listing, with the index for reading at
offsets, is kept in a cache, so that no later run has to do that again for the same file.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path

import xxhash

from mlpdata.archive.gzip import GzipFile
from mlpdata.archive.tarscan import Damage, Member, ReadAt, Special, scan
from mlpdata.errors import Error, reading
from mlpdata.sources import keys
from mlpdata.system.files import write_atomic

MAX_LEFT_OUT = 200_000  # damaged places and strange members; a file with more is no archive of classes
CACHE_MAGIC = b"mlpdata listing 4\n"


@dataclass(frozen=True, slots=True)
class ClassExtent:
    """Images of one class that lie together: a piece of a tar, which is a tar itself."""

    blob: int  # which of the source's files
    class_name: str  # surrogate escapes for bytes that are no UTF-8; "" where only a list of labels knows the class
    split: str  # "" where the archive has no splits
    start: int
    end: int
    num_images: int  # by the names of the files
    num_items: int  # of all that class_items yields, 0 for an empty class tar; -1 where num_images is an estimate
    inner: bool  # whether it is a class tar, not a class folder
    file: str = ""  # where class_name is "": the only file, without folders


@dataclass
class ArchiveListing:
    """What an archive holds."""

    extents: list[ClassExtent] = field(default_factory=list)  # in the order of the archive
    left_out: list[tuple[str, str, bool]] = field(default_factory=list)  # (name, reason, whether it may be data)
    warnings: list[str] = field(default_factory=list)
    cut: str | None = None  # why nothing could be read from some point on
    parents: list[str] = field(default_factory=list)  # the folders inside the archive that hold the classes, sorted

    def leave_out(self, name: str, reason: str, is_data: bool = True) -> None:
        """List what belongs to no class. Raises Error where that is too much for an archive of classes."""
        if len(self.left_out) == MAX_LEFT_OUT:
            raise Error(
                f"more than {MAX_LEFT_OUT:,} members or places of it are damaged or strange, the last is "
                f"{keys.line(name)}, which {reason}; get the archive again"
            )
        self.left_out.append((name, reason, is_data))

    def warn_of_images_in_no_class(self) -> None:
        reasons = ("lies in no", "is no")
        names = [name for name, why, is_data in self.left_out if is_data and any(r in why for r in reasons)]
        if names:
            others = f" and {len(names) - 3:,} others" if len(names) > 3 else ""
            first = ", ".join(map(keys.line, names[:3]))
            self.warnings.append(f"left out, for they are in no class: {first}{others}")


def class_items(read_at: ReadAt, extent: ClassExtent) -> Iterator[Member | Special | Damage]:
    """Everything in an extent, in its order."""
    return scan(read_at, extent.start, extent.end, extent.inner, extent.start if extent.inner else 0)


# ---------------------------------------------------------------------------------------------------------- cache


def cache_path(cache: Path, path: Path) -> Path:
    """Where the listing of a file is kept: named by the file's size, its time and both its ends. Raises Error."""
    with reading(path), open(path, "rb") as f:
        stat = path.stat()
        digest = xxhash.xxh3_128(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        digest.update(f.read(1 << 20))
        f.seek(max(0, stat.st_size - (1 << 20)))
        digest.update(f.read(1 << 20))
    return cache / f"{digest.hexdigest()}.listing"


def save(path: Path, stream: GzipFile, listing: ArchiveListing) -> None:
    """Keep a listing, if that is possible: it saves the next run a pass over the stream, no more."""
    record = {
        "stretches": [astuple(extent) for extent in listing.extents],
        "left_out": listing.left_out,
        "words": listing.warnings,
        "cut": listing.cut,
        "parts": listing.parents,
        "size": stream.size,
        "stream_damage": stream.damage,
    }
    text = zlib.compress(json.dumps(record).encode())
    body = len(text).to_bytes(8, "little") + text + (stream.index or b"")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, CACHE_MAGIC + xxhash.xxh3_128_digest(body) + body)


def load(path: Path, stream: GzipFile) -> ArchiveListing | None:
    """The listing that `save` kept, with the stream's index; None where there is none that is whole."""
    try:
        data = path.read_bytes()
        start = len(CACHE_MAGIC) + 16
        body = memoryview(data)[start:]
        if data[: len(CACHE_MAGIC)] != CACHE_MAGIC or xxhash.xxh3_128_digest(body) != data[len(CACHE_MAGIC) : start]:
            return None
        end = 8 + int.from_bytes(body[:8], "little")
        record = json.loads(zlib.decompress(body[8:end]))
        extents, size = [ClassExtent(*row) for row in record["stretches"]], record["size"]
        left_out = [(str(name), str(reason), bool(is_data)) for name, reason, is_data in record["left_out"]]
        if not all(_fits(extent, size) for extent in extents):
            return None
        listing = ArchiveListing(extents, left_out, record["words"], record["cut"], record["parts"])
        damage = record["stream_damage"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error):
        return None
    stream.use(bytes(body[end:]), size, damage)
    return listing


def _fits(extent: ClassExtent, size: int) -> bool:
    """Whether an extent from a cache is a valid one of a stream of so many bytes."""
    kinds = {"int": int, "str": str, "bool": bool}
    is_typed = all(type(getattr(extent, f.name)) is kinds[str(f.type)] for f in fields(extent))
    return is_typed and extent.blob == 0 <= extent.start <= extent.end <= size
