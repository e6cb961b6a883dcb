"""Strict YAML to frozen dataclasses: a key or a value that does not fit is an error with file, line and nearest name.

Recipes come from anywhere: a file is bounded in size and depth, and YAML's tags and aliases, which can name code and
grow without end, are not read.

A file becomes a tree, Section {key: Section | (node, where)}, in which every value keeps its place in the file, for the
messages; `build` makes the dataclass of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import stat
import types
import typing
import unicodedata
from pathlib import Path
from typing import Any, Literal

import yaml

from mlpdata.errors import Error, first_line
from mlpdata.shards.manifest import is_shard_directory
from mlpdata.system.files import resolved

MAX_BYTES = 1 << 20  # of a recipe; those of the repository are smaller than 2 kB
MAX_EXTENDS = 16  # recipes that extend one another
WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]{0,24})")  # 010 is 8 to YAML 1.1 and 10 to 1.2: neither is taken
NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode categories of NUL, line breaks, lone surrogates: never in a name
NULL = "tag:yaml.org,2002:null"


class Section(dict):
    """A mapping; `where` is its place, `file:line`."""

    def __init__(self, where: str, values: dict | None = None):
        super().__init__(values or {})
        self.where = where


class _ForbiddenYaml(yaml.MarkedYAMLError):
    """The text is YAML, but uses what a recipe must not."""


class _StrictLoader(yaml.SafeLoader):
    """YAML without tags and aliases."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _ForbiddenYaml(problem=f"aliases (*{event.anchor:.40}) are not read", problem_mark=event.start_mark)
        if getattr(event, "tag", None):
            raise _ForbiddenYaml(problem=f"tags ({event.tag:.60}) are not read", problem_mark=event.start_mark)
        return super().compose_node(parent, index)


def read(path: Path, seen: tuple[Path, ...] = ()) -> Section:
    """A file's tree on top of what it extends. seen: the files that extend it, to notice a circle. Raises Error."""
    text = _read_text(path)
    if (real := resolved(path)) in seen:
        raise Error(f"{path}: extends itself, by way of {' -> '.join(str(p) for p in seen)}")
    if len(seen) == MAX_EXTENDS:
        raise Error(f"{path}: more than {MAX_EXTENDS} recipes extend each other")
    tree = parse(text, str(path))
    value = tree.pop("extends", None)
    if value is None:
        return tree
    if isinstance(value, Section):
        raise Error(f"{value.where}: extends takes the path of a recipe, not a section")
    base = read(path.parent / _convert(value[0], str, value[1], "extends"), (*seen, real))
    base.pop("name", None)
    return _merge(base, tree)


def _read_text(path: Path) -> str:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a device or a pipe may never end
            own, hint = path / "recipe.yaml", ""
            if own.is_file():
                hint = f"; a run's recipe is {own}"
            elif is_shard_directory(path):
                hint = "; train on a shard directory with --set data.shards=DIR and a recipe"
            raise Error(f"cannot read recipe {path}: it is no plain file{hint}")
        with open(path, "rb") as f:
            data = f.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise Error(f"cannot read recipe {path}: it has more than {MAX_BYTES >> 20} MB, which no recipe has")
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Error(f"cannot read recipe {path}: it is not UTF-8 text") from None
    except (OSError, ValueError) as e:
        raise Error(f"cannot read recipe {path}: {getattr(e, 'strerror', None) or first_line(e)}") from None


def override(tree: Section, setting: str) -> None:
    """Change one value of a tree: `section.key=value`. Raises Error."""
    where = f"--set {setting:.80}"
    key, equals, value = setting.partition("=")
    if not equals:
        raise Error(f"{where}: expected section.key=value")
    node = _compose(value, where)
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, Section(where))
        if not isinstance(tree, Section):
            raise Error(f"{where}: {section} is no section")
    tree[last] = (node, where)


def parse(text: str, file: str) -> Section:
    """A YAML document as a tree. file: its name in messages. Raises Error."""
    return _section(_compose(text, file), file, file)


def _compose(text: str, where: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=_StrictLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = "write the value out" if isinstance(e, _ForbiddenYaml) else "not YAML"
        raise Error(f"{where}{line}: {what}: {getattr(e, 'problem', None) or first_line(e)}") from None
    except RecursionError:
        raise Error(f"{where}: not a recipe: it is nested too deeply") from None
    return node if node is not None else yaml.ScalarNode(NULL, "")


def _section(node: yaml.Node, file: str, where: str) -> Section:
    if not isinstance(node, yaml.MappingNode):
        raise Error(f"{file}: expected `key: value` lines")
    tree = Section(where)
    for key_node, value in node.value:
        where = f"{file}:{key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key, str) or key in tree:
            raise Error(f"{where}: key {key!r:.80} is given twice" if isinstance(key, str) else f"{where}: bad key")
        tree[key] = _section(value, file, where) if isinstance(value, yaml.MappingNode) else (value, where)
    return tree


def _merge(base: Section, top: Section) -> Section:
    out = Section(top.where, base)
    for key, value in top.items():
        both = isinstance(value, Section) and isinstance(out.get(key), Section)
        out[key] = _merge(out[key], value) if both else value
    return out


def build(tree: Section, kind: type, section: str = "") -> Any:
    """A frozen dataclass of a tree's values. section: its dotted name so far, for messages. Raises Error.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True)
    ... class Optim:
    ...     lr: float = 0.1
    >>> build(parse("lr: 1e-3", "recipe.yaml"), Optim)
    Optim(lr=0.001)
    >>> build(parse("lrr: 1e-3", "recipe.yaml"), Optim)
    Traceback (most recent call last):
    mlpdata.errors.Error: recipe.yaml:1: unknown key 'lrr'; did you mean 'lr'?
    """
    hints, prefix = typing.get_type_hints(kind), f"{section}." if section else ""
    values = {}
    for key, value in tree.items():
        full = f"{prefix}{key}"
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(hints)}"
            raise Error(f"{_where(value)}: unknown key {full!r:.80}; {hint}")
        is_section = dataclasses.is_dataclass(hints[key])
        if is_section and not isinstance(value, Section):
            raise Error(f"{_where(value)}: {full} is a section; its keys go on lines of their own below it")
        if not is_section and isinstance(value, Section):
            raise Error(f"{_where(value)}: {full} takes a value, not a section")
        values[key] = build(value, hints[key], full) if is_section else _convert(value[0], hints[key], value[1], full)
    for f in dataclasses.fields(kind):
        required = f.default is f.default_factory is dataclasses.MISSING
        if not required or f.name in values:
            continue
        if not dataclasses.is_dataclass(hints[f.name]):
            full = f"{prefix}{f.name}"
            raise Error(f"recipe: {full} is missing; give it in the file or with --set {full}=...")
        values[f.name] = build(Section(tree.where), hints[f.name], f.name)
    try:
        return kind(**values)
    except ValueError as e:  # a section that checks its own values
        raise Error(f"recipe: {section}: {e}") from None


def _where(value: Any) -> str:
    return value.where if isinstance(value, Section) else value[1]


def _convert(node: yaml.Node, kind: Any, where: str, full: str) -> Any:
    """A YAML node to the type a field has. 1e-3 is a number here, whatever YAML 1.1 makes of it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    null = isinstance(node, yaml.ScalarNode) and node.tag == NULL
    if origin in (types.UnionType, typing.Union):
        if null:
            return None
        (kind,) = [a for a in args if a is not type(None)]
        return _convert(node, kind, where, full)
    if origin is Literal:
        if getattr(node, "value", None) in args:
            return node.value
        raise Error(f"{where}: {full} must be one of {', '.join(args)}, not {_shown(node)}")
    if origin is tuple:
        if not isinstance(node, yaml.SequenceNode) or len(node.value) != len(args):
            raise Error(f"{where}: {full} must be a list of {len(args)} numbers, not {_shown(node)}")
        return tuple(_convert(n, a, where, full) for n, a in zip(node.value, args, strict=True))
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text on one line"}[kind]
    if isinstance(node, yaml.ScalarNode) and not null:
        if kind is bool and node.tag == "tag:yaml.org,2002:bool":
            return node.value.lower() in ("true", "yes", "on")
        if kind is int and node.style is None and WHOLE.fullmatch(node.value):
            return int(node.value.replace("_", ""))
        if kind is float and node.style is None and (number := _finite(node.value)) is not None:
            return number
        if kind is str and not any(unicodedata.category(c) in NOT_TEXT for c in node.value):
            return node.value
    raise Error(f"{where}: {full} must be {wanted}, not {_shown(node)}")


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or not node.value:
        return "that"
    return repr(node.value) if len(node.value) <= 60 else f"{node.value[:60]!r}..."
