"""Recipes: strict YAML to frozen dataclasses. A key that is not here is an error with file, line and nearest name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from mlpdata.manifest import Error


@dataclass(frozen=True, kw_only=True)
class Data:
    """Which shards, and how they are read."""

    shards: str  # shard directory
    format: Literal["auto", "beton", "tar"] = "auto"
    tier: Literal["auto", "resident", "stream"] = "auto"
    train_split: str = "train"
    eval_split: str = "val"


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images; evaluation only resizes and normalises. Mean and std are the data set's own."""

    res: int | None = None  # pixels a side that the model sees; null: as stored
    crop_scale: tuple[float, float] | None = (0.08, 1.0)  # share of the area; null: no random crop
    crop_ratio: tuple[float, float] = (0.75, 1.3333333333333333)  # width over height
    flip: bool = True
    mixup: float = 0.0  # alpha of Beta(alpha, alpha); 0: none


@dataclass(frozen=True, kw_only=True)
class Model:
    """A name such as B_12-Wi_1024, or the fields below."""

    name: str | None = None
    kind: Literal["b_mlp", "s_mlp"] = "b_mlp"
    depth: int = 6  # blocks of a B-MLP; linear layers before the head of an S-MLP
    width: int = 512
    expansion: int = 4  # of a B-MLP's blocks
    norm: Literal["layer", "batch", "none"] = "layer"
    activation: Literal["gelu", "relu"] = "gelu"
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimizer. Weight decay spares biases and norms."""

    name: Literal["lion", "adamw", "sgd"] = "lion"
    lr: float = 5e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] | None = None  # null: (0.9, 0.99) for Lion, (0.9, 0.999) for AdamW
    momentum: float = 0.9  # of SGD


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the steps."""

    name: Literal["constant", "cosine"] = "constant"
    warmup_epochs: float = 0.0  # linear from 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """The loop."""

    epochs: int = 100
    batch_size: int = 1024
    label_smoothing: float = 0.0
    clip_norm: float | None = None  # null: no clipping
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False  # torch.compile of the model
    device: Literal["auto", "cpu", "cuda"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Eval:
    """When and how to evaluate."""

    every: int = 1  # epochs
    batch_size: int = 2048


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One experiment."""

    name: str  # of the run directory; the file's name if it says nothing
    seed: int = 0
    data: Data
    augment: Augmentation = field(default_factory=Augmentation)
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    train: Train = field(default_factory=Train)
    eval: Eval = field(default_factory=Eval)

    def __post_init__(self):
        for where, value, low in (
            ("train.epochs", self.train.epochs, 1),
            ("train.batch_size", self.train.batch_size, 1),
            ("eval.every", self.eval.every, 1),
            ("eval.batch_size", self.eval.batch_size, 1),
            ("model.depth", self.model.depth, 1),
            ("model.width", self.model.width, 1),
            ("model.expansion", self.model.expansion, 1),
        ):
            if value < low:
                raise Error(f"recipe: {where} must be at least {low}, not {value}")
        for where, value in (
            ("model.dropout", self.model.dropout),
            ("train.label_smoothing", self.train.label_smoothing),
        ):
            if not 0 <= value < 1:
                raise Error(f"recipe: {where} must be from 0 to below 1, not {value}")
        for where, value in (("optim.lr", self.optim.lr),):
            if not value > 0:
                raise Error(f"recipe: {where} must be positive, not {value}")
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise Error(f"recipe: name {self.name!r} does not make a directory name")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries, for checkpoints and the run directory."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of to_dict, as strict as a file. Raises Error."""
        text = yaml.safe_dump(_plain(values), sort_keys=False)
        return _build(_tree(_compose(text, "checkpoint"), "checkpoint"))


def load_recipe(path: str | Path, overrides: list[str] = ()) -> Recipe:
    """Read a recipe file, what it extends, and `section.key=value` overrides on top. Raises Error."""
    tree = _read(Path(path), [])
    for override in overrides:
        where = f"--set {override}"
        key, equals, value = override.partition("=")
        if not equals:
            raise Error(f"{where}: expected section.key=value")
        node = _compose(value, where)
        branch = tree
        *sections, last = key.strip().split(".")
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise Error(f"{where}: {section} is no section")
        branch[last] = (node, where)
    if "name" not in tree:
        tree["name"] = (yaml.ScalarNode("tag:yaml.org,2002:str", Path(path).stem), str(path))
    return _build(tree)


# ----------------------------------------------------------------------------------------------------------- YAML
# A tree is {key: tree | (node, where)}: nodes keep their place in the file until the last moment, for the messages.


def _read(path: Path, seen: list[Path]) -> dict:
    if path.resolve() in seen:
        raise Error(f"{path}: extends itself, by way of {' -> '.join(str(p) for p in seen)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Error(f"cannot read recipe {path}: {getattr(e, 'strerror', None) or e}") from None
    tree = _tree(_compose(text, str(path)), str(path))
    if "extends" in tree:
        node, where = tree.pop("extends")
        base = _read(path.parent / _convert(node, str, where, "extends"), [*seen, path.resolve()])
        base.pop("name", None)
        tree = _merge(base, tree)
    return tree


def _compose(text: str, where: str) -> yaml.Node:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise Error(f"{where}{line}: not YAML: {getattr(e, 'problem', None) or e}") from None
    return node if node is not None else yaml.ScalarNode("tag:yaml.org,2002:null", "")


def _tree(node: yaml.Node, file: str) -> dict:
    if not isinstance(node, yaml.MappingNode):
        raise Error(f"{file}: expected `key: value` lines")
    tree = {}
    for key_node, value in node.value:
        where = f"{file}:{key_node.start_mark.line + 1}"
        key = key_node.value
        if not isinstance(key, str) or key in tree:
            raise Error(f"{where}: key {key!r} is given twice" if isinstance(key, str) else f"{where}: bad key")
        tree[key] = _tree(value, file) if isinstance(value, yaml.MappingNode) else (value, where)
    return tree


def _merge(base: dict, top: dict) -> dict:
    out = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = _merge(out[key], value) if both else value
    return out


def _build(tree: dict, kind: type = Recipe, section: str = "") -> Any:
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in tree.items():
        full = f"{section}.{key}" if section else key
        if key not in hints:
            near = difflib.get_close_matches(key, hints, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(hints)}"
            raise Error(f"{_where(value)}: unknown key {full!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise Error(f"{_where(value)}: {full} is a section; its keys go on lines of their own below it")
            values[key] = _build(value, hints[key], full)
        elif isinstance(value, dict):
            raise Error(f"{_where(value)}: {full} takes a value, not a section")
        else:
            values[key] = _convert(*value[:1], hints[key], value[1], full)
    for f in dataclasses.fields(kind):
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            if dataclasses.is_dataclass(hints[f.name]):
                values[f.name] = _build({}, hints[f.name], f.name)
            else:
                full = f"{section}.{f.name}" if section else f.name
                raise Error(f"recipe: {full} is missing; give it in the file or with --set {full}=...")
    return kind(**values)


def _where(value: Any) -> str:
    while isinstance(value, dict):
        value = next(iter(value.values()), (None, "recipe"))
    return value[1]


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
