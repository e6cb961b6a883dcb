"""What WebDataset tars hold: from the first samples of some, or from every header where more has to be known."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import xxhash

from mlpdata.archive.tarscan import BLOCK, next_member
from mlpdata.errors import Error
from mlpdata.image.formats import what_it_is
from mlpdata.sources import keys
from mlpdata.sources.files import JPEG_SUFFIXES
from mlpdata.sources.wds_sample import (
    ANY,
    Blob,
    Columns,
    TarSample,
    image_of,
    iter_samples,
    label_member,
    label_of,
    other_images,
    record_of,
)
from mlpdata.sources.wds_splits import of_folder
from mlpdata.sources.wds_tars import SourceTar
from mlpdata.system.progress import Progress

WNID = re.compile(r"(?:^|/)(n\d{8})[_/]")
PEEK = 16  # samples of as many tars, from which the class list is recognised
MAX_CLASSES = 1 << 20
LEAST_CAPTIONS = 8  # samples that are looked at together: fewer may well be of a class each


@dataclass
class TarContents:
    """What a tar holds, from its headers and labels."""

    name: str
    num_samples: int = 0
    hashes: array = field(default_factory=lambda: array("Q"))  # of the keys
    splits: set[str] = field(default_factory=set)  # that folders inside it name; "" where a sample's name none
    numbers: Counter[int] = field(default_factory=Counter)  # labels
    names: Counter[str] = field(default_factory=Counter)
    num_texts: int = 0  # of the labels that are names, those from a .txt, which may be captions

    def add(self, blob: Blob, sample: TarSample, has_labels: bool) -> None:
        """Count a sample. has_labels: whether its label is read too. Raises Error for too many classes."""
        self.num_samples += 1
        self.hashes.append(xxhash.xxh3_64_intdigest(sample.key.encode()))
        self.splits.add(of_folder(sample.folder))
        if has_labels:
            value, _ = label_of(blob, sample)
            if isinstance(value, str):
                self.names[value] += 1
                self.num_texts += label_member(sample) == "txt"
            elif value is not None and value >= 0:
                self.numbers[value] += 1
            if len(self.names) + len(self.numbers) > MAX_CLASSES:
                raise Error(f"{blob.path} has more than {MAX_CLASSES:,} classes")


def wnid_of(blob: Blob, sample: TarSample) -> str | None:
    """The synset of a sample, from its key or the `filename` of its JSON; None where neither says one."""
    match = WNID.search(sample.name)
    if not match:
        file = (record_of(blob, sample) or {}).get("filename")
        match = WNID.search(file) if isinstance(file, str) else None
    return match[1] if match else None


class Peek:
    """The first samples of some of the tars.

    codec, mean_bytes: of a sample. sample_names: what the tars call them. pairs: (label, wnid) of samples that have
    both. contents: of these samples alone. Raises Error where no sample has an image.
    """

    def __init__(
        self, path: object, tars: list[SourceTar], blobs: dict[str, Blob], notes: list[str], columns: Columns = ANY
    ):
        self.contents: list[TarContents] = []
        self.sample_names: list[str] = []
        self.pairs: set[tuple[int, str]] = set()
        extensions, num_bytes = [], 0
        several = differing = why_none = ""  # the first sample of each kind, for a note
        chosen = tars[:: max(1, len(tars) // PEEK)]
        for tar in chosen:
            blob = blobs[tar.name]
            self.contents.append(TarContents(tar.name))
            for sample in islice(iter_samples(blob, columns=columns), PEEK):
                if not isinstance(sample, TarSample):
                    continue
                image, why = image_of(sample)
                if not image:
                    why_none = why_none or why
                    continue
                extensions.append(image.rpartition(".")[2])
                num_bytes += sample.members[image].size + 3 * BLOCK
                self.sample_names.append(sample.name)
                self.contents[-1].add(blob, sample, has_labels=True)
                if other_images(sample, image) and not several:
                    several = f"of {keys.line(sample.name)} {image} is taken"
                number = label_of(blob, sample)[0]
                if type(number) is int:
                    if wnid := wnid_of(blob, sample):
                        self.pairs.add((number, wnid))
                    in_json = (record_of(blob, sample) or {}).get("label")
                    if "cls" in sample.members and type(in_json) is int and in_json != number:
                        differing = differing or f"cls is taken of {keys.line(sample.name)}"
            blob.close()
        if not extensions:
            why_none = why_none and f"; the first {why_none}"
            raise Error(f"{path}: {chosen[0].name} begins with no sample that has an image{why_none}")
        if several:
            notes.append(f"{path}: samples have several images: {several}")
        if differing:
            notes.append(f"{path}: cls and json say different classes of samples: {differing}")
        num_jpegs = sum(f".{extension}" in JPEG_SUFFIXES for extension in extensions)
        self.codec = "jpg" if num_jpegs * 2 > len(extensions) else "png"
        self.mean_bytes = num_bytes / len(extensions)


def refuse_what_is_no_tar(path: object, blobs: Mapping[str, Blob]) -> None:
    """Raise Error for a file that is called a tar and holds nothing of one, as what a failed download leaves.

    One of zeros is a tar without members, and one whose first header is damaged is damaged.
    """
    for name, blob in blobs.items():
        head = blob.read_at(0, BLOCK)
        is_tar = len(head) == BLOCK and (not head.strip(b"\0") or next_member(blob.read_at, 0, blob.size) is not None)
        blob.close()
        if not is_tar:
            raise Error(
                f"{path}: {name} is no tar but {what_it_is(head)}; get it again, or move it out of the data set"
            )


def refuse_captions(path: object, contents: Iterable[TarContents]) -> None:
    """Raise Error where the names of the classes, from .txt members, are captions: next to no two of them are equal."""
    num_texts, names = 0, set()
    for tar in contents:
        num_texts += tar.num_texts
        names |= tar.names.keys()
    if num_texts >= LEAST_CAPTIONS and 2 * len(names) > num_texts:
        raise Error(
            f"{path}: the .txt of its samples are captions, {len(names):,} different ones in {num_texts:,} samples, "
            "and no classes; --label-column names the member that says the class (txt takes these as they are)"
        )


def read_through(
    tars: list[SourceTar], blobs: dict[str, Blob], has_labels: bool, columns: Columns = ANY
) -> list[TarContents]:
    """What all tars hold, from every header, and labels where they are asked for; sets the tars' num_samples."""
    progress = Progress("reading headers", sum(blob.size for blob in blobs.values()), "bytes")
    contents = []
    for tar in tars:
        blob = blobs[tar.name]
        contents.append(TarContents(tar.name))
        for sample in iter_samples(blob, columns=columns):
            if isinstance(sample, TarSample):
                contents[-1].add(blob, sample, has_labels)
        blob.close()
        tar.num_samples = contents[-1].num_samples
        progress.add(blob.size)
    progress.finish()
    return contents


def repeated_keys(contents: list[TarContents], splits: Mapping[str, Iterable[str]]) -> tuple[set[str], bool]:
    """(tars that hold a key twice, whether two tars of a split share a key). splits: of each tar's samples."""
    of_split: dict[str, list[np.ndarray]] = {}
    repeating = set()
    for tar in contents:
        hashes = np.unique(np.array(tar.hashes, np.uint64))
        if len(hashes) < len(tar.hashes):
            repeating.add(tar.name)
        for split in splits[tar.name]:
            of_split.setdefault(split, []).append(hashes)
    merged = map(np.concatenate, of_split.values())
    return repeating, any(len(np.unique(hashes)) < len(hashes) for hashes in merged)
