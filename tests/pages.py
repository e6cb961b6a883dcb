"""The parts of the pages that are made from the code and from measurements. `python tests/pages.py` writes them.

A part stands between `<!-- NAME -->` and `<!-- end of NAME -->`; test_pages.py holds the pages to what is made here.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import json
import re
import statistics
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "bench" / "results.jsonl"
STRANGERS = ROOT / "tests" / "interop" / "strangers.json"

# ------------------------------------------------------------------------------------------------------ recipe keys


def recipe_keys() -> str:
    """A table a section of a recipe: key, type, default, meaning."""
    from trainer.recipe import Recipe

    sections = typing.get_type_hints(Recipe)
    plain = [f for f in dataclasses.fields(Recipe) if not dataclasses.is_dataclass(sections[f.name])]
    tables = [f"### At the top\n\n{_table(Recipe, plain)}"]
    for field in dataclasses.fields(Recipe):
        section = sections[field.name]
        if dataclasses.is_dataclass(section):
            text = (inspect.getdoc(section) or "").split("\n\n")[0].replace("\n", " ")
            tables.append(f"### `{field.name}`\n\n{text}\n\n{_table(section, dataclasses.fields(section))}")
    return "\n\n".join(tables) + "\n"


def _table(cls: type, fields) -> str:
    kinds, meanings = typing.get_type_hints(cls), field_meanings(cls)
    meanings = {name: text.replace("None", "null") for name, text in meanings.items()}
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for field in fields:
        default = "required" if field.default is dataclasses.MISSING else f"`{_yaml(field.default)}`"
        default = "the file's name" if (cls.__name__, field.name) == ("Recipe", "name") else default
        rows.append(f"| `{field.name}` | {_kind(kinds[field.name])} | {default} | {meanings[field.name]} |")
    return "\n".join(rows)


def _yaml(value: object) -> str:
    text = json.dumps(value) if not isinstance(value, str) else value
    return re.sub(r"\.0\b", "", text) if isinstance(value, float) and value == int(value) else text


def _kind(kind: object) -> str:
    """A type in words."""
    words = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}
    if kind in words:
        return words[kind]
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if typing.get_origin(kind) is tuple:
        return f"list of {len(arguments)} numbers"
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(_kind(a) for a in arguments)
    raise TypeError(kind)


def field_meanings(cls: type) -> dict[str, str]:
    """What is said of each field of a dataclass: behind it, above it, or in the docstring as `name: text`."""
    source = inspect.getsource(cls)
    (node,) = ast.parse(source).body
    comments = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = (token.string.lstrip("# "), not token.line.strip().startswith("#"))
    doc, meanings = inspect.getdoc(cls) or "", {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign):
            continue
        name, meaning = line.target.id, ""
        above = line.lineno - 1
        while above in comments and not comments[above][1]:
            meaning = f"{comments[above][0]} {meaning}".strip()
            above -= 1
        if line.end_lineno in comments:
            meaning = comments[line.end_lineno][0]
        entry = re.search(rf"^(?:\w+, )*{name}(?:, \w+)*: +(.*(?:\n .*)*)", doc, re.MULTILINE)
        if not meaning and entry:
            meaning = " ".join(entry[1].split())
        meanings[name] = meaning.replace("|", "\\|")
    return meanings


# -------------------------------------------------------------------------------------------------------- Python API


def python_api() -> str:
    """Signatures and docstrings of the public names."""
    import mlpdata
    import trainer
    from mlpdata import convert
    from mlpdata.augment.settings import Augmentation
    from mlpdata.loader.options import LoadOptions

    loader = mlpdata.Loader
    entries = [("mlpdata.load", loader, loader.__init__), ("LoadOptions", LoadOptions, None)]
    for name, member in vars(loader).items():
        if not name.startswith("_") and callable(member):
            entries.append((f"Loader.{name}", member, member))
        elif not name.startswith("_") and isinstance(member, property):
            entries.append((f"Loader.{name}", member, None))
    entries += [
        ("mlpdata.Batch", mlpdata.Batch, None),
        ("mlpdata.Augment", mlpdata.Augment, None),
        ("Augmentation", Augmentation, None),
        ("Augment.apply", mlpdata.Augment.apply, mlpdata.Augment.apply),
        ("mlpdata.Error", mlpdata.Error, None),
        ("mlpdata.convert.convert", convert.convert, convert.convert),
        ("mlpdata.convert.Options", convert.Options, None),
        ("trainer.build", trainer.build, trainer.build),
        ("trainer.load", trainer.load, trainer.load),
    ]
    return "\n\n".join(_entry(*entry) for entry in entries) + "\n"


def _entry(name: str, thing: typing.Any, function: typing.Any) -> str:
    text = [f"### `{name}`", "", "```text"]
    if function is not None:
        text.append(_signature(name, function))
        text.append("")
    elif dataclasses.is_dataclass(thing):
        text += [f"{f.name}: {f.type}{_default(f)}" for f in dataclasses.fields(thing)]
        text.append("")
    text.append(inspect.getdoc(thing) or "")
    return "\n".join([*text, "```"])


def _default(field: dataclasses.Field) -> str:
    return "" if field.default is dataclasses.MISSING else f" = {field.default!r}"


def _signature(name: str, function: typing.Any) -> str:
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    lines, starred = [], False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            lines.append("*")
        starred = starred or p.kind is p.KEYWORD_ONLY
        mark = "**" if p.kind is p.VAR_KEYWORD else ""
        kind = "" if p.annotation is p.empty else f": {p.annotation}"
        default = "" if p.default is p.empty else f" = {p.default!r}"
        lines.append(f"{mark}{p.name}{kind}{default}")
    result = "" if signature.return_annotation in (signature.empty, None, "None") else signature.return_annotation
    short = f"{name.rpartition('.')[2]}({', '.join(lines)})"
    if len(short) > 100:
        short = f"{name.rpartition('.')[2]}(\n    " + ",\n    ".join(lines) + ",\n)"
    return short + (f" -> {result}" if result else "")


# ------------------------------------------------------------------------------------------------------ measurements


def results() -> list[dict]:
    """Every measurement, oldest first: rows of results.jsonl."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()]


def latest() -> dict[str, dict]:
    """The newest measurement of each name."""
    return {row["name"]: row for row in results()}


def figure(row: dict) -> str:
    """The median of a row's values, with its unit; of large ones three digits."""
    value = statistics.median(row["values"])
    if value >= 1e6:
        return f"{value / 1e6:.3g} million {row['unit']}"
    if value >= 1e5:
        value = float(f"{value:.3g}")
    return f"{value:,.0f} {row['unit']}" if value >= 100 else f"{value:g} {row['unit']}"


def ratio(row: dict) -> str:
    """The median ratio to the peer, in words."""
    return f"{statistics.median(row['ratios']):.3g}x {row['peer']}" if row.get("ratios") else "-"


def bench_table() -> str:
    """The newest row of each measurement, for tests/bench/README.md. Those of a script stand together."""
    rows = ["| what | median | ratio | runs | machine | date | script |", "|---|---|---|---|---|---|---|"]
    measured = list(latest().values())
    places = [("NVIDIA" in row["machine"], row["script"]) for row in measured]
    for _, row in sorted(zip(map(places.index, places), measured, strict=True), key=lambda pair: pair[0]):
        cells = (row["what"], figure(row), ratio(row), len(row["values"]), row["machine"], row["date"], row["script"])
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


IN_README = (
    "convert-tinyimagenet", "convert-photographs", "load-resident", "load-jpeg", "augment-crop-flip", "stream",
    "open-beton", "open-tar", "open-tar-again",
)  # fmt: skip


ON_A_GPU = (
    "gpu-step-B_6-Wi_512", "gpu-step-B_12-Wi_1024", "gpu-graph-cifar10", "gpu-quick-start",
    "gpu-augment-crop+flip-kornia", "gpu-augment-crop+flip-torchvision_batch", "gpu-load-resident", "gpu-load-pinned",
    "gpu-load-stream", "gpu-load-stream JPEG",
)  # fmt: skip


def speed_table(names: Iterable[str] = IN_README) -> str:
    """The measurements that the main README shows; one that was held against several peers has one row."""
    ratios: dict[tuple[str, str], list[str]] = {}
    for name in names:
        row = latest()[name]
        ratios.setdefault((row["what"], figure(row)), []).append(ratio(row))
    rows = ["| what | median | against a peer in the same run |", "|---|---|---|"]
    rows += [f"| {what} | {median} | {'; '.join(found)} |" for (what, median), found in ratios.items()]
    return "\n".join(rows) + "\n"


def gpu_table() -> str:
    """Those of a GPU."""
    return speed_table(ON_A_GPU)


def headline() -> str:
    """Two numbers for the first screen."""
    row, step = latest()["convert-tinyimagenet"], latest()["gpu-step-B_6-Wi_512"]
    card = step["machine"].split(",")[0]
    text = (
        f"**{figure(row)}** from TinyImageNet's zip to both formats, on two CPU cores: {ratio(row)}, which writes one "
        f"format. On one {card}, the MLP B_6-Wi_512 trains from shards at {figure(step)}, "
        f"{statistics.median(step['ratios']):.3g} times its speed on one batch that is already on the card."
    )
    return textwrap.fill(text, 120) + "\n"


def strangers_table() -> str:
    """What other libraries read when their snippets were last run, for mlpdata/loader/README.md."""
    rows = ["| library | version | it reads | images | warnings |", "|---|---|---|---|---|"]
    for row in json.loads(STRANGERS.read_text()):
        read = f"{row['images']:,} in {row['directories']} directories"
        cells = (row["library"], row["version"], row["reads"], read, "; ".join(row["warnings"]) or "none")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


# ------------------------------------------------------------------------------------------------------------- pages

PARTS = {
    "recipes/README.md": {"keys": recipe_keys},
    "mlpdata/README.md": {"api": python_api},
    "mlpdata/loader/README.md": {"strangers": strangers_table},
    "tests/bench/README.md": {"results": bench_table},
    "README.md": {"headline": headline, "speed": speed_table, "gpu": gpu_table},
}


def part(text: str, name: str) -> str:
    """What stands in a page as a part."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]


def main() -> None:
    for page, parts in PARTS.items():
        path = ROOT / page
        text = path.read_text()
        for name, make in parts.items():
            before, after = text.split(f"<!-- {name} -->\n")[0], text.split(f"<!-- end of {name} -->")[1]
            text = f"{before}<!-- {name} -->\n{make()}<!-- end of {name} -->{after}"
        path.write_text(text)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # else tests/trainer is `trainer`: a script's own folder comes first
    main()
