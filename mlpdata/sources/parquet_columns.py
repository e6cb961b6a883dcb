"""Columns of parquet files: which ones hold the images and the labels, and what their values are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from mlpdata import labels
from mlpdata.errors import Error
from mlpdata.sources import keys

IMAGE_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_NAMES = ("label", "labels", "fine_label", "cls", "class", "target", "category")
MAX_LISTED = 20  # columns that a message names
NUMBERS = frozenset(("int", "float"))
NOTHING = "nothing"  # a column of nulls, of whatever kind the others are


@dataclass(frozen=True)
class FileSchema:
    """The columns of one file. features: by column, as `features` has them."""

    path: str
    schema: pa.Schema
    features: dict[str, dict]


def features(schema: pa.Schema) -> dict[str, dict]:
    """Feature by column, from what `datasets` writes into a file's metadata; {} where there is nothing of the kind.

    Those that matter here: {"_type": "Image"} and {"_type": "ClassLabel", "names": [...]}.
    """
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


# --------------------------------------------------------------------------------------------------------- choosing


def choose(tables: Sequence[FileSchema], image: str | None, label: str | None) -> tuple[str, str, list[str]]:
    """(image column, label column, what to say of the choice): as asked for, else by feature, else by name.

    tables: of one file of each split, the most telling first: where a column is in the first of them it is taken from
    there. image, label: the columns asked for. Raises Error where it is not clear which column it is.
    """
    said: list[str] = []
    found = _choose_image(tables, image, said)
    return found, _choose_label(tables, label, found, said), said


def _choose_image(tables: Sequence[FileSchema], asked: str | None, said: list[str]) -> str:
    if asked is not None:
        return _asked(tables, asked)
    for table in tables:
        fit = [name for name in _unique(table) if image_problem(_type(table, name)) is None]
        by_feature = [n for n in _unique(table) if table.features.get(n, {}).get("_type") == "Image"]
        found = _first(by_feature) or _first(_by_name(fit, IMAGE_NAMES)) or (fit[0] if len(fit) == 1 else None)
        found = found or _first(_by_name(_unique(table), IMAGE_NAMES))  # to be told what is wrong with it
        if found is None:
            continue
        others = [n for n in (by_feature if found in by_feature else fit) if n != found]
        if others:
            said.append(f"images are column {found!r}; {_listed(others)} may hold others (--image-column)")
        elif found not in by_feature and found.lower() not in IMAGE_NAMES:
            said.append(f"images are column {found!r}, the only one that can hold them")
        return found
    raise Error(f"{tables[0].path}: which column holds the images, --image-column has to say; {_has(tables[0])}")


def _choose_label(tables: Sequence[FileSchema], asked: str | None, image: str, said: list[str]) -> str:
    if asked is not None:
        return _asked(tables, asked)
    for table in tables:
        names = [name for name in _unique(table) if name != image]
        by_feature = [n for n in names if table.features.get(n, {}).get("_type") == "ClassLabel"]
        by_name = _by_name(names, LABEL_NAMES)
        if found := _first([*by_feature, *by_name]):
            others = [n for n in dict.fromkeys((*by_feature, *by_name)) if n != found]
            if others:
                said.append(f"labels are column {found!r}; {_listed(others)} may hold others (--label-column)")
            return found
    raise Error(f"{tables[0].path}: which column holds the labels, --label-column has to say; {_has(tables[0])}")


def _asked(tables: Sequence[FileSchema], name: str) -> str:
    if not any(name in table.schema.names for table in tables):
        raise Error(f"{tables[0].path} has no column {name!r}; {_has(tables[0])}")
    return name


def field(schema: pa.Schema, name: str, path: str) -> pa.DataType | None:
    """What a column holds; None where there is no such column. Raises Error where there are two."""
    places = schema.get_all_field_indices(name)
    if len(places) > 1:
        raise Error(f"{path} has {len(places)} columns called {name!r}")
    return schema.field(places[0]).type if places else None


def _unique(table: FileSchema) -> list[str]:
    """Names of columns that name one column each."""
    times = Counter(table.schema.names)
    return [name for name in table.schema.names if times[name] == 1]


def _by_name(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    lower = {}
    for name in names:
        lower.setdefault(name.lower(), name)
    return [lower[name] for name in wanted if name in lower]


def _first(names: Sequence[str]) -> str | None:
    return names[0] if names else None


def _type(table: FileSchema, name: str) -> pa.DataType:
    return table.schema.field(name).type


def _has(table: FileSchema) -> str:
    return f"it has {_listed(table.schema.names)}" if table.schema.names else "it has none"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"{name!r:.60}" for name in names[:MAX_LISTED])
    return shown + (f" and {len(names) - MAX_LISTED:,} more" if len(names) > MAX_LISTED else "")


# ----------------------------------------------------------------------------------------------------------- images


def image_problem(kind: pa.DataType) -> str | None:
    """Why a column of this kind cannot hold encoded images; None where it can."""
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        if at < 0:
            return "is a struct without `bytes`: the images themselves are not in it"
        return None if _holds_bytes(kind.field(at).type) else f"has `bytes` of {_short(kind.field(at).type)}"
    return None if _holds_bytes(kind) else f"holds {_short(kind)}, not images"


def _holds_bytes(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    return any(f(kind) for f in (types.is_binary, types.is_large_binary, types.is_binary_view)) or (
        types.is_fixed_size_binary(kind) and not types.is_decimal(kind)
    )


def _short(kind: pa.DataType) -> str:
    return f"{' '.join(str(kind).split()):.80}"


def images(column: pa.Array) -> Iterator[bytes | str]:
    """The encoded images of a column that `image_problem` has nothing against; a text says why there is none."""
    inner = pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
    inner = inner.dictionary_decode() if pa.types.is_dictionary(inner.type) else inner
    for i in range(len(inner)):
        yield inner[i].as_py() or _why_no_bytes(column, i)


def _why_no_bytes(column: pa.Array, i: int) -> str:
    if pa.types.is_struct(column.type) and (at := column.type.get_field_index("path")) >= 0:
        paths = pc.struct_field(column.slice(i, 1), [at])
        if paths[0].is_valid:
            return "has a path and no image bytes: the image itself is not in the file"
    return "has no image bytes"


# ----------------------------------------------------------------------------------------------------------- labels


def label_kind(kind: pa.DataType) -> str:
    """What a column's values are as labels: int, float, bool, text or nothing; "" where they are no labels."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    for name, fits in (
        ("int", (types.is_integer,)),
        ("float", (types.is_floating,)),
        ("bool", (types.is_boolean,)),
        ("text", (types.is_string, types.is_large_string, types.is_string_view)),
        (NOTHING, (types.is_null,)),
    ):
        if any(f(kind) for f in fits):
            return name
    return ""


def label_problem(kind: pa.DataType) -> str | None:
    """Why a column of this kind cannot hold labels; None where it can."""
    if label_kind(kind):
        return None
    what = "one class an image is needed, as a number or a name"
    if pa.types.is_nested(kind):
        what = f"several values an image are no class ({what})"
    return f"holds {_short(kind)}: {what}"


def values(column: pa.Array) -> list:
    """Labels as int, str or bool; None where there is none, and floats and bytes where they are no label.

    Floats that are whole numbers are these; NaN, null and empty text are None.
    """
    column = column.dictionary_decode() if pa.types.is_dictionary(column.type) else column
    kind = label_kind(column.type)
    if kind == "text":
        return [_text(data) for data in column.cast(pa.large_binary()).to_pylist()]
    found = column.to_pylist()
    return [_whole(value) for value in found] if kind == "float" else found


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
    """(names of classes in label order, each once and none empty; what was changed for that, in one line)."""
    found = keys.distinct(name or str(i) for i, name in enumerate(names))
    changed = [i for i, (old, new) in enumerate(zip(names, found, strict=True)) if old != new]
    if not changed:
        return found, ""
    i = changed[0]
    return found, (
        f"{len(changed):,} classes have no name or one that is there already, such as class {i}: it is called "
        f"{found[i]!r:.60}"
    )
