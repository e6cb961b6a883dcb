"""The files of one ImageNet class: which are samples, their keys and splits, and why the others are none."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from mlpdata.archive.tarscan import SPECIAL, Damage, Member, ReadAt, Special
from mlpdata.image.limits import MAX_IMAGE_BYTES
from mlpdata.labels import WNID
from mlpdata.sources import keys
from mlpdata.sources.base import Broken, ClassFilter, Sample, TooSmall
from mlpdata.sources.files import is_system, looks_like_image
from mlpdata.sources.imagenet_listing import ClassExtent, class_items


@dataclass(slots=True)
class ClassFile:
    """A file, or a stretch of damage, in a class."""

    read_at: ReadAt
    item: Member | Special | Damage
    path: str  # inside the class tar
    origin: str
    key: str = ""
    split: str = ""
    reason: str = ""  # why it is no sample
    is_data: bool = True

    def sample(self, label: int) -> Sample | Broken:
        """Read the file."""
        reason, data = self.reason, b""
        if not reason and isinstance(self.item, Member):
            if self.item.size > MAX_IMAGE_BYTES:
                reason = f"has {self.item.size} bytes"
            else:
                data = self.read_at(self.item.offset, self.item.size)
                if len(data) < self.item.size:
                    reason = f"is cut short: {self.item.size} bytes announced, {len(data)} there"
        if reason:
            return Broken(self.origin, reason, self.split, self.is_data, is_counted=True)
        return Sample(self.key, data, label, self.origin, self.split)


def list_files(read_at: ReadAt, extent: ClassExtent, name: str) -> list[ClassFile]:
    """Everything in an extent of the class `name`."""
    files = []
    for item in class_items(read_at, extent):
        if isinstance(item, Damage):
            origin = f"{name}.tar" if extent.inner else name
            files.append(ClassFile(read_at, item, "", origin, reason=item.reason, is_data=item.lost))
        else:
            path = item.name.removeprefix("./")
            origin = keys.line(f"{name}.tar/{path}" if extent.inner else item.name)
            files.append(ClassFile(read_at, item, path, origin))
    return files


def settle(
    files: list[ClassFile], class_name: str, name: str, split: str, class_filter: ClassFilter
) -> TooSmall | None:
    """Give the samples among all files of a class their keys and splits, and the others the reason why they are none.

    class_name: in the archive. name: as shown. split: "" where the archive has none, so that the filter decides.
    Returns the class where the filter leaves it out for its size.
    """
    _resolve_links(files)
    for file in files:
        if not file.reason and is_system(file.path):
            file.reason, file.is_data = "is what a system leaves beside files", False
    usable = [file for file in files if not file.reason]
    images = [file.path for file in usable if looks_like_image(file.path)] or [file.path for file in usable]
    split_of = {} if split else class_filter.split_of(name, images)
    if images and not split_of and not split:
        return TooSmall(name, len(images))
    class_keys = _keys(class_name, [posixpath.basename(file.path) for file in usable])
    for file, key in zip(usable, class_keys, strict=True):
        file.key, file.split = key, split or split_of.get(file.path, "train")
    return None


def _resolve_links(files: list[ClassFile]) -> None:
    """Let links lead to the files of the class that they name; any other special member is no sample."""
    specials = [(file, file.item) for file in files if isinstance(file.item, Special)]
    plain = {}
    if specials:
        plain = {posixpath.normpath(f.path.lstrip("/")): f for f in files if isinstance(f.item, Member)}
    for file, item in specials:
        # A hard link names a member of the archive, a symbolic one a path from its own folder.
        folder = posixpath.dirname(file.path) if item.reason == SPECIAL[b"2"] else ""
        target = plain.get(posixpath.normpath(posixpath.join(folder, item.target).lstrip("/"))) if item.target else None
        if target:
            file.item, file.read_at = target.item, target.read_at
        else:
            to = f" to {keys.line(item.target)}, which is not in its class" if item.target else ""
            file.reason, file.is_data = f"is {item.reason}{to}", looks_like_image(file.path)


def class_text(name: str) -> str:
    """The name of a class as a line of text that does not lead out of its folder.

    >>> class_text("cats"), class_text("..")
    ('cats', '%2E%2E')
    """
    return name.replace(".", "%2E") if not name.strip(".") else keys.line(name)


def _keys(class_name: str, files: list[str]) -> list[str]:
    """Keys of the images of a class, different from one another and from those of other classes."""
    prefix = f"{class_name}_" if WNID.fullmatch(class_name) else None
    folder, stems = keys.part(class_name), [keys.part(file.rpartition(".")[0] or file) for file in files]
    return keys.distinct(stem if prefix and stem.startswith(prefix) else f"{folder}/{stem}" for stem in stems)
