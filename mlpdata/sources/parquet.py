"""Image data sets in parquet files, as the Hugging Face Hub has them: a repository read in place, or a local folder.

Only the columns wanted are read, a few row groups a unit. `parquet_splits` finds the files of the splits,
`parquet_columns` the columns and the names of the classes: from the features in the files and from the card
(README.md). Files of one data set that disagree are refused. `parquet_files` reads them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

from mlpdata import labels
from mlpdata import splits as split_names
from mlpdata.errors import Error
from mlpdata.fetch.hub import Repository
from mlpdata.sources import keys
from mlpdata.sources import parquet_columns as columns
from mlpdata.sources.base import Broken, Sample, Source, Unit
from mlpdata.sources.files import missing_names, two_versions
from mlpdata.sources.hub_card import MAX_CARD_BYTES, HubCard
from mlpdata.sources.location import Location, open_file
from mlpdata.sources.parquet_files import ParquetFile, RowGroups
from mlpdata.sources.parquet_splits import CARD, SUFFIX, assign_files, list_files
from mlpdata.system.files import resolved

FOOTERS_READ = 64  # files of a repository whose footers are all read first; with more files, each is read with its unit
READERS = 8
MAX_CLASSES = 1_000_000
MAX_BROKEN = 100_000  # unusable rows of one unit that are listed; with more, the conversion ends


@dataclass(frozen=True, kw_only=True)
class ParquetHints:
    """What mlpdata knows of a published data set and its files do not say."""

    image: str | None = None  # column names; None: found from the features
    label: str | None = None
    classes: tuple[str, ...] | None = None  # names in the source by label, where the repository has only readable ones
    place: Callable[[str, int], tuple[str, str]] | None = None  # (split, row) -> (key, origin), as the archive has them


@dataclass(frozen=True)
class _Footer:
    """What a file's footer says. kind: what the labels are, as columns.label_kind; None without that column."""

    kind: str | None
    units: tuple[RowGroups, ...]

    @property
    def num_rows(self) -> int:
        return sum(groups.num_rows for groups in self.units)


class Parquet(Source):
    """A repository at one commit, or a folder with the same files.

    splits: those wanted, as the user spells them; (): all. limit: how many samples of each split are wanted. Files that
    neither asks for are not read. The exception: where the labels name the classes, all labels are read, for the number
    of a class must not depend on either.

    Splits without labels are left out; `test` is called `val` where there is no other held-out split. Where nothing
    names the classes, they are the values that occur, sorted; numbers are counted anew from 0 and become names.
    `warnings` says all this. Raises Error where there are no images with labels, and where files disagree.
    """

    def __init__(
        self,
        location: Location,
        hints: ParquetHints = ParquetHints(),
        splits: tuple[str, ...] = (),
        limit: int | None = None,
    ):
        self._location, self._hints = location, hints
        self._notes: list[str] = []
        self._sizes = list_files(location)
        has_card = self._sizes.pop(CARD, None) is not None
        if not self._sizes:
            raise Error(f"{location} holds no parquet files")
        if gaps := missing_names(self._sizes):
            self._notes.append(f"{location}: files seem to be missing, by their numbers: {keys.listed(gaps, 3)}")
        if two := two_versions(self._sizes):
            self._notes.append(
                f"{location}: {' and '.join(map(keys.shown, two))} look like files of two versions: both are taken"
            )
        stems = keys.distinct(re.sub(r"[^\w-]", "_", path[: -len(SUFFIX)]) for path in self._sizes)
        self._stems = dict(zip(self._sizes, map(keys.part, stems), strict=True))
        card = HubCard(self._read_card() if has_card else "")
        self._files = assign_files(location, list(self._sizes), card, self._notes)
        self._columns = columns.Columns(self._first_schemas(card.features()), hints.image, hints.label, self._notes)
        of_card = columns.class_names(card.features().get(self._columns.label, {}))[0]
        if of_card and self._columns.classes and of_card != self._columns.classes:
            self._notes.append(
                f"README.md names the classes of {self._columns.label!r} otherwise than {self._columns.classes_from}, "
                "whose names are taken"
            )
        footers, values = self._settle_splits(splits, limit)
        self._units = self._list_units(footers)
        names, self._label_by_value = self._columns.settle_classes(hints.classes, values, location, self._notes)
        self.classes = [(name, labels.readable(name)) for name in names]
        if isinstance(location, Repository):
            self.release = str(location)
            self.files = [self.release]
        else:
            self.release = f"folder {resolved(location).name}"
            paths = [path for files in footers.values() for path in files]
            self.files = [str(location / path) for path in (*paths, *([CARD] if has_card else []))]
        self.codec = "jpg" if self._first_image().startswith(b"\xff\xd8\xff") else "png"
        self.warnings = tuple(card.problems + self._notes)

    def __getstate__(self):
        return {**self.__dict__, "_units": []}

    # --------------------------------------------------------------------------------------------------- listing

    def _read_card(self) -> str:
        with contextlib.closing(open_file(self._location, CARD)) as blob:
            return blob.read_at(0, min(blob.size, MAX_CARD_BYTES)).decode("utf-8", "replace")

    def _first_schemas(self, card_features: dict[str, dict]) -> list[columns.FileSchema]:
        """The schema of the first file of each split, train's first."""
        schemas = []
        for split in sorted(self._files, key=lambda split: split != "train"):
            with ParquetFile(self._location, self._files[split][0]) as file:
                schemas.append(replace(file.schema, features=file.schema.features or card_features))
        return schemas

    def _settle_splits(
        self, asked: tuple[str, ...], limit: int | None
    ) -> tuple[dict[str, dict[str, _Footer | None]], set]:
        """Settle which splits there are, and read what the units and the classes need.

        Returns the footers of the splits that are wanted, by file (None for those that are read with their units), and
        the values of all labels where the classes follow from them.
        """
        wanted = split_names.chosen(asked, self._files, self._location)
        by_value = self._columns.classes is None and self._hints.classes is None
        footers: dict[str, dict[str, _Footer | None]] = {}
        all_values: set = set()
        for split, files in list(self._files.items()):
            if split not in wanted and not by_value:
                continue
            read = self._read_footers(files, limit) if split in wanted else {}
            kinds = {path: footer.kind for path, footer in read.items() if footer}
            values = self._distinct_labels(split, files, kinds) if by_value else set()
            all_values |= values
            without = [path for path, kind in kinds.items() if kind is None]
            why = ""
            if without and len(without) == len(kinds):
                why = f"it has no column {self._columns.label!r}"
            elif without:
                raise self._columns.missing(f"{self._location}: {keys.shown(without[0])}", self._columns.label)
            elif read and all(footer and not footer.num_rows for footer in read.values()):
                why = "it has no rows"
            elif not (values if by_value else any(map(self._has_labels, files))):
                why = "its labels are withheld: all are -1 or missing"
            if why and asked and split in wanted:
                raise Error(f"{self._location}: split {split!r} cannot be converted: {why}")
            if why:
                del self._files[split]
                self._notes.append(f"split {split!r} is left out: {why}")
            elif split in wanted:
                footers[split] = read
        if not footers:
            raise Error(
                f"{self._location} has no split with labels in column {self._columns.label!r}: {self._notes[-1]}"
            )
        return footers, all_values

    def _read_footers(self, files: list[str], limit: int | None) -> dict[str, _Footer | None]:
        """Footers of as many files as the limit needs; None for each file where a server would be asked too often."""
        if limit is None and isinstance(self._location, Repository) and len(files) > FOOTERS_READ:
            return dict.fromkeys(files)
        step = len(files) if limit is None else READERS
        footers: dict[str, _Footer | None] = {}
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(files), step):
                some = files[start : start + step]
                footers.update(zip(some, pool.map(self._read_footer, some), strict=True))
                if limit is not None and sum(footer.num_rows for footer in footers.values() if footer) >= limit:
                    break
        return footers

    def _read_footer(self, path: str) -> _Footer:
        with ParquetFile(self._location, path) as file:
            return _Footer(self._columns.check(file.schema), tuple(file.units()))

    def _distinct_labels(self, split: str, files: list[str], kinds: dict[str, str | None]) -> set:
        """The labels of a split; adds the kind of every file's labels to `kinds`. Raises Error for too many labels."""
        values: set = set()
        with ThreadPoolExecutor(READERS) as pool:
            for path, (kind, in_file) in zip(files, pool.map(self._labels_of_file, files), strict=True):
                kinds[path] = kind
                values |= in_file
                if len(values) > MAX_CLASSES:
                    raise Error(
                        f"{self._location}: column {self._columns.label!r} has more than {MAX_CLASSES:,} different "
                        "values: these are no classes; --label-column chooses another column"
                    )
        if None in values and len(values) > 1:
            self._notes.append(f"split {split!r} has rows with a label that is missing or negative: they are skipped")
        return values - {None}

    def _labels_of_file(self, path: str) -> tuple[str | None, set]:
        """(kind of the labels, their values); None stands for every label that is no class."""
        values: set = set()
        with ParquetFile(self._location, path) as file:
            kind = self._columns.check(file.schema)
            for value in file.labels(self._columns.label) if kind else ():
                if isinstance(value, float):
                    raise Error(
                        f"{file.schema.path}: column {self._columns.label!r} has the value {value:g}, which is no "
                        "class number; --label-column chooses another column"
                    )
                is_class = isinstance(value, str) or (isinstance(value, int) and value >= 0)
                values.add(value if is_class else None)
                if len(values) > MAX_CLASSES:
                    break
        return kind, values

    def _has_labels(self, path: str) -> bool:
        with ParquetFile(self._location, path) as file:
            kind = self._columns.check(file.schema)
            return kind is not None and not all(map(columns.is_missing, file.labels(self._columns.label)))

    def _first_image(self) -> bytes:
        for files in self._files.values():
            with ParquetFile(self._location, files[0]) as file:
                if data := file.first_image(self._columns.image):
                    return data
        return b""

    def _list_units(self, footers: dict[str, dict[str, _Footer | None]]) -> list[Unit]:
        units: list[Unit] = []
        for split, files in footers.items():
            row = 0
            for path, footer in files.items():
                if footer is None:  # the rows of earlier files are not counted, so nothing depends on a row's number
                    at = (path, None, None)
                    units.append(Unit(f"{split}-{len(units):06d}", split, 0, self._sizes[path], at))
                for groups in footer.units if footer else ():
                    name, at = f"{split}-{len(units):06d}", (path, groups, row)
                    units.append(Unit(name, split, groups.num_rows, groups.num_bytes, at, exact=True))
                    row += groups.num_rows
        return units

    def units(self) -> list[Unit]:
        return self._units

    # --------------------------------------------------------------------------------------------------- reading

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        path, groups, first_row = unit.content
        with ParquetFile(self._location, path) as file:
            image, label = self._columns.image, self._columns.label
            if self._columns.check(file.schema) is None:
                raise self._columns.missing(file.schema.path, label)
            sizes, num_broken = file.group_sizes, 0
            start, stop = (groups.start, groups.stop) if groups else (0, len(sizes))
            if stop > len(sizes):
                raise Error(f"{file.schema.path} has changed while it was read; convert again")
            before = sum(sizes[:start])
            rows = chain.from_iterable(file.rows(group, image, label) for group in range(start, stop))
            for i, (data, value) in enumerate(rows):
                key, origin = f"{self._stems[path]}_{before + i:07d}", f"{keys.shown(path)}[{before + i}]"
                position = self._label_of(value)
                if isinstance(data, str) or isinstance(position, str):
                    why = data if isinstance(data, str) else position
                    num_broken += 1
                    if num_broken > MAX_BROKEN:
                        raise Error(
                            f"{file.schema.path}: more than {MAX_BROKEN:,} rows of it cannot be used: each {why}"
                        )
                    yield Broken(origin, str(why))
                else:
                    if self._hints.place and first_row is not None:
                        key, origin = self._hints.place(unit.split, first_row + i)
                    yield Sample(key, data, position, origin)

    def _label_of(self, value: object) -> int | str:
        """The position of a label's class in the class list, or why there is none."""
        if columns.is_missing(value):
            return f"has label {value}, which stands for none" if value is not None else "has no label"
        known = self._label_by_value.get(value) if self._label_by_value is not None else value
        if isinstance(known, int) and 0 <= known < len(self.classes):
            return int(known)
        return f"has label {value!r:.80}, which is none of the {len(self.classes)} classes"
