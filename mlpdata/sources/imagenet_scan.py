"""Listing an ImageNet archive: a tar of class tars, a tar of class folders, or a directory of class tars.

Of a plain tar of tars, only one place a class is read: the header of the class tar and its first images, whose mean
size tells how many images it has.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from mlpdata import splits
from mlpdata.archive.blob import Blob, PlainFile
from mlpdata.archive.gzip import GzipFile, in_child
from mlpdata.archive.tarscan import Damage, Member, ReadAt, Special, scan
from mlpdata.errors import reading
from mlpdata.sources import imagenet_listing
from mlpdata.sources.files import is_system, looks_like_image
from mlpdata.sources.imagenet_folders import ARCHIVE_SUFFIXES, VAL_NAME, Run, settle
from mlpdata.sources.imagenet_listing import ArchiveListing, ClassExtent, class_items
from mlpdata.system.format import plural
from mlpdata.system.progress import Progress

FLAT = re.compile(r"(n\d{8})_\w+\.\w+")  # ImageNet's file names begin with their class
ANNOTATIONS = {"Annotations", "ImageSets"}  # folders of the official layout that hold no images
ANNOTATION_ROOT = re.compile(rf"(.*?/)??({'|'.join(ANNOTATIONS)})(?=/|$)")
DOCUMENT = re.compile(r"(readme|license|licence|copying|notice|authors|changelog|md5sums?|sha\d+sums?)(\.\w+)?", re.I)
PROBE_BYTES = 64 << 10  # read of each class tar to learn how large its images are
MEAN_IMAGE_BYTES = 110_000  # of ImageNet's photographs, where the archive does not tell


def list_directory(path: Path) -> tuple[list[PlainFile], ArchiveListing]:
    """A directory of `<class>.tar` files. Raises Error."""
    blobs: list[PlainFile] = []
    listing, tars = ArchiveListing(), []
    with reading(f"the folder {path}"), os.scandir(path) as entries:
        names = sorted(e.name for e in entries if not e.is_dir())
    for name in names:
        if is_system(name) or DOCUMENT.fullmatch(name):
            listing.leave_out(name, "is a document, or left there by a system or a tool", False)
        elif not _is_class_tar(name):
            listing.leave_out(name, "is no <class>.tar", name.lower().endswith(ARCHIVE_SUFFIXES) or _is_image(name))
        else:
            blob = PlainFile(path / name)
            tars.append(_probe(blob.read_at, len(blobs), name[:-4], "", 0, blob.size))
            blob.close()
            blobs.append(blob)
    listing.extents = _estimated(tars)
    listing.warn_of_images_in_no_class()
    return blobs, listing


def list_archive(blob: Blob, cache: Path | None) -> ArchiveListing:
    """Every class of a tar. cache: folder that keeps the listing and the index of a gzip stream. Raises Error."""
    if not isinstance(blob, GzipFile):
        return _Scanner(blob).run()
    kept = imagenet_listing.cache_path(cache, Path(blob.path)) if cache else None
    listing = imagenet_listing.load(kept, blob) if kept else None
    if listing is None:
        listing = in_child(_list_stream, blob)
        if kept:
            imagenet_listing.save(kept, blob, listing)
    return listing


def _list_stream(stream: GzipFile) -> ArchiveListing:
    listing = _Scanner(stream).run()
    stream.read_through()
    if stream.damage:
        listing.leave_out(posixpath.basename(stream.path), stream.damage)
    # The end of the stream was unknown, so the size in a damaged header may lead beyond it.
    listing.extents = [replace(extent, end=min(extent.end, stream.size)) for extent in listing.extents]
    return listing


def _is_class_tar(file: str) -> bool:
    return len(file) > 4 and file.lower().endswith(".tar")


def _is_image(file: str) -> bool:
    """Whether a file makes its folder one of images. A name without an ending may be a document's."""
    return looks_like_image(file) and not DOCUMENT.fullmatch(file)


def _is_image_member(item: Member | Special | Damage) -> bool:
    return isinstance(item, Member) and looks_like_image(item.name)


def _label(file: str) -> str:
    """The class in the name of a file, or the name of a val image, whose class a list gives."""
    if match := FLAT.fullmatch(file):
        return match[1]
    return file if VAL_NAME.fullmatch(file) else ""


class _Scanner:
    """Reads a tar once, from front to back, and sorts its members into class tars and runs."""

    def __init__(self, blob: Blob):
        self._blob, self._name = blob, posixpath.basename(blob.path)
        self._read_at = _peeking(blob)
        self._listing = ArchiveListing()
        self._tars: list[ClassExtent] = []  # class tars with counted images; their split is the folder as yet
        self._probed_tars: list[_ProbedTar] = []  # class tars whose images are not counted
        self._runs: list[Run] = []
        self._open = False  # whether the last run may go on
        self._folder, self._names_say_class = None, False  # of the last run; whether file names give the class there
        self._annotations: Counter[str] = Counter()  # folder -> its files
        self._damage: list[Damage] = []  # behind the last run, to whose class it belongs if that run goes on

    def run(self) -> ArchiveListing:
        """The listing. Raises Error."""
        blob, listing = self._blob, self._listing
        total = os.stat(blob.path).st_size if blob.compressed else blob.size
        progress = Progress(f"listing {self._name}", total, "bytes")
        for item in scan(self._read_at, 0, 1 << 62 if blob.compressed else blob.size):
            if isinstance(item, Damage):
                self._damage.append(item)
                if not item.lost:
                    listing.warnings.append(f"{blob.path}: {item.reason}")
                if item.last:
                    listing.cut = item.reason
                if item.member is None or not _is_class_tar(item.member.name):
                    continue
                item = item.member
            progress.add(item.offset - progress.done)
            self._add(item)
            self._leave_out_damage()
        self._leave_out_damage()
        for folder, count in self._annotations.items():
            listing.leave_out(f"{folder}/", f"a folder of annotations, with {plural(count, 'file')}", False)
        progress.finish()
        settle(listing, self._runs, self._tars + _estimated(self._probed_tars), blob.path)
        listing.warn_of_images_in_no_class()
        return listing

    def _add(self, item: Member | Special) -> None:
        path = item.name.removeprefix("./").lstrip("/")
        folder, _, file = path.rpartition("/")
        was_open, self._open = self._open, False
        if is_system(path):
            self._listing.leave_out(path, "is what a system leaves beside files", False)
        elif _is_class_tar(file) and isinstance(item, Member):
            self._add_class_tar(item, file[:-4], folder)
        elif DOCUMENT.fullmatch(file):
            self._listing.leave_out(path, "is a document", False)
        elif not ANNOTATIONS.isdisjoint(folder.split("/")):
            self._annotations[ANNOTATION_ROOT.match(folder)[0]] += 1  # pyright: ignore[reportOptionalSubscript] # it is there
        else:
            self._add_to_run(item, folder, file, was_open)

    def _add_class_tar(self, item: Member, name: str, folder: str) -> None:
        stop = item.offset + item.size
        if self._blob.compressed:  # all of it is read anyway: count
            extent = ClassExtent(0, name, folder, item.offset, stop, 0, -1, True)
            is_image = [_is_image_member(inner) for inner in class_items(self._read_at, extent)]
            self._tars.append(replace(extent, num_images=sum(is_image), num_items=len(is_image)))
        else:
            self._probed_tars.append(_probe(self._read_at, 0, name, folder, item.offset, stop))

    def _add_to_run(self, item: Member | Special, folder: str, file: str, was_open: bool) -> None:
        if folder != self._folder:
            was_open, self._folder = False, folder
            self._names_say_class = not folder or splits.canonical(posixpath.basename(folder)) is not None
        label = _label(file) if self._names_say_class else ""
        if was_open and self._runs[-1].label == label:
            self._runs[-1].items += len(self._damage)
            self._damage.clear()
        else:
            is_behind_damage = any(damage.lost for damage in self._damage)
            self._runs.append(Run(folder, label, item.start, file, is_behind_damage))
        self._open, run = True, self._runs[-1]
        run.end, run.items = item.offset + item.size, run.items + 1
        run.images += _is_image(file) and isinstance(item, Member)

    def _leave_out_damage(self) -> None:
        for damage in self._damage:
            self._listing.leave_out(self._name, damage.reason, damage.lost)
        self._damage.clear()


# ------------------------------------------------------------------------------------------------ counts of class tars


@dataclass(frozen=True, slots=True)
class _ProbedTar:
    """A class tar, and the images whose headers lie in its first bytes."""

    blob: int
    class_name: str
    folder: str
    start: int
    end: int
    num_images: int
    num_bytes: int  # that these images take
    is_empty: bool  # whether it is known to hold nothing


def _peeking(blob: Blob) -> ReadAt:
    """Reads of a file that fetch the first images of a class along with the header of its tar."""
    if blob.compressed:
        return blob.read_at
    held, held_start = b"", 0

    def read_at(offset: int, size: int) -> bytes:
        nonlocal held, held_start
        if not held_start <= offset <= offset + size <= held_start + len(held):
            held, held_start = blob.read_at(offset, max(size, PROBE_BYTES + (4 << 10))), offset
        return held[offset - held_start : offset - held_start + size]

    return read_at


def _probe(read_at: ReadAt, blob: int, class_name: str, folder: str, start: int, end: int) -> _ProbedTar:
    head = read_at(start, min(PROBE_BYTES, end - start))
    num_images, num_bytes, is_empty = 0, 0, end - start <= PROBE_BYTES
    for item in scan(lambda offset, size: head[offset - start : offset - start + size], start, end):
        is_empty = False
        if isinstance(item, Damage):
            break
        num_images, num_bytes = num_images + _is_image_member(item), item.offset + item.size - start
    return _ProbedTar(blob, class_name, folder, start, end, num_images, num_bytes, is_empty)


def _estimated(tars: list[_ProbedTar]) -> list[ClassExtent]:
    """Extents of class tars; their images are estimated from the mean size in the class and in the whole archive."""
    num_images = sum(tar.num_images for tar in tars)
    archive_mean = sum(tar.num_bytes for tar in tars) / num_images if num_images else MEAN_IMAGE_BYTES
    extents = []
    for tar in tars:
        mean = (tar.num_bytes + archive_mean) / (tar.num_images + 1)
        count = 0 if tar.is_empty else max(1, round((tar.end - tar.start) / mean))
        items = 0 if tar.is_empty else -1
        extents.append(ClassExtent(tar.blob, tar.class_name, tar.folder, tar.start, tar.end, count, items, True))
    return extents
