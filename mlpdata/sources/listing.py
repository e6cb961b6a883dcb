"""Where the classes of an ImageNet archive lie: a tar of class tars, a tar of class folders, or a directory of tars.

Listing a plain tar of tars reads one place a class (header and the first images, which tell how large images are). A
gzip stream has to be decompressed once, from front to back: what comes of it, with the index for reading at offsets,
is kept in a cache, so that no run has to do it again for the same file.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import zlib
from collections import Counter
from dataclasses import astuple, dataclass, field
from pathlib import Path

import xxhash

from mlpdata.errors import Error
from mlpdata.manifest import write_atomic
from mlpdata.progress import Progress
from mlpdata.sources.blob import GzipFile, PlainFile
from mlpdata.sources.tarscan import Damage, Member, ReadAt, scan

IMAGES = (".jpeg", ".jpg", ".png", ".webp")
WNID = re.compile(r"n\d{8}")
FLAT = re.compile(r"(n\d{8})_\w+\.\w+")  # ImageNet's file names begin with their class
PROCESSED_PARTS = {"imagenet21k_train": "train", "imagenet21k_val": "val", "imagenet21k_small_classes": None}
PROBE_BYTES = 64 << 10  # read of each class tar to learn how large its images are
MEAN_IMAGE_BYTES = 110_000  # of ImageNet's photographs, where nothing could be learned
CACHE_MAGIC = b"mlpdata listing 1\n"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Images of one class that lie together: a piece of a tar that is a tar itself."""

    blob: int  # which of the source's files
    class_name: str
    split: str  # "" where the archive has no splits
    start: int
    end: int
    num_images: int
    counted: bool  # whether num_images is known, not estimated
    inner: bool  # whether it is a class tar, not a class folder


@dataclass
class Listing:
    """What an archive holds."""

    stretches: list[Stretch] = field(default_factory=list)  # in the order of the archive
    damage: list[str] = field(default_factory=list)
    cut: str | None = None  # why nothing could be read from some point on
    parts: list[str] = field(default_factory=list)  # the folders inside the archive that hold the classes, sorted


def is_image(name: str) -> bool:
    """Whether a member of a class counts as an image: by its ending, or without any."""
    name = posixpath.basename(name)
    return not name.startswith(".") and (name.lower().endswith(IMAGES) or "." not in name)


def list_directory(path: Path) -> tuple[list[PlainFile], Listing]:
    """A directory of `<class>.tar` files."""
    blobs: list[PlainFile] = []
    rows = []
    with os.scandir(path) as entries:
        names = sorted(e.name for e in entries if e.name.endswith(".tar") and not e.name.startswith("."))
    for name in names:
        blob = PlainFile(path / name)
        rows.append((len(blobs), name.removesuffix(".tar"), 0, blob.size, *_probe(blob.read_at, 0, blob.size)))
        blob.close()
        blobs.append(blob)
    return blobs, Listing(stretches=_estimated(rows))


def list_archive(blob: PlainFile | GzipFile, cache: Path | None) -> Listing:
    """Every class of a tar. cache: folder that keeps the listing and the index of a gzip stream. Raises Error."""
    if not blob.compressed:
        return _scan_archive(blob)
    kept = cache / f"{_identity(Path(blob.path))}.listing" if cache else None
    listing = _load(kept, blob) if kept else None
    if listing is None:
        listing = _scan_archive(blob)
        blob.complete()
        if blob.damage:
            listing.damage.append(blob.damage)
        # A size that a damaged header claims may lead beyond the stream, whose end was not known.
        listing.stretches = [
            Stretch(*astuple(s)[:4], min(s.end, blob.size), *astuple(s)[5:]) for s in listing.stretches
        ]
        if kept:
            _save(kept, blob, listing)
    return listing


def _scan_archive(blob: PlainFile | GzipFile) -> Listing:
    listing = Listing()
    end = 1 << 62 if blob.compressed else blob.size
    rows: list[tuple] = []  # of class tars whose images are not counted
    run: list | None = None  # the class folder under way: [class, split, start, end, images]
    parts: Counter[str] = Counter()
    name = posixpath.basename(blob.path)
    progress = Progress(
        f"listing {name}", (os.stat(blob.path).st_size if blob.compressed else blob.size) // 10**6, unit="MB"
    )
    read_at = _peeking(blob)
    for item in scan(read_at, 0, end):
        if isinstance(item, Damage):
            listing.damage.append(item.reason)
            listing.cut = item.reason if item.last else None
            item = item.member
            if item is None:
                continue
        progress.add(item.offset // 10**6 - progress.done)
        folder, file = posixpath.split(item.name.removeprefix("./"))
        if file.startswith("."):
            continue
        if file.endswith(".tar"):
            parts[folder] += 1
            class_name, stop = file.removesuffix(".tar"), item.offset + item.size
            if blob.compressed:
                count = sum(isinstance(m, Member) and is_image(m.name) for m in scan(read_at, item.offset, stop))
                listing.stretches.append(Stretch(0, class_name, "", item.offset, stop, count, True, True))
            else:
                rows.append((0, class_name, item.offset, stop, *_probe(read_at, item.offset, stop)))
        elif file.lower().endswith(IMAGES):
            part, class_name = posixpath.split(folder)
            if not folder:  # a flat archive, or a class tar whose own header is damaged
                match = FLAT.fullmatch(file)
                if match is None:
                    continue
                class_name = match[1]
            split = PROCESSED_PARTS.get(posixpath.basename(part), "")
            parts[part] += 1
            if split is None:
                continue
            if run is None or run[:2] != [class_name, split]:
                _close_run(listing, run)
                run = [class_name, split, item.start, 0, 0]
            run[3], run[4] = item.offset + item.size, run[4] + 1
    _close_run(listing, run)
    progress.finish()
    listing.stretches = sorted(listing.stretches + _estimated(rows), key=lambda s: s.start)
    listing.parts = sorted(parts)
    return listing


def _close_run(listing: Listing, run: list | None) -> None:
    if run is not None:
        class_name, split, start, end, count = run
        listing.stretches.append(Stretch(0, class_name, split, start, end, count, True, False))


def _peeking(blob: PlainFile | GzipFile) -> ReadAt:
    """Reads of a plain file that fetch the first images of a class along with the header of its tar."""
    if blob.compressed:
        return blob.read_at
    held, held_at = b"", 0

    def read_at(offset: int, size: int) -> bytes:
        nonlocal held, held_at
        if not held_at <= offset <= offset + size <= held_at + len(held):
            held, held_at = blob.read_at(offset, max(size, PROBE_BYTES + (4 << 10))), offset
        return held[offset - held_at : offset - held_at + size]

    return read_at


def _probe(read_at: ReadAt, start: int, end: int) -> tuple[int, int]:
    """(images, bytes they take) of the images whose headers are in the first bytes of a class tar."""
    head = read_at(start, min(PROBE_BYTES, end - start))
    count, taken = 0, 0
    for item in scan(lambda offset, size: head[offset - start : offset - start + size], start, end):
        if isinstance(item, Damage):
            break
        count, taken = count + is_image(item.name), item.offset + item.size - start
    return count, taken


def _estimated(rows: list[tuple]) -> list[Stretch]:
    """Stretches of class tars, their images counted by the mean size in the class and, for stability, in the archive.

    rows: (blob, class, start, end, images probed, bytes they take).
    """
    probed, taken = sum(r[4] for r in rows), sum(r[5] for r in rows)
    archive_mean = taken / probed if probed else MEAN_IMAGE_BYTES
    stretches = []
    for blob, class_name, start, end, count, size in rows:
        mean = (size + archive_mean) / (count + 1)
        stretches.append(Stretch(blob, class_name, "", start, end, max(1, round((end - start) / mean)), False, True))
    return stretches


# ---------------------------------------------------------------------------------------------------------- cache


def _identity(path: Path) -> str:
    """Names a file by its size, its time and both its ends."""
    stat = path.stat()
    digest = xxhash.xxh3_128(f"{stat.st_size} {stat.st_mtime_ns}".encode())
    with open(path, "rb") as f:
        digest.update(f.read(1 << 20))
        f.seek(max(0, stat.st_size - (1 << 20)))
        digest.update(f.read(1 << 20))
    return digest.hexdigest()


def _save(path: Path, blob: GzipFile, listing: Listing) -> None:
    record = {**vars(listing), "stretches": [astuple(s) for s in listing.stretches]}
    record |= {"size": blob.size, "stream_damage": blob.damage}
    text = zlib.compress(json.dumps(record).encode())
    body = len(text).to_bytes(8, "little") + text + blob.index
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, CACHE_MAGIC + xxhash.xxh3_128_digest(body) + body)
    except OSError:
        pass  # it saves the next run a pass over the stream, no more


def _load(path: Path, blob: GzipFile) -> Listing | None:
    """What `_save` kept of this file; None where there is nothing whole."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    start = len(CACHE_MAGIC) + 16
    body = memoryview(data)[start:]
    if data[: len(CACHE_MAGIC)] != CACHE_MAGIC or xxhash.xxh3_128_digest(body) != data[len(CACHE_MAGIC) : start]:
        return None
    end = 8 + int.from_bytes(body[:8], "little")
    try:
        record = json.loads(zlib.decompress(body[8:end]))
        stretches = [Stretch(*row) for row in record.pop("stretches")]
        blob.use(bytes(body[end:]), record.pop("size"), record.pop("stream_damage"))
        return Listing(stretches=stretches, **record)
    except (ValueError, KeyError, TypeError, zlib.error) as e:
        raise Error(f"{path} is not what mlpdata writes ({type(e).__name__}: {e}); delete it") from None
