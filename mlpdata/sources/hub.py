"""Image data sets in parquet files, as the Hugging Face Hub has them: a repository read in place, or a local folder.

Only the columns wanted are read, a stretch of row groups a unit. Which columns hold image and label, the names of the
classes and the splits follow from the features in the files and from the card (README.md).
"""

from __future__ import annotations

import fnmatch
import io
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.hub import Repository
from mlpdata.sources import Broken, Sample, Source, Unit
from mlpdata.sources.blob import PlainFile
from mlpdata.sources.url import UrlFile

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "valid": "val",
    "val": "val",
    "dev": "val",
    "test": "test",
}
IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "target", "category")
MAX_CARD_BYTES = 8 << 20
FOOTERS_READ = 64  # of so many files all footers are read beforehand; of more, each when its unit is read
ROWS_A_UNIT = 10_000
ROWS_A_BATCH = 64  # images decoded from parquet pages at a time: bounds memory
BUFFER_BYTES = 8 << 20  # read from a column at a time, however large its row groups are
READERS = 8
LOOKED_AT = 200  # entries of a folder, to tell what it holds: it may have millions


@dataclass(frozen=True, kw_only=True)
class Hints:
    """What is known of a data set beyond what its files say."""

    image: str | None = None  # columns; None: found from the features
    label: str | None = None
    classes: tuple[str, ...] | None = None  # names in the source by label, where the repository has only readable ones
    place: Callable[[str, int], tuple[str, str]] | None = None  # (split, row) -> (key, origin), as the archive has them


class Parquet(Source):
    """A repository at one commit, or a folder with the same files.

    Splits without labels are left out; `test` is called `val` where there is no other held-out split. Raises Error
    where it holds no images with labels.
    """

    def __init__(
        self,
        location: Repository | Path,
        hints: Hints = Hints(),
        splits: tuple[str, ...] = (),
        limit: int | None = None,
    ):
        self._location, self._hints, self._where = location, hints, str(location)
        if isinstance(location, Repository):
            sizes, self.release = location.files, str(location)
        else:
            paths = [p for p in sorted(location.rglob("*")) if p.is_file()]
            sizes = {p.relative_to(location).as_posix(): p.stat().st_size for p in paths}
            self.release = f"folder {location.resolve().name}"
        self._sizes = {path: size for path, size in sorted(sizes.items()) if path.endswith(".parquet")}
        if not self._sizes:
            raise Error(f"{self._where} holds no parquet files")
        card = self._read_card("README.md" if "README.md" in sizes else None)
        self._files = self._assign(card)
        self.files = [self.release]
        if isinstance(location, Path):
            self.files = [str(location / path) for paths in self._files.values() for path in paths]
        schema = self._parquet(next(iter(self._files.values()))[0]).schema_arrow
        self._features = _features(schema, card)
        self._image, self._label = self._columns(schema)
        self._drop_unlabelled()
        self.classes = self._classes(schema)
        self._labels = {name: i for i, (name, _) in enumerate(self.classes)}
        self.codec = "jpg" if self._first_bytes()[:3] == b"\xff\xd8\xff" else "png"

    # --------------------------------------------------------------------------------------------------- listing

    def _read_card(self, path: str | None) -> dict:
        """The YAML header of the card; {} where there is none that can be read."""
        if path is None:
            return {}
        blob = self._open(path)
        text = blob.read_at(0, min(blob.size, MAX_CARD_BYTES)).decode("utf-8", "replace")
        blob.close()
        match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        try:
            card = yaml.safe_load(match[1]) if match else {}
        except yaml.YAMLError:
            return {}
        return card if isinstance(card, dict) else {}

    def _assign(self, card: dict) -> dict[str, list[str]]:
        """Our split -> its files in order: by the card's configuration, else by their names."""
        found: dict[str, list[str]] = {}
        configs = [
            c for c in card.get("configs") or [] if isinstance(c, dict) and isinstance(c.get("data_files"), list)
        ]
        config = next((c for c in configs if c.get("default") or c.get("config_name") == "default"), None)
        for entry in (config or (configs or [{}])[0]).get("data_files", []):
            if isinstance(entry, dict) and "split" in entry:
                patterns = entry.get("path", [])
                for pattern in [patterns] if isinstance(patterns, str) else patterns:
                    found.setdefault(str(entry["split"]), []).extend(fnmatch.filter(self._sizes, pattern))
        if not any(found.values()):
            for path in self._sizes:
                words = re.split(r"[^a-z]+", path.lower())
                found.setdefault(next((w for w in words if w in SPLITS), "train"), []).append(path)
        found = {split: files for split, files in found.items() if files}
        ours = {SPLITS.get(split, re.sub(r"[^\w-]", "_", split)): files for split, files in found.items()}
        if "val" not in ours and "test" in ours:
            ours["val"] = ours.pop("test")
        return ours

    def _columns(self, schema: pa.Schema) -> tuple[str, str]:
        """(image column, label column): as asked for, else by feature, else by name."""
        kinds = {name: feature.get("_type") for name, feature in self._features.items()}
        chosen = []
        for option, asked, kind, names in (
            ("--image-column", self._hints.image, "Image", IMAGE_NAMES),
            ("--label-column", self._hints.label, "ClassLabel", LABEL_NAMES),
        ):
            if asked is not None and asked not in schema.names:
                raise Error(f"{self._where} has no column {asked!r}; it has {', '.join(schema.names)}")
            by_kind = [n for n in schema.names if kinds.get(n) == kind]
            by_name = [n for n in names if n in schema.names]
            found = asked or next(iter(by_kind + by_name), None)
            if found is None:
                raise Error(f"{self._where}: which column it is, {option} has to say; it has {', '.join(schema.names)}")
            chosen.append(found)
        image = schema.field(chosen[0]).type
        if not _holds_bytes(image) and not (pa.types.is_struct(image) and image.get_field_index("bytes") >= 0):
            raise Error(
                f"{self._where}: column {chosen[0]!r} holds {image}, not images; choose one with --image-column"
            )
        return chosen[0], chosen[1]

    def _drop_unlabelled(self) -> None:
        """Leave out splits whose labels are withheld: all -1 or missing at their start."""
        for split, files in list(self._files.items()):
            first = self._parquet(files[0])
            batch = (
                next(first.iter_batches(1000, columns=[self._label], use_threads=False), None)
                if len(self._files) > 1
                else None
            )
            if batch is not None and all(v is None or v == -1 for v in batch.column(0).to_pylist()):
                del self._files[split]
        if not self._files:
            raise Error(f"{self._where} has no split with labels in column {self._label!r}")

    def _classes(self, schema: pa.Schema) -> list[tuple[str, str]]:
        names = self._features.get(self._label, {}).get("names")
        kind = schema.field(self._label).type
        if self._hints.classes is not None and (names is None or len(names) == len(self._hints.classes)):
            return [(name, labels.readable(name)) for name in self._hints.classes]
        if names is None:
            values = self._distinct_labels()
            if pa.types.is_integer(kind):
                names = [str(i) for i in range(max(values, default=-1) + 1)]
            else:
                names = sorted(map(str, values))
        names = [re.sub(r"[\t\r\n]+", " ", str(name)) for name in names]
        if not names or len(set(names)) < len(names):
            names = [f"{i}" for i in range(len(names))]
        return [(name, labels.readable(name)) for name in names]

    def _distinct_labels(self) -> set:
        def of(path: str) -> set:
            column = self._parquet(path).read([self._label], use_threads=False).column(0)
            return set(column.unique().to_pylist()) - {None}

        paths = [path for files in self._files.values() for path in files]
        with ThreadPoolExecutor(READERS) as pool:
            return set().union(*pool.map(of, paths))

    def _first_bytes(self) -> bytes:
        for files in self._files.values():
            for batch in self._parquet(files[0]).iter_batches(1, columns=[self._image], use_threads=False):
                data = _image_bytes(batch.column(0)[0].as_py())
                if data:
                    return data
        return b""

    def units(self) -> list[Unit]:
        few = sum(map(len, self._files.values())) <= FOOTERS_READ
        units = []
        for split, paths in self._files.items():
            footers = {}
            if few:
                with ThreadPoolExecutor(READERS) as pool:
                    footers = dict(zip(paths, pool.map(lambda path: self._parquet(path).metadata, paths), strict=True))
            row = 0
            for path in paths:
                footer = footers.get(path)
                if footer is None:  # rows are counted from the start of the file, and only known when it is read
                    at = (path, None, None)
                    units.append(Unit(f"{split}-{len(units):06d}", split, 0, self._sizes[path], at))
                    continue
                for groups, num_rows, num_bytes in _stretches(footer):
                    units.append(Unit(f"{split}-{len(units):06d}", split, num_rows, num_bytes, (path, groups, row)))
                    row += num_rows
        return units

    # --------------------------------------------------------------------------------------------------- reading

    def samples(self, unit: Unit) -> Iterator[Sample | Broken]:
        path, groups, row = unit.at
        stem = re.sub(r"[^\w-]", "_", path.removesuffix(".parquet"))
        try:
            file = self._parquet(path)
        except _Damaged as e:
            yield Broken(path, str(e))
            return
        in_file = sum(file.metadata.row_group(g).num_rows for g in range(groups[0])) if groups else 0
        place = self._hints.place if row is not None else None
        for group in range(*groups) if groups else range(file.num_row_groups):
            at = 0
            try:
                for image, label in self._rows(file, group):
                    key, origin = f"{stem}_{in_file + at:07d}", f"{path}[{in_file + at}]"
                    if place:
                        key, origin = place(unit.split, row + at)
                    at += 1
                    yield self._sample(key, origin, image, label)
            except (OSError, pa.ArrowException) as e:
                for i in range(at, file.metadata.row_group(group).num_rows):
                    yield Broken(
                        f"{path}[{in_file + i}]", f"row group {group} cannot be read: {str(e).splitlines()[0]}"
                    )
            in_file += file.metadata.row_group(group).num_rows
            row = row + file.metadata.row_group(group).num_rows if row is not None else None

    def _rows(self, file: pq.ParquetFile, group: int) -> Iterator[tuple[bytes | None, object]]:
        columns = [self._image, self._label]
        for batch in file.iter_batches(ROWS_A_BATCH, row_groups=[group], columns=columns, use_threads=False):
            images, found = batch.column(self._image), batch.column(self._label)
            for i in range(len(images)):
                yield _image_bytes(images[i].as_py()), found[i].as_py()

    def _sample(self, key: str, origin: str, image: bytes | None, label: object) -> Sample | Broken:
        if not image:
            return Broken(origin, "has no image bytes")
        number = label if isinstance(label, int) and not isinstance(label, bool) else self._labels.get(str(label), -1)
        if not 0 <= number < len(self.classes):
            return Broken(origin, f"has label {label!r}, which is none of the {len(self.classes)} classes")
        return Sample(key, image, number, origin)

    # ------------------------------------------------------------------------------------------------------- files

    def _open(self, path: str) -> PlainFile | UrlFile:
        location = self._location
        if isinstance(location, Path):
            return PlainFile(location / path)
        return UrlFile(location.url(path), location.login(), location.files[path])

    def _parquet(self, path: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(_Seekable(self._open(path)), pre_buffer=False, buffer_size=BUFFER_BYTES)
        except (OSError, pa.ArrowException) as e:
            raise _Damaged(f"{self._where}: {path} is no whole parquet file ({str(e).splitlines()[0]})") from None


class _Damaged(Error):
    """A file of the data set that is no parquet file."""


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


def _features(schema: pa.Schema, card: dict) -> dict[str, dict]:
    """Feature by column: {"_type": "Image"} or {"_type": "ClassLabel", "names": [...]}, from the file or the card."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f for name, f in features.items() if isinstance(f, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        pass
    found = {}
    info = card.get("dataset_info")
    info = info[0] if isinstance(info, list) and info else info
    for feature in (info or {}).get("features", []) if isinstance(info, dict) else []:
        kind = feature.get("dtype") if isinstance(feature, dict) else None
        if kind == "image":
            found[feature["name"]] = {"_type": "Image"}
        elif isinstance(kind, dict) and isinstance(kind.get("class_label"), dict):
            names = kind["class_label"].get("names")
            names = [names[k] for k in sorted(names, key=int)] if isinstance(names, dict) else names
            found[feature["name"]] = {"_type": "ClassLabel", "names": names}
    return found


def _holds_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _image_bytes(value: object) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def _stretches(footer: pq.FileMetaData) -> Iterator[tuple[tuple[int, int], int, int]]:
    """((first row group, behind the last), rows, bytes) of pieces of a file of about ROWS_A_UNIT rows."""
    first, rows, num_bytes = 0, 0, 0
    for group in range(footer.num_row_groups):
        rows += footer.row_group(group).num_rows
        num_bytes += footer.row_group(group).total_byte_size
        if rows >= ROWS_A_UNIT or group == footer.num_row_groups - 1:
            yield (first, group + 1), rows, num_bytes
            first, rows, num_bytes = group + 1, 0, 0


def holds_parquet(folder: Path) -> bool:
    """Whether a folder is a data set in parquet files, at its top or one level below. Looks at few entries only."""

    def some(path: Path) -> bool:
        with os.scandir(path) as entries:
            return any(entry.name.endswith(".parquet") for entry in islice(entries, LOOKED_AT))

    with os.scandir(folder) as entries:
        below = [folder / e.name for e in islice(entries, LOOKED_AT) if e.is_dir() and not e.name.startswith(".")]
    return some(folder) or (len(below) < LOOKED_AT // 10 and any(map(some, below)))
