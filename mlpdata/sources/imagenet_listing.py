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
from collections.abc import Iterator
from dataclasses import astuple, dataclass, field, fields, replace
from pathlib import Path

import xxhash

from mlpdata import splits
from mlpdata.archive.blob import PlainFile
from mlpdata.archive.gzip import GzipFile, in_child
from mlpdata.archive.tarscan import Damage, Member, ReadAt, Special, scan
from mlpdata.errors import Error
from mlpdata.sources import keys
from mlpdata.sources.files import is_system, looks_like_image
from mlpdata.system.files import write_atomic
from mlpdata.system.progress import Progress

WNID = re.compile(r"n\d{8}")
FLAT = re.compile(r"(n\d{8})_\w+\.\w+")  # ImageNet's file names begin with their class
VAL_NAME = re.compile(r"ILSVRC2012_val_\d{8}\.\w+")  # and those of its val images say none
SMALL_CLASSES = "imagenet21k_small_classes"  # what ImageNet-21k-P leaves out
ANNOTATIONS = {"Annotations", "ImageSets"}  # folders of the official layout that hold no images
DOCUMENT = re.compile(r"(readme|license|licence|copying|notice|authors|changelog|md5sums?|sha\d+sums?)(\.\w+)?", re.I)
ARCHIVES = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4")
PROBE_BYTES = 64 << 10  # read of each class tar to learn how large its images are
MEAN_IMAGE_BYTES = 110_000  # of ImageNet's photographs, where nothing could be learned
MAX_LEFT_OUT = 200_000  # places with damage or strange members; an archive with more is none
CACHE_MAGIC = b"mlpdata listing 3\n"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Images of one class that lie together: a piece of a tar that is a tar itself."""

    blob: int  # which of the source's files
    class_name: str  # surrogate escapes for bytes that are no UTF-8; "" where only a list of labels knows the class
    split: str  # "" where the archive has no splits
    start: int
    end: int
    num_images: int  # by the names of the files
    num_items: int  # all that class_items gives; -1 where num_images is an estimate
    inner: bool  # whether it is a class tar, not a class folder
    file: str = ""  # where class_name is "": the only file, without folders


@dataclass
class Listing:
    """What an archive holds."""

    stretches: list[Stretch] = field(default_factory=list)  # in the order of the archive
    left_out: list[tuple[str, str, bool]] = field(default_factory=list)  # (what, why, whether it may be data)
    words: list[str] = field(default_factory=list)  # what the user should know
    cut: str | None = None  # why nothing could be read from some point on
    parts: list[str] = field(default_factory=list)  # the folders inside the archive that hold the classes, sorted

    def leave_out(self, name: str, reason: str, is_data: bool = True) -> None:
        """List what is no part of any class. Raises Error where that is too much for an archive of classes."""
        if len(self.left_out) == MAX_LEFT_OUT:
            raise Error(
                f"more than {MAX_LEFT_OUT:,} members or places of it are damaged or strange, the last is "
                f"{keys.line(name)}, which {reason}; get the archive again"
            )
        self.left_out.append((name, reason, is_data))


def class_items(read_at: ReadAt, s: Stretch) -> Iterator[Member | Special | Damage]:
    """All that lies in a stretch, in its order."""
    number = -1
    for number, item in enumerate(scan(read_at, s.start, s.end, s.inner, s.start if s.inner else 0)):  # noqa: B007
        yield item
    if number < 0:
        yield Damage(s.start, "holds no files")


def list_directory(path: Path) -> tuple[list[PlainFile], Listing]:
    """A directory of `<class>.tar` files. Raises Error."""
    blobs: list[PlainFile] = []
    listing, rows = Listing(), []
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if not e.is_dir())
    except OSError as e:
        raise Error(f"cannot read the folder {path}: {e.strerror}") from None
    for name in names:
        if is_system(name) or DOCUMENT.fullmatch(name):
            listing.leave_out(name, "is a document, or left there by a system or a tool", False)
            continue
        if not _is_class_tar(name):
            listing.leave_out(name, "is no <class>.tar", name.lower().endswith(ARCHIVES) or _is_image(name))
            continue
        blob = PlainFile(path / name)
        rows.append((len(blobs), name[:-4], "", 0, blob.size, *_probe(blob.read_at, 0, blob.size)))
        blob.close()
        blobs.append(blob)
    listing.stretches = _estimated(rows)
    _say_left_out(listing)
    return blobs, listing


def list_archive(blob: PlainFile | GzipFile, cache: Path | None) -> Listing:
    """Every class of a tar. cache: folder that keeps the listing and the index of a gzip stream. Raises Error."""
    if not blob.compressed:
        return _scan_archive(blob)
    kept = cache / f"{_identity(Path(blob.path))}.listing" if cache else None
    listing = _load(kept, blob) if kept else None
    if listing is None:
        listing = in_child(_scan_stream, blob)
        if kept:
            _save(kept, blob, listing)
    return listing


def _scan_stream(blob: GzipFile) -> Listing:
    listing = _scan_archive(blob)
    blob.read_through()
    if blob.damage:
        listing.leave_out(posixpath.basename(blob.path), blob.damage)
    # A size that a damaged header claims may lead beyond the stream, whose end was not known.
    listing.stretches = [replace(s, end=min(s.end, blob.size)) for s in listing.stretches]
    return listing


def _is_class_tar(file: str) -> bool:
    return len(file) > 4 and file.lower().endswith(".tar")


def _is_image(file: str) -> bool:
    """Whether a name without folders makes a folder one of images; one without an ending may be a document's."""
    return looks_like_image(file) and not DOCUMENT.fullmatch(file)


@dataclass
class _Run:
    """Members that follow one another and lie in one folder, and are of one class where their names say the class."""

    folder: str
    label: str  # a wnid or the name of a val image, in folders that are no class
    start: int
    file: str  # the first
    behind_damage: bool = False  # which may have hit the header of the class tar that these are in
    end: int = 0
    images: int = 0
    items: int = 0


def _scan_archive(blob: PlainFile | GzipFile) -> Listing:
    listing = Listing()
    end = 1 << 62 if blob.compressed else blob.size
    rows: list[tuple] = []  # of class tars whose images are not counted
    tars: list[Stretch] = []  # of class tars whose images are; class names and splits are folders and files as yet
    runs: list[_Run] = []
    open_run, run_folder, says_class = False, None, False
    annotations: Counter[str] = Counter()  # folder -> its files
    pending: list[Damage] = []  # behind the open run: of its class, if that goes on there
    name = posixpath.basename(blob.path)
    progress = Progress(
        f"listing {name}", (os.stat(blob.path).st_size if blob.compressed else blob.size) // 10**6, unit="MB"
    )
    read_at = _peeking(blob)
    for item in scan(read_at, 0, end):
        if isinstance(item, Damage):
            pending.append(item)
            if not item.lost:
                listing.words.append(f"{blob.path}: {item.reason}")
            if item.last:
                listing.cut = item.reason
            if item.member is None or not _is_class_tar(item.member.name):
                continue
            item = item.member
        progress.add(item.offset // 10**6 - progress.done)
        path = item.name.removeprefix("./").lstrip("/")
        folder, _, file = path.rpartition("/")
        if is_system(path):
            listing.leave_out(path, "is what a system leaves beside files", False)
            open_run = False
        elif _is_class_tar(file) and isinstance(item, Member):
            open_run, stop = False, item.offset + item.size
            if blob.compressed:
                s = Stretch(0, file[:-4], folder, item.offset, stop, 0, -1, True)
                found = list(map(_counts, class_items(read_at, s)))
                tars.append(replace(s, num_images=sum(found), num_items=len(found)))
            else:
                rows.append((0, file[:-4], folder, item.offset, stop, *_probe(read_at, item.offset, stop)))
        elif DOCUMENT.fullmatch(file):
            listing.leave_out(path, "is a document", False)
            open_run = False
        elif not ANNOTATIONS.isdisjoint(folder.split("/")):
            annotations[re.match(rf"(.*?/)??({'|'.join(ANNOTATIONS)})(?=/|$)", folder)[0]] += 1
            open_run = False
        else:
            if folder != run_folder:
                open_run, run_folder = False, folder
                says_class = not folder or splits.canonical(posixpath.basename(folder)) is not None
            label = _label(file) if says_class else ""
            if open_run and runs[-1].label == label:
                runs[-1].items += len(pending)
                pending.clear()
            else:
                runs.append(_Run(folder, label, item.start, file, any(damage.lost for damage in pending)))
                open_run = True
            run = runs[-1]
            run.end, run.items = item.offset + item.size, run.items + 1
            run.images += _is_image(file) and isinstance(item, Member)
        for damage in pending:
            listing.leave_out(name, damage.reason, damage.lost)
        pending.clear()
    for damage in pending:
        listing.leave_out(name, damage.reason, damage.lost)
    for folder, count in annotations.items():
        listing.leave_out(f"{folder}/", f"a folder of annotations, with {count:,} files", False)
    progress.finish()
    _settle(listing, runs, tars + _estimated(rows), blob.path)
    _say_left_out(listing)
    return listing


def _counts(item: Member | Special | Damage) -> bool:
    return isinstance(item, Member) and looks_like_image(item.name)


def _label(file: str) -> str:
    """The class that the name of a file says, or the name of a val image, of which a list says the class."""
    if match := FLAT.fullmatch(file):
        return match[1]
    return file if VAL_NAME.fullmatch(file) else ""


# ------------------------------------------------------------------------------------- folders to classes and splits


def _settle(listing: Listing, runs: list[_Run], tars: list[Stretch], path: str) -> None:
    """Find out what of the folders is a class and what a split, and make the stretches of it. Raises Error."""
    images: Counter[str] = Counter()
    for run in runs:
        images[run.folder] += run.images
    labelled = {run.folder for run in runs if run.label}
    folders = {f for f, n in images.items() if n and f and not (_is_split(f) and f in labelled)}
    around = {posixpath.dirname(f) for f in folders if not _is_split(f)}
    # A folder that is called as a split is and holds images is a class only where classes lie beside it.
    folders = {f for f in folders if not _is_split(f) or posixpath.dirname(f) in around}
    for f in sorted(filter(_is_split, folders)):
        listing.words.append(f"{path}: the folder {keys.line(f)} is taken for a class, for classes lie beside it")
    bases = {posixpath.basename(f) for f in folders}
    below = next(iter(bases)) if len(bases) == 1 and len(folders) > 1 else None  # as in <class>/images/
    places = {f: _place(f, below) for f in folders}  # folder -> (folders around the class, class)
    if tars and not folders and not labelled and all(_split_of(s.class_name) for s in tars):
        names = ", ".join(sorted({f"{keys.line(s.class_name)}.tar" for s in tars})[:4])
        raise Error(f"{path} holds {names}: archives of splits, not of classes; unpack it and pass what is inside")
    full = {(part, name): f"{_below_split(part)}{name}" for part, name in places.values()}
    full |= {(s.split, s.class_name): f"{_below_split(s.split)}{s.class_name}" for s in tars}
    several = Counter(name for name, _ in {(name, path) for (_, name), path in full.items()})
    # Two classes of one name in two folders are two; a synset is the same one everywhere.
    names = {at: at[1] if several[at[1]] == 1 or WNID.fullmatch(at[1]) else name for at, name in full.items()}
    parts = {part for part, _ in full} | {posixpath.dirname(f) for f in labelled}
    split_of = {part: _split_of(part) for part in parts | labelled}
    has_splits = not set(split_of.values()) <= {"", "train"}
    small, unused, stretches, seen = 0, {}, [], set()
    for s in tars:
        if (s.split, s.class_name) in seen:
            listing.words.append(f"{path} holds {keys.line(s.class_name)}.tar twice; both are read")
        seen.add((s.split, s.class_name))
        if posixpath.basename(s.split) == SMALL_CLASSES:
            small += s.num_images
        else:
            stretches.append(replace(s, class_name=names[s.split, s.class_name], split=split_of[s.split]))
    for run in runs:
        if run.folder in places:
            part, name = places[run.folder]
            name, split, file = names[part, name], split_of[part], ""
        elif run.label:
            part, split = posixpath.dirname(run.folder), split_of[run.folder]
            is_val = VAL_NAME.fullmatch(run.label)
            name, file, split = ("", run.label, split or "val") if is_val else (run.label, "", split)
        else:
            count, first = unused.get(run.folder, (0, run.file))
            unused[run.folder] = (count + run.items, first)
            continue
        if posixpath.basename(part) == SMALL_CLASSES:
            small += run.images
        elif run.behind_damage and not split and has_splits:
            # It may have lain in a class tar of any split: as training data it could be what is held out.
            reason = f"lies behind damage and in no split's folder{_and_others(run.items)}"
            what = f"{run.folder}/{run.file}" if run.folder else run.file
            listing.leave_out(what, reason)
            listing.words.append(f"{path}: {keys.line(what)} left out: it {reason}")
        else:
            stretches.append(Stretch(0, name, split, run.start, run.end, run.images, run.items, False, file))
    if small:
        listing.words.append(f"{path}: {small:,} images in {SMALL_CLASSES} are left out, as in ImageNet-21k-P")
    for folder, (count, first) in unused.items():
        known = images[folder] and _is_split(folder) and _split_of(folder) == "test"
        is_data = (bool(images[folder]) and not known) or first.lower().endswith(ARCHIVES)
        what = f"{folder}/{first}" if folder else first
        listing.leave_out(what, f"lies in no class{_and_others(count)}", is_data)
    listing.stretches = _settled_splits(listing, sorted(stretches, key=lambda s: s.start), path)
    listing.parts = sorted(parts)


def _and_others(count: int) -> str:
    return f", as do {count - 1:,} files beside it" if count > 1 else ""


def _is_split(folder: str) -> bool:
    return splits.canonical(posixpath.basename(folder)) is not None


def _place(folder: str, below: str | None) -> tuple[str, str]:
    """(folders around the class, class) of a folder of images: the deepest synset, else the deepest folder."""
    parts = folder.split("/")
    at = next((i for i in reversed(range(len(parts))) if WNID.fullmatch(parts[i])), None)
    if at is None:
        at = len(parts) - (2 if len(parts) > 1 and parts[-1] == below else 1)
    return "/".join(parts[:at]), parts[at]


def _split_of(folder: str) -> str:
    return splits.of_path(folder) or "" if folder else ""


def _below_split(part: str) -> str:
    """The folders around a class, below the one that names the split."""
    parts = part.split("/") if part else []
    at = next((i for i in reversed(range(len(parts))) if _split_of(parts[i])), -1)
    return "".join(f"{p}/" for p in parts[at + 1 :])


def _settled_splits(listing: Listing, stretches: list[Stretch], path: str) -> list[Stretch]:
    found = {s.split for s in stretches}
    if found <= {"", "train"}:  # all is for training, so that something may still be held out of it
        return [replace(s, split="") for s in stretches] if "train" in found else stretches
    if "" in found:
        name = next(s.class_name for s in stretches if not s.split)
        listing.words.append(f"{path}: what lies in no split's folder is taken for train, such as {keys.line(name)}")
    ours = splits.settle(sorted(found - {""})) | {"": "train"}
    if ours.get("test") == "val":
        listing.words.append(f"{path}: its split test is called val: it is what is held out")
    return [replace(s, split=ours[s.split]) for s in stretches]


def _say_left_out(listing: Listing) -> None:
    data = [
        name for name, reason, is_data in listing.left_out if is_data and ("lies in no" in reason or "is no" in reason)
    ]
    if data:
        listing.words.append(f"left out, for they are in no class: {', '.join(map(keys.line, data[:3]))}"
                             f"{f' and {len(data) - 3:,} others' if len(data) > 3 else ''}")  # fmt: skip


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
        count, taken = count + _counts(item), item.offset + item.size - start
    return count, taken


def _estimated(rows: list[tuple]) -> list[Stretch]:
    """Stretches of class tars, their images counted by the mean size in the class and, for stability, in the archive.

    rows: (blob, class, split, start, end, images probed, bytes they take).
    """
    probed, taken = sum(r[5] for r in rows), sum(r[6] for r in rows)
    archive_mean = taken / probed if probed else MEAN_IMAGE_BYTES
    stretches = []
    for blob, class_name, split, start, end, count, size in rows:
        mean = (size + archive_mean) / (count + 1)
        stretches.append(Stretch(blob, class_name, split, start, end, max(1, round((end - start) / mean)), -1, True))
    return stretches


# ---------------------------------------------------------------------------------------------------------- cache


def _identity(path: Path) -> str:
    """Names a file by its size, its time and both its ends."""
    try:
        stat = path.stat()
        digest = xxhash.xxh3_128(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        with open(path, "rb") as f:
            digest.update(f.read(1 << 20))
            f.seek(max(0, stat.st_size - (1 << 20)))
            digest.update(f.read(1 << 20))
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
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
    """What `_save` kept of this file; None where there is nothing whole, and the listing is made again."""
    try:
        data = path.read_bytes()
        start = len(CACHE_MAGIC) + 16
        body = memoryview(data)[start:]
        if data[: len(CACHE_MAGIC)] != CACHE_MAGIC or xxhash.xxh3_128_digest(body) != data[len(CACHE_MAGIC) : start]:
            return None
        end = 8 + int.from_bytes(body[:8], "little")
        record = json.loads(zlib.decompress(body[8:end]))
        stretches = [Stretch(*row) for row in record.pop("stretches")]
        size, damage = record.pop("size"), record.pop("stream_damage")
        left_out = [(str(name), str(reason), bool(is_data)) for name, reason, is_data in record.pop("left_out")]
        if not all(_fits(s, size) for s in stretches):
            return None
        listing = Listing(stretches=stretches, left_out=left_out, **record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error):
        return None
    blob.use(bytes(body[end:]), size, damage)
    return listing


def _fits(s: Stretch, size: int) -> bool:
    """Whether a stretch that was read from a cache is one of a stream of so many bytes."""
    kinds = {"int": int, "str": str, "bool": bool}
    return all(type(getattr(s, f.name)) is kinds[f.type] for f in fields(s)) and s.blob == 0 <= s.start <= s.end <= size
