"""Image data sets in parquet files, as the Hugging Face Hub has them: a repository read in place, or a local folder.

Only the columns wanted are read, a stretch of row groups a unit. Which columns hold image and label, the names of the
classes and the splits follow from the features in the files and from the card (README.md). Files of one data set agree
on them, or are refused.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata import labels
from mlpdata import splits as split_names
from mlpdata.archive.blob import PlainFile
from mlpdata.archive.url import UrlFile
from mlpdata.errors import Error, first_line
from mlpdata.fetch.hub import Repository
from mlpdata.sources import Broken, Sample, Source, Unit, keys
from mlpdata.sources import parquet_columns as columns
from mlpdata.sources.files import IMAGE_SUFFIXES, is_folder, is_system, tree, why_no_file
from mlpdata.sources.hub_card import MAX_CARD_BYTES, HubCard

CARD = "README.md"
SUFFIX = ".parquet"
FOOTERS_READ = 64  # of so many files of a repository all footers are read beforehand; of more, each with its unit
ROWS_A_UNIT = 10_000
ROWS_A_BATCH = 64  # images decoded from parquet pages at a time: bounds memory
LABELS_A_BATCH = 1 << 16
CODEC_ROWS = 256  # of a split's first file, looked through for an image
BUFFER_BYTES = 8 << 20  # read from a column at a time, however large its row groups are
READERS = 8
LOOKED_AT = 200  # entries of a folder, to tell what it holds: it may have millions
LOOKED_BELOW = 4  # levels: the Hub's cache has data sets at snapshots/COMMIT/data
MAX_CLASSES = 1_000_000
MAX_ROWS = 1 << 31  # of one file; footers may claim anything
MAX_BROKEN = 100_000  # rows of one unit that are listed: a file with more is no data set's
READ_ERRORS = (OSError, pa.ArrowException, MemoryError, UnicodeDecodeError, OverflowError)


@dataclass(frozen=True, kw_only=True)
class ParquetHints:
    """What is known of a data set beyond what its files say."""

    image: str | None = None  # columns; None: found from the features
    label: str | None = None
    classes: tuple[str, ...] | None = None  # names in the source by label, where the repository has only readable ones
    place: Callable[[str, int], tuple[str, str]] | None = None  # (split, row) -> (key, origin), as the archive has them


@dataclass(frozen=True)
class _Footer:
    """What a file says of itself.

    stretches: ((first row group, behind the last), rows, bytes), see _stretches. kind: of its labels, as
    columns.label_kind; None where it has no such column.
    """

    num_rows: int
    stretches: tuple[tuple[tuple[int, int], int, int], ...]
    kind: str | None


class Parquet(Source):
    """A repository at one commit, or a folder with the same files.

    splits: those wanted, as the user spells them; (): all. limit: samples of each that are wanted. What neither asks
    for is not read, but for labels where the classes follow from them: what a class's number is does not depend on it.

    Splits without labels are left out; `test` is called `val` where there is no other held-out split. Where nothing
    names the classes they are the values that occur, sorted: class numbers are compacted, and are the classes' names.
    `warnings` says all this. Raises Error where there are no images with labels, and where files disagree.
    """

    def __init__(
        self,
        location: Repository | Path,
        hints: ParquetHints = ParquetHints(),
        splits: tuple[str, ...] = (),
        limit: int | None = None,
    ):
        self._location, self._hints, self._where = location, hints, str(location)
        self._said: list[str] = []
        if isinstance(location, Repository):
            every, self.release = location.files, str(location)
        else:
            every, self.release = _walk(location), f"folder {location.resolve().name}"
        self._sizes = {path: every[path] for path in sorted(every) if _is_data(path)}
        if not self._sizes:
            raise Error(f"{self._where} holds no parquet files")
        stems = keys.distinct(re.sub(r"[^\w-]", "_", path[: -len(SUFFIX)]) for path in self._sizes)
        self._stems = dict(zip(self._sizes, map(keys.part, stems), strict=True))
        card = HubCard(self._read_card() if CARD in every else "")
        self._card_features = card.features()
        self._files = self._assign(card)
        self._kind, self._kind_from = columns.NOTHING, ""
        self._names: tuple[str, ...] | None = None
        self._names_from = ""
        self._choose_columns()
        self._values: set = set()
        footers = self._settle(splits, limit)
        self._units = self._list_units(footers)
        self.classes = self._classes()
        self.files = [self.release]
        if isinstance(location, Path):
            read = [path for files in footers.values() for path in files]
            self.files = [str(location / path) for path in (*read, *([CARD] if CARD in every else []))]
        self.codec = "jpg" if self._first_image()[:3] == b"\xff\xd8\xff" else "png"
        self.warnings = tuple(card.problems + self._said)

    def __getstate__(self):
        return {**self.__dict__, "_units": [], "_values": set()}

    # --------------------------------------------------------------------------------------------------- listing

    def _assign(self, card: HubCard) -> dict[str, list[str]]:
        """Our split -> its files in order: by the card's configuration, else by their names."""
        inside = f"{card.folder}/" if card.folder else ""
        paths = [path.removeprefix(inside) for path in self._sizes if path.startswith(inside)]
        found = card.assign(paths)
        if found is None:
            found = self._by_names(paths)
        found = {split: [inside + path for path in files] for split, files in found.items()}
        taken = {path for files in found.values() for path in files}
        if left := [path for path in self._sizes if path not in taken]:
            self._said.append(f"{len(left):,} parquet files of no split are left out: {_listed(left)}")
        ours: dict[str, list[str]] = {}
        for name, split in split_names.settle(found).items():
            if split in ours:
                self._said.append(f"split {split!r} also has the files of split {name!r}: they are put together")
            ours.setdefault(split, []).extend(found[name])
            if split != (split_names.canonical(name) or name):
                self._said.append(f"split {name!r} is called {split!r}: it is the only one that is held out")
        return ours

    def _by_names(self, paths: list[str]) -> dict[str, list[str]]:
        """Split -> files, by the words of their paths. Raises Error for what looks like several configurations."""
        found: dict[str, list[str]] = {}
        nameless = []
        for path in paths:
            split = split_names.of_path(path)
            (found.setdefault(split, []) if split else nameless).append(path)
        if not found and nameless:
            self._said.append("no file's name says which split it is of: all are 'train'")
            found = {"train": nameless}
        for split, files in found.items():
            folders = sorted(set(map(_configuration, files)))
            if len(folders) > 1:
                example = next(filter(None, folders))
                location = self._location
                source = location.below(example) if isinstance(location, Repository) else location / example
                raise Error(
                    f"{self._where} has files of split {split!r} in several folders, {_listed(folders)}, which look "
                    f"like several configurations: take one, as --source {source}, or put the files into one folder"
                )
            words = {_words(path, split) for path in files}
            if len(words) > 1 and not frozenset.intersection(*words):
                names = sorted({word for group in words for word in group})
                self._said.append(f"split {split!r} is put together of files called {' and '.join(names)}")
        return found

    def _choose_columns(self) -> None:
        """Set which columns hold images and labels, and the classes' names: as the first files of the splits say."""
        tables = []
        for split in sorted(self._files, key=lambda split: split != "train"):
            path = self._files[split][0]
            with self._opened(path) as file:
                schema = file.schema_arrow
            tables.append(columns.FileSchema(self._at(path), schema, columns.features(schema) or self._card_features))
        self._image, self._label, said = columns.choose(tables, self._hints.image, self._hints.label)
        self._said += said
        for table in tables:
            kind = columns.field(table.schema, self._label, table.path)
            problem = columns.label_problem(kind) if kind is not None else None
            if problem:
                raise Error(f"{table.path}: column {self._label!r} {problem}; choose one with --label-column")
            if self._kind == columns.NOTHING and kind is not None:
                self._kind, self._kind_from = columns.label_kind(kind), table.path
            if self._names is None and (feature := table.features.get(self._label)) is not None:
                self._names, problem = columns.class_names(feature)
                self._names_from = table.path
                if problem:
                    self._said.append(f"{table.path}: column {self._label!r} {problem}")

    def _settle(self, asked: tuple[str, ...], limit: int | None) -> dict[str, dict[str, _Footer | None]]:
        """Settle which splits are there, and the values of their labels where the classes follow from them.

        Returns the footers of the splits that are wanted, by file; None for those that are read with their units.
        """
        wanted = [self._split(name) for name in asked] or list(self._files)
        by_value = self._names is None and self._hints.classes is None
        footers: dict[str, dict[str, _Footer | None]] = {}
        for split, files in list(self._files.items()):
            if split not in wanted and not by_value:
                continue
            found = self._read_footers(files, limit) if split in wanted else {}
            kinds = {path: footer.kind for path, footer in found.items() if footer}
            values = self._distinct_labels(split, files, kinds) if by_value else ()
            without = [path for path, kind in kinds.items() if kind is None]
            why = ""
            if without and len(without) == len(kinds):
                why = f"it has no column {self._label!r}"
            elif without:
                raise self._no_label(without[0])
            elif found and all(footer and not footer.num_rows for footer in found.values()):
                why = "it has no rows"
            elif not (values if by_value else self._has_labels(files)):
                why = "its labels are withheld: all are -1 or missing"
            if why and asked and split in wanted:
                raise Error(f"{self._where}: split {split!r} cannot be converted: {why}")
            if why:
                del self._files[split]
                self._said.append(f"split {split!r} is left out: {why}")
            elif split in wanted:
                footers[split] = found
            self._values.update(values)
        if not footers:
            raise Error(f"{self._where} has no split with labels in column {self._label!r}: {self._said[-1]}")
        return footers

    def _split(self, name: str) -> str:
        found = split_names.find(name, self._files)
        if found is None:
            raise Error(f"{self._where} has no split {name!r} with images; it has {', '.join(self._files)}")
        return found

    def _read_footers(self, files: list[str], limit: int | None) -> dict[str, _Footer | None]:
        """Of so many files as the limit asks for. None for each where they are too many to ask a server for."""
        if limit is None and isinstance(self._location, Repository) and len(files) > FOOTERS_READ:
            return dict.fromkeys(files)
        step, found, num_rows = len(files) if limit is None else READERS, {}, 0
        with ThreadPoolExecutor(READERS) as pool:
            for at in range(0, len(files), step):
                some = files[at : at + step]
                for path, footer in zip(some, pool.map(self._footer, some), strict=True):
                    found[path] = footer
                    num_rows += footer.num_rows
                if limit is not None and num_rows >= limit:
                    break
        return found

    def _distinct_labels(self, split: str, files: list[str], kinds: dict[str, str | None]) -> set:
        """The labels of a split. kinds: of its files' labels, to be completed. Raises Error for too many."""

        def of(path: str) -> tuple[str | None, set]:
            found = set()
            with self._opened(path) as file:
                kind = self._check(path, file)
                for value in self._iter_labels(file) if kind else ():
                    if isinstance(value, float):
                        raise Error(
                            f"{self._at(path)}: column {self._label!r} has the value {value:g}, which is no class "
                            "number; --label-column chooses another column"
                        )
                    is_class = isinstance(value, str) or (isinstance(value, int) and value >= 0)
                    found.add(value if is_class else None)
                    if len(found) > MAX_CLASSES:
                        break
            return kind, found

        values: set = set()
        with ThreadPoolExecutor(READERS) as pool:
            for path, (kind, found) in zip(files, pool.map(of, files), strict=True):
                kinds[path] = kind
                values |= found
                if len(values) > MAX_CLASSES:
                    raise Error(
                        f"{self._where}: column {self._label!r} has more than {MAX_CLASSES:,} different values: these "
                        "are no classes; --label-column chooses another column"
                    )
        if None in values and len(values) > 1:
            self._said.append(f"split {split!r} has rows with a label that is missing or negative: they are skipped")
        return values - {None}

    def _has_labels(self, files: list[str]) -> bool:
        for path in files:
            with self._opened(path) as file:
                if self._check(path, file) and not all(map(columns.is_missing, self._iter_labels(file))):
                    return True
        return False

    def _iter_labels(self, file: pq.ParquetFile) -> Iterator[object]:
        """The labels of a file, each once in so many rows, or more often. Row groups that are damaged are left out."""

        def of(groups: list[int]) -> Iterator[object]:
            for batch in file.iter_batches(LABELS_A_BATCH, groups, [self._label], use_threads=False):
                yield from columns.values(batch.column(0).unique())

        every = list(range(file.num_row_groups))
        try:
            yield from of(every)
        except READ_ERRORS:  # rows that cannot be read are listed when their images are
            for group in every:
                with contextlib.suppress(*READ_ERRORS):
                    yield from of([group])

    def _classes(self) -> list[tuple[str, str]]:
        """(name, readable name) by label; sets what a value's label is."""
        hinted, names = self._hints.classes, self._names
        self._position: dict | None = None  # label by value; None: values are labels
        if hinted is not None and (names is None or columns.agree(names, hinted)):
            names = hinted
        elif hinted is not None and len(hinted) == len(names) and set(hinted) != set(names):
            self._said.append(f"{self._names_from}: the classes are not in the usual order: they keep their names")
        if names is None:
            values = sorted(self._values)
            self._position = {value: i for i, value in enumerate(values)}
            names = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
            if self._kind in columns.NUMBERS and values != list(range(len(values))):
                self._said.append(
                    f"the class numbers of column {self._label!r} are not 0, 1, 2, ...: the {len(values):,} that occur "
                    "are counted from 0, and are the names of the classes"
                )
        elif self._kind == "text":
            if len(set(names)) < len(names):
                raise Error(f"{self._names_from} calls several classes by one name, and the labels are names")
            self._position = {name: i for i, name in enumerate(names)}
        if self._kind == "float":
            self._said.append(f"the labels of column {self._label!r} are floats: whole numbers are class numbers")
        names, changed = columns.distinct_names(names)
        if changed:
            self._said.append(f"{self._names_from or self._where}: {changed}")
        return [(name, labels.readable(name)) for name in names]

    def _first_image(self) -> bytes:
        for files in self._files.values():
            with self._opened(files[0]) as file, contextlib.suppress(*READ_ERRORS):
                for batch in islice(file.iter_batches(1, columns=[self._image], use_threads=False), CODEC_ROWS):
                    if isinstance(data := next(columns.images(batch.column(self._image))), bytes):
                        return data
        return b""

    def _list_units(self, footers: dict[str, dict[str, _Footer | None]]) -> list[Unit]:
        units: list[Unit] = []
        for split, files in footers.items():
            row = 0
            for path, footer in files.items():
                if footer is None:  # rows are counted from the start of the file, and only known when it is read
                    at = (path, None, None)
                    units.append(Unit(f"{split}-{len(units):06d}", split, 0, self._sizes[path], at))
                    continue
                for groups, num_rows, num_bytes in footer.stretches:
                    at = (path, groups, row)
                    units.append(Unit(f"{split}-{len(units):06d}", split, num_rows, num_bytes, at, exact=True))
                    row += num_rows
        return units

    def units(self) -> list[Unit]:
        return self._units

    # --------------------------------------------------------------------------------------------------- reading

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        path, groups, row = unit.at
        with self._opened(path) as file:
            if self._check(path, file) is None:
                raise self._no_label(path)
            sizes = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
            first, stop = groups or (0, len(sizes))
            if stop > len(sizes):
                raise Error(f"{self._at(path)} has changed while it was read; convert again")
            in_file, num_broken = sum(sizes[:first]), 0
            place = self._hints.place if row is not None else None
            for group in range(first, stop):
                for at, found in enumerate(self._read_group(file, group, sizes[group])):
                    origin = f"{keys.shown(path)}[{in_file + at}]"
                    if isinstance(found, str):
                        num_broken += 1
                        if num_broken > MAX_BROKEN:
                            raise Error(
                                f"{self._at(path)}: more than {MAX_BROKEN:,} rows of it cannot be used: each {found}"
                            )
                        yield Broken(origin, found)
                        continue
                    key = f"{self._stems[path]}_{in_file + at:07d}"
                    if place:
                        key, origin = place(unit.split, row + at)
                    yield Sample(key, *found, origin)
                in_file += sizes[group]
                row = row + sizes[group] if row is not None else None

    def _read_group(self, file: pq.ParquetFile, group: int, num_rows: int) -> Iterator[tuple[bytes, int] | str]:
        """(image, label) of each row, or why there is none: exactly so many as the footer says."""
        n, why = 0, f"row group {group} ends before it"
        try:
            names = [self._image, self._label]
            for batch in file.iter_batches(ROWS_A_BATCH, row_groups=[group], columns=names, use_threads=False):
                images, found = columns.images(batch.column(self._image)), columns.values(batch.column(self._label))
                for image, value in islice(zip(images, found, strict=True), num_rows - n):
                    n += 1
                    label = self._label_of(value)
                    yield image if isinstance(image, str) else label if isinstance(label, str) else (image, label)
        except READ_ERRORS as e:
            why = f"row group {group} cannot be read: {first_line(e)}"
        for _ in range(num_rows - n):
            yield why

    def _label_of(self, value: object) -> int | str:
        """The position of a label in the class list, or why it has none."""
        if columns.is_missing(value):
            return f"has label {value}, which stands for none" if value is not None else "has no label"
        known = self._position.get(value) if self._position is not None else value
        if isinstance(known, int) and 0 <= known < len(self.classes):
            return int(known)
        return f"has label {value!r:.80}, which is none of the {len(self.classes)} classes"

    # ------------------------------------------------------------------------------------------------------- files

    def _at(self, path: str) -> str:
        return f"{self._where}: {keys.shown(path)}"

    def _open(self, path: str) -> PlainFile | UrlFile:
        location = self._location
        if isinstance(location, Path):
            return PlainFile(location / path)
        return UrlFile(location.url(path), location.login(), location.files[path])

    def _read_card(self) -> str:
        try:
            blob = self._open(CARD)
            text = blob.read_at(0, min(blob.size, MAX_CARD_BYTES)).decode("utf-8", "replace")
            blob.close()
        except OSError as e:
            raise Error(f"cannot read {self._at(CARD)}: {e.strerror or first_line(e)}") from None
        return text

    @contextlib.contextmanager
    def _opened(self, path: str) -> Iterator[pq.ParquetFile]:
        """A file whose footer can be read. Raises Error where it cannot."""
        try:
            file = pq.ParquetFile(
                _Seekable(self._open(path)), buffer_size=BUFFER_BYTES, page_checksum_verification=True
            )
            file.schema_arrow  # noqa: B018 - which is made now
        except READ_ERRORS as e:
            if isinstance(e, OSError) and e.strerror:
                raise Error(f"cannot read {self._at(path)}: {e.strerror}") from None
            raise Error(
                f"{self._at(path)} is no whole parquet file ({first_line(e)}); get it again, or "
                "move it out of the data set"
            ) from None
        with contextlib.closing(file):
            yield file

    def _footer(self, path: str) -> _Footer:
        with self._opened(path) as file:
            kind = self._check(path, file)
            return _Footer(file.metadata.num_rows, tuple(_stretches(file.metadata)), kind)

    def _check(self, path: str, file: pq.ParquetFile) -> str | None:
        """Hold a file's columns and counts against what the data set has. Returns the kind of its labels, or None.

        Raises Error where they do not agree.
        """
        schema, where, footer = file.schema_arrow, self._at(path), file.metadata
        image, label = (columns.field(schema, name, where) for name in (self._image, self._label))
        if image is None:
            raise Error(f"{where} has no column {self._image!r}: get the file again, or move it out of the data set")
        if problem := columns.image_problem(image):
            raise Error(f"{where}: column {self._image!r} {problem}; choose one with --image-column")
        if label is not None and (problem := columns.label_problem(label)):
            raise Error(f"{where}: column {self._label!r} {problem}; choose one with --label-column")
        kind = columns.label_kind(label) if label is not None else None
        if self._kind == columns.NOTHING and kind:
            self._kind, self._kind_from = kind, where
        numbers = {kind, self._kind} <= columns.NUMBERS
        if kind not in (None, columns.NOTHING, self._kind) and not numbers:
            raise Error(f"{where}: column {self._label!r} holds {label}, unlike {self._kind_from}: files must agree")
        feature = columns.features(schema).get(self._label)
        names = columns.class_names(feature)[0] if feature is not None and self._names is not None else None
        if names is not None and names != self._names:
            raise Error(
                f"{where} names the classes of {self._label!r} otherwise than {self._names_from}: files must agree"
            )
        # Of its columns nothing is asked: pyarrow ends the process where their statistics are damaged.
        rows = [footer.row_group(g).num_rows for g in range(footer.num_row_groups)]
        if min(rows, default=0) < 0 or not sum(rows) == footer.num_rows <= MAX_ROWS:
            raise Error(f"{where} is damaged: its footer claims {footer.num_rows:,} rows")
        return kind

    def _no_label(self, path: str) -> Error:
        return Error(
            f"{self._at(path)} has no column {self._label!r}, unlike {self._kind_from}: get the file again, or move it "
            "out of the data set"
        )


class _Seekable(io.RawIOBase):
    """A blob as the file object that pyarrow reads from."""

    def __init__(self, blob: PlainFile | UrlFile):
        self._blob, self._at = blob, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._blob.close()
        super().close()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._blob.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = self._blob.read_at(self._at, self._blob.size - self._at if size is None or size < 0 else size)
        self._at += len(data)
        return data


def _stretches(footer: pq.FileMetaData) -> Iterator[tuple[tuple[int, int], int, int]]:
    """((first row group, behind the last), rows, bytes) of pieces of a file of about ROWS_A_UNIT rows."""
    first, rows, num_bytes = 0, 0, 0
    for group in range(footer.num_row_groups):
        rows += footer.row_group(group).num_rows
        num_bytes += footer.row_group(group).total_byte_size
        if rows >= ROWS_A_UNIT or group == footer.num_row_groups - 1:
            yield (first, group + 1), rows, num_bytes
            first, rows, num_bytes = group + 1, 0, 0


# ------------------------------------------------------------------------------------------------------------ names


def _is_data(path: str) -> bool:
    return path.lower().endswith(SUFFIX) and not is_system(path) and not re.search(r"(^|/)\.", path)


def _walk(root: Path) -> dict[str, int]:
    """Bytes of the parquet files and the card below a folder, by path; links are followed. Raises Error."""
    sizes = {}
    for below, entries in tree(str(root)):
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            if (path == CARD or _is_data(path)) and not is_folder(entry):
                if problem := why_no_file(entry):
                    raise Error(
                        f"{root}: {keys.shown(path)} cannot be read: it is {problem}; remove it or get it again"
                    )
                sizes[path] = entry.stat().st_size
    return sizes


def _configuration(path: str) -> str:
    """The folder that sets a file apart from those of other configurations; "" where there is none.

    >>> _configuration("small/train/0.parquet"), _configuration("train/0000/0.parquet")
    ('small', '')
    """
    folders = path.split("/")[:-1]
    plain = [re.sub(r"[\W\d_]+", "", folder) for folder in folders]
    last = max((i for i, word in enumerate(plain) if word and not split_names.canonical(word)), default=-1)
    return "/".join(folders[: last + 1])


def _words(path: str, split: str) -> frozenset[str]:
    """The words of a path that stand for its split."""
    return frozenset(word for word in re.split(r"[^a-z]+", path.lower()) if split_names.canonical(word) == split)


def _listed(names: list[str]) -> str:
    shown = ", ".join(keys.shown(name or ".") for name in names[:5])
    return shown + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def holds_parquet(folder: Path) -> bool:
    """Whether a folder is a data set in parquet files, and none of image files. Looks at few entries only."""
    waiting, found = [(folder, 0)], False
    while waiting:
        path, level = waiting.pop(0)
        try:
            with os.scandir(path) as entries:
                seen = list(islice(entries, LOOKED_AT))
        except OSError as e:
            raise Error(f"cannot read the folder {path}: {e.strerror or first_line(e)}") from None
        if any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in seen):
            return False
        found = found or any(_is_data(entry.name) for entry in seen)
        below = [Path(e.path) for e in seen if is_folder(e) and not e.name.startswith(".")]
        if level < LOOKED_BELOW and len(below) < LOOKED_AT // 10:
            waiting += [(path, level + 1) for path in below]
    return found
