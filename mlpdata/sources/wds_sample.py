"""Samples in WebDataset tars: members that follow one another under one key, one of them the image, one the label.

A member's name is cut at the first dot of its last part: the key before it, the extension behind. Content is checked
before it is used, and every member that is not used is reported.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlpdata.archive.blob import PlainFile
from mlpdata.archive.tarscan import BLOCK, Damage, Member, Special, next_member, scan
from mlpdata.archive.url import UrlFile
from mlpdata.sources import keys
from mlpdata.sources.base import Broken
from mlpdata.sources.files import IMAGE_SUFFIXES, is_system

LABELS = ("cls", "label", "class", "json", "txt")  # extensions of members that say the class, in this order
FIELDS = ("label", "cls", "class", "class_id", "label_id", "category_id", "target", "category", "class_name",
          "label_name", "synset", "wnid")  # fmt: skip
# Extensions, besides LABELS, of what is no image. Without an image's extension, the only other member may be the image.
OTHER = {"text", "caption", "yaml", "yml", "xml", "csv", "tsv", "md", "html", "url", "npy", "npz", "pth", "pt",
         "pickle", "pkl", "pyd", "id", "index", "count", "width", "height", "transcript", "mp3", "wav", "flac", "mp4",
         "info", "meta"}  # fmt: skip
PREFERRED = ("jpg", "jpeg", "png", "webp")  # where a sample has several images
NUMBER = re.compile(r"([+-]?\d{1,18})(\.0*)?", re.ASCII)
NUMBERS = re.compile(r"[\[(]?\s*[+-]?\d+(?:[\s,;]+[+-]?\d+)+\s*[\])]?", re.ASCII)
MAX_LABEL_BYTES = 256
MAX_JSON_BYTES = 1 << 16
MAX_DEPTH = 4  # of nested objects of a JSON that are searched for a label

Blob = PlainFile | UrlFile


@dataclass(slots=True)
class TarSample:
    """One sample: its members by lower-case extension, and those that cannot be used, with what they are."""

    folder: str
    stem: str
    start: int  # of its first header
    members: dict[str, Member] = field(default_factory=dict)
    strange: list[tuple[str, str]] = field(default_factory=list)  # (name, reason)

    @property
    def name(self) -> str:
        return f"{self.folder}/{self.stem}" if self.folder else self.stem

    @property
    def key(self) -> str:
        """The key under which the sample is written; no two names share a key."""
        parts = [part for part in self.name.split("/") if part not in ("", ".")]
        return "/".join(map(keys.part, parts))


@dataclass(frozen=True, slots=True)
class Columns:
    """Which members of samples the user takes for the image and the class, by extension (`input.jpg`); "" for any."""

    image: str = ""
    label: str = ""

    def choose(self, sample: TarSample) -> TarSample:
        """The sample without what the user does not take: other images, other members that say a class."""
        members = sample.members
        if self.image:
            for extension in [e for e in members if f".{e}".endswith(IMAGE_SUFFIXES) and e != self.image]:
                del members[extension]
        if self.label:
            for extension in [e for e in members if says_class(e) and e != self.label]:
                del members[extension]
            if self.label != "json" and (member := members.pop(self.label, None)):
                members["cls"] = member
        return sample


ANY = Columns()


def iter_samples(
    blob: Blob, start: int = 0, stop: int | None = None, columns: Columns = ANY
) -> Iterator[TarSample | Broken]:
    """Samples of a range of bytes of a tar (without one, of the whole tar), and what in it cannot be used.

    Adjacent ranges share no sample and omit none. A sample belongs to the range in which it begins; only the first
    sample with a header at or after the end of a range belongs to that range too, and not to the next one.
    """
    stop = blob.size if stop is None else stop
    skipping, last, current = start > 0, False, None
    first = next_member(blob.read_at, start, blob.size) if start else 0
    if first is None:
        return
    for item in scan(blob.read_at, first, blob.size, origin=0):
        if isinstance(item, Damage):
            if not skipping:  # else the range before has reported it
                yield Broken("", item.reason, is_data=item.lost)
            continue
        name = item.name.removeprefix("./").lstrip("/")
        if is_system(name):
            if not skipping:
                yield Broken(keys.line(name), "is what a system leaves beside files", is_data=False)
            continue
        folder, _, file = name.rpartition("/")
        stem, _, extension = file.partition(".")
        if current is None or stem != current.stem or folder != current.folder:
            if current is not None and not skipping:
                yield columns.choose(current)
            if last:
                return
            skipping = skipping and current is None
            current = TarSample(folder, stem, item.start)
        last = last or item.offset - BLOCK >= stop
        extension = extension.lower()
        if isinstance(item, Special):
            to = f" to {keys.line(item.target)}" if item.target else ""
            current.strange.append((keys.line(name), f"is {item.reason}{to}, which is not followed"))
        elif extension in current.members:
            current.strange.append((keys.line(name), "is there twice"))
        else:
            current.members[extension] = item
    if current is not None and not skipping:
        yield columns.choose(current)


def image_of(sample: TarSample) -> tuple[str, str]:
    """(extension of the image, "") of a sample, or ("", why there is none)."""
    images = [e for e in sample.members if f".{e}".endswith(IMAGE_SUFFIXES)]
    simple = [e for e in images if "." not in e]
    if simple:
        return next((e for e in PREFERRED if e in simple), simple[0]), ""
    if not images:  # its content decides
        images = [e for e in sample.members if e not in LABELS and e.rpartition(".")[2] not in (*LABELS, *OTHER)]
    if len(images) == 1:
        return images[0], ""
    several = f"has {len(images)} images, {' and '.join(images[:2])}: one has to be chosen"
    return "", several if images else "has no image"


def other_images(sample: TarSample, chosen: str) -> list[Member]:
    """The images of a sample that were not chosen."""
    return [m for e, m in sample.members.items() if e != chosen and f".{e}".endswith(IMAGE_SUFFIXES)]


def says_class(extension: str) -> bool:
    """Whether an extension is that of a class, by itself or as a part, as webdataset decodes it.

    >>> says_class("cls"), says_class("label.cls"), says_class("y.cls"), says_class("label.txt"), says_class("a.txt")
    (True, True, True, True, False)
    """
    first, _, last = extension.partition(".")
    return extension in LABELS or last == "cls" or (first in ("cls", "label", "class") and last in ("txt", "id"))


def label_member(sample: TarSample) -> str | None:
    """The extension of the member that says a sample's class; of several, the first. None without one."""
    extension = next((e for e in LABELS if e in sample.members), None)
    if extension in (None, "json", "txt"):
        return next((e for e in sample.members if "." in e and says_class(e)), extension)
    return extension


def label_of(blob: Blob, sample: TarSample) -> tuple[int | str | None, str]:
    """(number or name of the class, "") of a sample, or (None, why there is none)."""
    extension = label_member(sample)
    if extension is None:
        return None, "has no class"
    if "." in extension and len(dotted := [e for e in sample.members if "." in e and says_class(e)]) > 1:
        return None, f"has {len(dotted)} classes, {' and '.join(dotted[:2])}: one has to be chosen"
    member = sample.members[extension]
    if extension == "json":
        return _json_label(record_of(blob, sample))
    if member.size > MAX_LABEL_BYTES:
        return None, f"has a class of {member.size:,} bytes ({extension})"
    text = blob.read_at(member.offset, member.size).decode("utf-8-sig", "surrogateescape").strip()
    if NUMBERS.fullmatch(text):
        return None, f"has several classes ({extension}: {keys.line(text[:40])})"
    return (_value(text), "") if text.strip("\0") else (None, f"has an empty class ({extension})")


def _value(text: str) -> int | str:
    match = NUMBER.fullmatch(text)
    return int(match[1]) if match else text


def _json_label(record: dict | None) -> tuple[int | str | None, str]:
    if record is None:
        return None, "has a JSON that cannot be read"
    field_and_value = _find(record, 0)
    if field_and_value is None:
        names = ", ".join(keys.line(str(name)[:40]) for name in list(record)[:8])
        return None, f"has no class: its JSON has {names or 'nothing'}"
    name, value = field_and_value
    if isinstance(value, str) and value.strip() and len(value) <= MAX_LABEL_BYTES:
        return _value(value.strip()), ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e18:
        value = int(value)
    if type(value) is int and abs(value) < 10**18:
        return value, ""
    shown = f"{keys.line(repr(value)[:40])} ({name} of its JSON)"
    return None, f"has the class {shown}, which is neither a number nor a name"


def _find(record: dict, depth: int) -> tuple[str, object] | None:
    """(field that says the class, its value) of the outermost object that has one."""
    for name in FIELDS:
        if record.get(name) is not None and not isinstance(record[name], dict):
            return name, record[name]
    inner = [value for value in record.values() if isinstance(value, dict)]
    hits = [hit for value in inner if depth < MAX_DEPTH and (hit := _find(value, depth + 1))]
    return hits[0] if len(hits) == 1 else None


def record_of(blob: Blob, sample: TarSample) -> dict | None:
    """The JSON object of a sample; {} without one, None where it cannot be read."""
    member = sample.members.get("json")
    if member is None:
        return {}
    if member.size > MAX_JSON_BYTES:
        return None
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(blob.read_at(member.offset, member.size))
        return record if isinstance(record, dict) else None
    return None
