"""Strict YAML to frozen dataclasses: a key or a value that does not fit is an error with file, line and nearest name.

A tree is a Section {key: Section | (node, where)}: everything keeps its place in the file until the last moment, for
the messages.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from mlpdata.errors import Error


class Section(dict):
    """A mapping and where it stands: `file:line`."""

    def __init__(self, where: str, values: dict | None = None):
        super().__init__(values or {})
        self.where = where


def read(path: Path, seen: tuple[Path, ...] = ()) -> Section:
    """A file's tree on top of what it extends. seen: the files that lead here, to notice a circle. Raises Error."""
    if path.resolve() in seen:
        raise Error(f"{path}: extends itself, by way of {' -> '.join(str(p) for p in seen)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Error(f"cannot read recipe {path}: {getattr(e, 'strerror', None) or e}") from None
    tree = tree_of(compose(text, str(path)), str(path))
    if "extends" in tree:
        node, where = tree.pop("extends")
        base = read(path.parent / _convert(node, str, where, "extends"), (*seen, path.resolve()))
        base.pop("name", None)
        tree = _merge(base, tree)
    return tree


def override(tree: Section, setting: str) -> None:
    """Change one value of a tree: `section.key=value`. Raises Error."""
    where = f"--set {setting}"
    key, equals, value = setting.partition("=")
    if not equals:
        raise Error(f"{where}: expected section.key=value")
    node = compose(value, where)
    *sections, last = key.strip().split(".")
    for section in sections:
        tree = tree.setdefault(section, Section(where))
        if not isinstance(tree, Section):
            raise Error(f"{where}: {section} is no section")
    tree[last] = (node, where)


def compose(text: str, where: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise Error(f"{where}{line}: not YAML: {getattr(e, 'problem', None) or e}") from None
    return node if node is not None else yaml.ScalarNode("tag:yaml.org,2002:null", "")


def tree_of(node: yaml.Node, file: str, where: str = "") -> Section:
    """A composed document as a tree. file: its name in messages."""
    if not isinstance(node, yaml.MappingNode):
        raise Error(f"{file}: expected `key: value` lines")
    tree = Section(where or file)
    for key_node, value in node.value:
        where = f"{file}:{key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key, str) or key in tree:
            raise Error(f"{where}: key {key!r} is given twice" if isinstance(key, str) else f"{where}: bad key")
        tree[key] = tree_of(value, file, where) if isinstance(value, yaml.MappingNode) else (value, where)
    return tree


def _merge(base: Section, top: Section) -> Section:
    out = Section(top.where, base)
    for key, value in top.items():
        both = isinstance(value, Section) and isinstance(out.get(key), Section)
        out[key] = _merge(out[key], value) if both else value
    return out


def build(tree: Section, kind: type, section: str = "") -> Any:
    """A tree as an instance of a frozen dataclass. section: its dotted name so far, for messages. Raises Error."""
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        full = f"{section}.{key}" if section else key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(hints)}"
            raise Error(f"{_where(value)}: unknown key {full!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, Section):
                raise Error(f"{_where(value)}: {full} is a section; its keys go on lines of their own below it")
            values[key] = build(value, hints[key], full)
        elif isinstance(value, Section):
            raise Error(f"{_where(value)}: {full} takes a value, not a section")
        else:
            values[key] = _convert(*value[:1], hints[key], value[1], full)
    for f in dataclasses.fields(kind):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            if dataclasses.is_dataclass(hints[f.name]):
                values[f.name] = build(Section(tree.where), hints[f.name], f.name)
            else:
                full = f"{section}.{f.name}" if section else f.name
                raise Error(f"recipe: {full} is missing; give it in the file or with --set {full}=...")
    return kind(**values)


def _where(value: Any) -> str:
    return value.where if isinstance(value, Section) else value[1]


def _convert(node: yaml.Node, kind: Any, where: str, full: str) -> Any:
    """A YAML node to the type a field has. 1e-3 is a number here, whatever YAML 1.1 makes of it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    null = isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
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
    wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    if isinstance(node, yaml.ScalarNode) and not null:
        try:
            if kind is bool and node.tag == "tag:yaml.org,2002:bool":
                return node.value.lower() in ("true", "yes", "on")
            if kind is int and node.style is None:
                return int(node.value.replace("_", ""))
            if kind is float and node.style is None:
                return float(node.value)
            if kind is str:
                return node.value
        except ValueError:
            pass
    raise Error(f"{where}: {full} must be {wanted}, not {_shown(node)}")


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) and node.value else "that"
