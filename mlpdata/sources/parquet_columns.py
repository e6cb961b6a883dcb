"""Columns of parquet files: which ones hold the images and the labels, and what their values are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import types

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.sources import keys

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "target", "category")
MAX_LISTED = 20  # columns that a message names
NUMBERS = frozenset(("int", "float"))
NOTHING = "nothing"  # a column that holds nulls only: it agrees with every kind


@dataclass(frozen=True)
class FileSchema:
    """The columns of one file. features: by column, as `features` has them."""

    path: str
    schema: pa.Schema
    features: dict[str, dict]

    def kind(self, name: str) -> pa.DataType | None:
        """What a column holds; None where there is no such column. Raises Error where there are two."""
        positions = self.schema.get_all_field_indices(name)
        if len(positions) > 1:
            raise Error(f"{self.path} has {len(positions)} columns called {name!r}")
        return self.schema.field(positions[0]).type if positions else None

    def unique(self) -> list[str]:
        """Names that name one column each."""
        return [name for name in self.schema.names if len(self.schema.get_all_field_indices(name)) == 1]

    def with_feature(self, kind: str) -> list[str]:
        """Columns, each with a name of its own, that have a feature: "Image" or "ClassLabel"."""
        return [name for name in self.unique() if self.features.get(name, {}).get("_type") == kind]

    def __str__(self) -> str:
        return f"it has {_listed(self.schema.names)}" if self.schema.names else "it has none"


def features(schema: pa.Schema) -> dict[str, dict]:
    """Feature by column, from what `datasets` writes into a file's metadata; {} where there is nothing of the kind.

    Those that matter here: {"_type": "Image"} and {"_type": "ClassLabel", "names": [...]}.
    """
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in info.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


# --------------------------------------------------------------------------------------------------------- choosing


class Columns:
    """The image column and the label column of a data set, and what all its files have to agree on.

    image, label: names of the columns. kind: of the labels, as `label_kind` tells. classes: their names by label, where
    a file's features have them, else None. The first schema that says so decides; kind_from and classes_from name it.
    """

    def __init__(self, schemas: Sequence[FileSchema], image: str | None, label: str | None, notes: list[str]):
        """schemas: of one file of each split, the most telling first. image, label: the columns that the user asks for.

        notes: takes what the user should know. Raises Error where it is not clear which column it is.
        """
        self.image = _choose_image(schemas, notes) if image is None else _asked(schemas, image)
        self.label = _choose_label(schemas, self.image, notes) if label is None else _asked(schemas, label)
        self.kind, self.kind_from, self.classes_from = NOTHING, "", ""
        self.classes: tuple[str, ...] | None = None
        for schema in schemas:
            self._label_kind(schema)
            if self.classes is None and (feature := schema.features.get(self.label)) is not None:
                self.classes, problem = class_names(feature)
                self.classes_from = schema.path
                if problem:
                    notes.append(f"{schema.path}: column {self.label!r} {problem}")

    def _label_kind(self, schema: FileSchema) -> str | None:
        """The kind of a file's labels, None without the column. The first kind is what the data set has."""
        label = schema.kind(self.label)
        if label is None:
            return None
        if problem := label_problem(label):
            raise Error(f"{schema.path}: column {self.label!r} {problem}; choose one with --label-column")
        kind = label_kind(label)
        if self.kind == NOTHING:
            self.kind, self.kind_from = kind, schema.path
        return kind

    def check(self, schema: FileSchema) -> str | None:
        """The kind of a file's labels, None without the column. Raises Error where it disagrees with other files."""
        path, image = schema.path, schema.kind(self.image)
        if image is None:
            raise self.missing(path, self.image)
        if problem := image_problem(image):
            raise Error(f"{path}: column {self.image!r} {problem}; choose one with --image-column")
        kind = self._label_kind(schema)
        if kind not in (None, NOTHING, self.kind) and not {kind, self.kind} <= NUMBERS:
            label = schema.kind(self.label)
            raise Error(f"{path}: column {self.label!r} holds {label}, unlike {self.kind_from}: files must agree")
        if self.classes is not None:
            names = class_names(schema.features.get(self.label, {}))[0]
            if names not in (None, self.classes):
                raise Error(
                    f"{path} names the classes of {self.label!r} otherwise than {self.classes_from}: files must agree"
                )
        return kind

    def settle_classes(
        self, hinted: tuple[str, ...] | None, values: set, source: object, notes: list[str]
    ) -> tuple[list[str], dict | None]:
        """(names of the classes by label; label by value, None where the values are the labels).

        hinted: names known from elsewhere. values: those that occur, where nothing else names the classes.
        """
        names = self.classes
        if hinted is not None and (names is None or agree(names, hinted)):
            names = hinted
        elif hinted is not None and names is not None and len(hinted) == len(names) and set(hinted) != set(names):
            notes.append(f"{self.classes_from}: the classes are not in the usual order: they keep their names")
        label_of = None
        if names is None:
            ordered = sorted(values)
            label_of = {value: i for i, value in enumerate(ordered)}
            names = [str(value).lower() if isinstance(value, bool) else str(value) for value in ordered]
            if self.kind in NUMBERS and ordered != list(range(len(ordered))):
                notes.append(
                    f"the class numbers of column {self.label!r} are not 0, 1, 2, ...: the {len(ordered):,} that occur "
                    "are counted from 0, and are the names of the classes"
                )
        elif self.kind == "text":
            if len(set(names)) < len(names):
                raise Error(f"{self.classes_from} calls several classes by one name, and the labels are names")
            label_of = {name: i for i, name in enumerate(names)}
        if self.kind == "float":
            notes.append(f"the labels of column {self.label!r} are floats: whole numbers are class numbers")
        names, changed = distinct_names(names)
        if changed:
            notes.append(f"{self.classes_from or source}: {changed}")
        return names, label_of

    def missing(self, path: str, column: str) -> Error:
        """The Error for a file that lacks a column."""
        unlike = f", unlike {self.kind_from}" if column == self.label else ""
        return Error(f"{path} has no column {column!r}{unlike}: get the file again, or move it out of the data set")


def _choose_image(schemas: Sequence[FileSchema], notes: list[str]) -> str:
    for schema in schemas:
        unique = schema.unique()
        fit = [name for name in unique if (kind := schema.kind(name)) is not None and image_problem(kind) is None]
        by_feature = schema.with_feature("Image")
        by_name, only = _by_name(fit, IMAGE_NAMES), fit if len(fit) == 1 else []
        # The last is a column that cannot hold images, for all its name: `check` then says why.
        chosen = next(iter((*by_feature, *by_name, *only, *_by_name(unique, IMAGE_NAMES))), None)
        if chosen is None:
            continue
        if others := [name for name in (by_feature or fit) if name != chosen]:
            notes.append(f"images are column {chosen!r}; {_listed(others)} may hold others (--image-column)")
        elif chosen not in by_feature and chosen.lower() not in IMAGE_NAMES:
            notes.append(f"images are column {chosen!r}, the only one that can hold them")
        return chosen
    raise Error(f"{schemas[0].path}: which column holds the images, --image-column has to say; {schemas[0]}")


def _choose_label(schemas: Sequence[FileSchema], image: str, notes: list[str]) -> str:
    for schema in schemas:
        by_name = _by_name([name for name in schema.unique() if name != image], LABEL_NAMES)
        fit = [name for name in dict.fromkeys((*schema.with_feature("ClassLabel"), *by_name)) if name != image]
        if len(fit) > 1:
            notes.append(f"labels are column {fit[0]!r}; {_listed(fit[1:])} may hold others (--label-column)")
        if fit:
            return fit[0]
    raise Error(f"{schemas[0].path}: which column holds the labels, --label-column has to say; {schemas[0]}")


def _asked(schemas: Sequence[FileSchema], name: str) -> str:
    if not any(name in schema.schema.names for schema in schemas):
        raise Error(f"{schemas[0].path} has no column {name!r}; {schemas[0]}")
    return name


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The names that are wanted, in the order of `wanted`; case is ignored."""
    lower = {name.lower(): name for name in reversed(names)}
    return [lower[name] for name in wanted if name in lower]


def _listed(names: Sequence[str]) -> str:
    return keys.listed([f"{name!r:.60}" for name in names], MAX_LISTED)


# ----------------------------------------------------------------------------------------------------------- images


def image_problem(kind: pa.DataType) -> str | None:
    """Why a column of this kind cannot hold encoded images; None where it can."""
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        if index < 0:
            return "is a struct without `bytes`: the images themselves are not in it"
        return None if _holds_bytes(kind.field(index).type) else f"has `bytes` of {_short(kind.field(index).type)}"
    return None if _holds_bytes(kind) else f"holds {_short(kind)}, not images"


def _holds_bytes(kind: pa.DataType) -> bool:
    kind = _value_type(kind)
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return is_binary or (types.is_fixed_size_binary(kind) and not types.is_decimal(kind))


def _value_type(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if types.is_dictionary(kind) else kind


def _short(kind: pa.DataType) -> str:
    return f"{' '.join(str(kind).split()):.80}"


def image_bytes(column: pa.Array) -> Iterator[bytes | str]:
    """The encoded image of each row, or text that says why there is none. The column has no `image_problem`."""
    data = _member(column, "bytes") if isinstance(column, pa.StructArray) else column
    data = data.dictionary_decode() if isinstance(data, pa.DictionaryArray) else data
    for i in range(len(data)):
        yield data[i].as_py() or _why_no_bytes(column, i)


def _why_no_bytes(column: pa.Array, i: int) -> str:
    has_path = isinstance(column, pa.StructArray) and column.type.get_field_index("path") >= 0
    if has_path and _member(column.slice(i, 1), "path")[0].is_valid:
        return "has a path and no image bytes: the image itself is not in the file"
    return "has no image bytes"


def _member(column: pa.StructArray, name: str) -> pa.Array:
    """A field of a struct; null where the struct is null."""
    return column.flatten()[column.type.get_field_index(name)]


# ----------------------------------------------------------------------------------------------------------- labels

_LABEL_KINDS = (
    ("int", types.is_integer),
    ("float", types.is_floating),
    ("bool", types.is_boolean),
    ("text", types.is_string),
    ("text", types.is_large_string),
    ("text", types.is_string_view),
    (NOTHING, types.is_null),
)


def label_kind(kind: pa.DataType) -> str:
    """What a column's values are as labels: int, float, bool, text or nothing; "" where they are no labels.

    >>> label_kind(pa.int8()), label_kind(pa.dictionary(pa.int8(), pa.string())), label_kind(pa.binary())
    ('int', 'text', '')
    """
    return next((name for name, fits in _LABEL_KINDS if fits(_value_type(kind))), "")


def label_problem(kind: pa.DataType) -> str | None:
    """Why a column of this kind cannot hold labels; None where it can."""
    if label_kind(kind):
        return None
    what = "one class an image is needed, as a number or a name"
    if types.is_nested(kind):
        what = f"several values an image are no class ({what})"
    return f"holds {_short(kind)}: {what}"


def label_values(column: pa.Array) -> list:
    """Labels as int, str or bool; None where there is none, and floats and bytes where they are no label.

    Floats that are whole numbers are these; NaN, null and empty text are None.
    """
    column = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    kind = label_kind(column.type)
    if kind == "text":
        return [_text(data) for data in column.cast(pa.large_binary()).to_pylist()]
    return [_whole(value) for value in column.to_pylist()] if kind == "float" else column.to_pylist()


def _whole(value: float | None) -> float | int | None:
    if value is None or value != value:
        return None
    return int(value) if float(value).is_integer() and abs(value) <= 2**53 else float(value)


def _text(data: bytes | None) -> str | bytes | None:
    try:
        return data.decode() or None if data is not None else None
    except UnicodeDecodeError:
        return data


def is_missing(value: object) -> bool:
    """Whether a label says that there is none: null, or the -1 of withheld labels."""
    return value is None or (value == -1 and not isinstance(value, bool))


# ---------------------------------------------------------------------------------------------------------- classes


def class_names(feature: dict) -> tuple[tuple[str, ...] | None, str]:
    """(names of the classes in order, or None; what is wrong with them) of a feature."""
    if feature.get("_type") != "ClassLabel" or feature.get("names") is None:
        return None, ""
    names = feature["names"]
    if not isinstance(names, list) or not names or not all(isinstance(n, (str, int, float)) for n in names):
        return None, "has names of classes that are no list of texts: they are not used"
    return tuple(map(str, names)), ""


def agree(names: Sequence[str], wnids: Sequence[str]) -> bool:
    """Whether readable names are those of synsets, in their order: by their first words, at least half of them."""
    if len(names) != len(wnids) or set(names) == set(wnids):
        return tuple(names) == tuple(wnids)
    known = [labels.readable(wnid) for wnid in wnids]
    return 2 * sum(_head(a) == _head(b) for a, b in zip(names, known, strict=True)) >= len(names)


def _head(name: str) -> str:
    return name.partition(",")[0].replace("_", " ").strip().lower()


def distinct_names(names: Sequence[str]) -> tuple[list[str], str]:
    """(names of classes in label order, each once and none empty; what was changed for that, in one line).

    >>> distinct_names(["cat", "", "cat"])[0]
    ['cat', '1', 'cat-2']
    """
    distinct = keys.distinct(name or str(i) for i, name in enumerate(names))
    changed = [i for i, (old, new) in enumerate(zip(names, distinct, strict=True)) if old != new]
    if not changed:
        return distinct, ""
    i = changed[0]
    what = f"{len(changed):,} of the classes' names are empty or there already, such as that of class {i}"
    return distinct, f"{what}: it is called {distinct[i]!r:.60}"
