"""Checkpoints: weights as safetensors with the recipe inside, and states, which a resume needs.

Both may come from anywhere or be damaged: nothing is built, and no memory taken, before it is known that sizes fit the
tensors that are there; a state ends with its SHA-256.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mlpdata.errors import Error, first_line
from mlpdata.shards.manifest import MAX_RES, Manifest
from trainer import runs
from trainer.model import HEAD, build, check_size, config_of, outline
from trainer.recipe import AT_MOST, Model, Recipe

LAST, BEST = "last.safetensors", "best.safetensors"
MAX_CLASSES = 1 << 24
MAX_FACTS_BYTES = 1 << 20  # that a checkpoint says of itself; ours say 3 kB
STATE_VERSION = 2  # of what a state holds
SUM_BYTES = 64  # of the SHA-256 in hexadecimal that a state ends with, as the comment of its zip file


# --------------------------------------------------------------------------------------------------------- weights


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model and what is known of it. config: its fields, without a name. facts: what save_weights was told."""

    model: nn.Module
    config: Model
    res: int
    num_classes: int
    facts: dict[str, Any]  # with the recipe under `recipe`; empty for a checkpoint of the authors


def save_weights(path: Path, tensors: dict[str, torch.Tensor], recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write a model's state dict. facts: at least res and num_classes, which with the recipe rebuild it; JSON-able."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    runs.write(path, save(tensors, {"mlpdata": json.dumps({"recipe": recipe.to_dict(), **facts})}))


def read_facts(path: str | Path) -> dict[str, Any]:
    """What save_weights was told, with the recipe under `recipe`. Raises Error for a file that is not ours."""
    try:
        with safe_open(path, "pt") as f:
            text = (f.metadata() or {})["mlpdata"]
        if len(text) > MAX_FACTS_BYTES:
            raise ValueError(f"it says {len(text):,} characters of itself")
        facts = json.loads(text)
    except FileNotFoundError:
        raise Error(f"no checkpoint at {path}") from None
    except KeyError:
        raise Error(f"{path} is no checkpoint of this trainer: it has no recipe inside") from None
    except (SafetensorError, ValueError, OSError, RecursionError) as e:
        raise Error(f"{path} is no checkpoint of this trainer ({first_line(e)})") from None
    if not isinstance(facts, dict):
        raise Error(f"{path} is no checkpoint of this trainer: what it says of itself is no set of facts")
    return facts


def load(path: str | Path) -> nn.Module:
    """The model of a checkpoint, in eval mode; see open_checkpoint."""
    return open_checkpoint(path).model


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint of ours (safetensors) or of the paper's authors (a plain state dict), its model in eval mode.

    path: a file, or a run directory, whose best checkpoint is taken.

    Of the latter, kind, depth, width, expansion, resolution and classes are read off the shapes. Raises Error.
    """
    path, facts = Path(path), {}
    if path.is_dir():
        path = path / BEST
    try:
        with open(path, "rb") as f:
            start = f.read(9)
    except FileNotFoundError:
        raise Error(f"no checkpoint at {path}") from None
    except (OSError, ValueError) as e:
        raise Error(f"cannot read checkpoint {path}: {getattr(e, 'strerror', None) or first_line(e)}") from None
    if not path.is_file():
        raise Error(f"no checkpoint at {path}: it is no plain file")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        facts = read_facts(path)
        config, res, num_classes = _told(facts, path)
        with safe_open(path, "pt") as f:
            shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118 - it is no dict
            model = _outline(config, res, num_classes, shapes, path)
            tensors = {k: f.get_tensor(k) for k in shapes}
    else:
        tensors = _plain_state_dict(path)
        config, res, num_classes = _read_off(tensors, path)
        model = _outline(config, res, num_classes, {k: tuple(t.shape) for k, t in tensors.items()}, path)
    _fill(model, tensors, path)
    return Checkpoint(model=model.eval(), config=config, res=res, num_classes=num_classes, facts=facts)


def _told(facts: dict[str, Any], path: Path) -> tuple[Model, int, int]:
    """(config, res, classes) as a checkpoint of ours says them."""
    for name, most in (("res", MAX_RES), ("num_classes", MAX_CLASSES)):
        if type(facts.get(name)) is not int or not 1 <= facts[name] <= most:
            raise Error(f"{path} says {name} {facts.get(name)!r:.40}, which must be a whole number from 1 to {most:,}")
    for name in ("mean", "std"):  # what evaluation normalises with
        if name in facts and not (
            isinstance(facts[name], list)
            and len(facts[name]) == 3
            and all(type(x) in (int, float) and abs(x) < 1e6 for x in facts[name])
        ):
            raise Error(f"{path} says {name} {facts[name]!r:.40}, which must be three numbers")
    return config_of(recipe_of(facts, path).model), facts["res"], facts["num_classes"]


def recipe_of(facts: dict[str, Any], path: Path) -> Recipe:
    """The recipe that a checkpoint of ours was trained by. Raises Error."""
    try:
        return Recipe.from_dict(facts["recipe"])
    except Error as e:
        raise Error(f"{path} has no recipe inside that can be read ({e})") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise Error(f"{path} lacks what a checkpoint of this trainer says of itself ({first_line(e)})") from None


def _outline(config: Model, res: int, num_classes: int, shapes: dict[str, tuple], path: Path) -> nn.Module:
    """The model without memory, of just these tensors. Raises Error where they are not the model's."""
    if config.depth > len(shapes):
        raise Error(f"{path} does not fit the model it names: depth {config.depth}, but {len(shapes)} tensors")
    model = outline(config, res, num_classes)
    wanted = {k: tuple(t.shape) for k, t in model.state_dict().items()}
    for key in sorted(wanted.keys() | shapes.keys()):
        if wanted.get(key) != shapes.get(key):
            there = {k: "nothing" if s.get(key) is None else f"{list(s[key])}" for k, s in
                     (("wanted", wanted), ("there", shapes))}  # fmt: skip
            raise Error(
                f"{path} does not fit the model it names: of {key!r:.80} the model has {there['wanted']}, "
                f"the file {there['there']}"
            )
    return model


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Give an outlined model its weights. Raises Error for what are no finite numbers."""
    wanted = model.state_dict()
    for key, tensor in tensors.items():
        if wanted[key].is_floating_point() and not tensor.is_floating_point():
            raise Error(f"{path}: {key} holds {tensor.dtype}, which are no weights")
        tensors[key] = tensor = tensor.to(wanted[key].dtype).contiguous()
        if not torch.isfinite(tensor).all():
            raise Error(f"{path}: {key} holds weights that are no finite numbers")
    model.load_state_dict(tensors, assign=True)


def make_model(recipe: Recipe, res: int, manifest: Manifest, state: dict[str, Any] | None) -> tuple[Model, nn.Module]:
    """(config, model) that a run starts with: a state's, or recipe.init's with a new head for other classes, or new."""
    seed, classes, ours = recipe.seed, manifest.num_classes, config_of(recipe.model)
    if state:
        ours = Model(**state["config"])
        model = build(ours, res, classes, seed=seed)
        model.load_state_dict(state["model"])
        return ours, model
    if not recipe.init:
        check_size(ours, res, classes)
        return ours, build(ours, res, classes, seed=seed)
    found = open_checkpoint(recipe.init)
    config = replace(found.config, dropout=recipe.model.dropout)
    if recipe.model not in (Model(), Model(dropout=recipe.model.dropout)) and ours != config:
        raise Error(f"recipe: model differs from that of {recipe.init}; leave the section out, init brings its own")
    if found.res != res:
        raise Error(f"{recipe.init} takes {found.res} px, this recipe gives {res}; set augment.res to {found.res}")
    tensors = found.model.state_dict()
    same = found.facts.get("classes_sha256") in (None, manifest.classes_sha256) and found.num_classes == classes
    if not same:
        tensors = {k: v for k, v in tensors.items() if not k.startswith(HEAD)}
    check_size(config, res, classes)
    model = build(config, res, classes, seed=seed)
    model.load_state_dict(tensors, strict=False)
    return config, model


def _plain_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save, by the names of our models. Nothing in it is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise Error(f"{path} is packed, as torch packs no checkpoint: a small file may hide a large one")
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Error:
        raise
    except pickle.UnpicklingError:  # torch's own text advises to load it unsafely
        raise Error(
            f"{path} cannot be loaded safely: it is damaged, or holds more than tensors and would run code"
        ) from None
    except Exception as e:  # torch raises nearly anything on files that are not its own
        raise Error(f"{path} is no state dict that can be loaded safely ({first_line(e):.200})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    named = {}
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        key = str(key).removeprefix("module.").removeprefix("_orig_mod.")  # left by DDP and torch.compile
        named[key.replace("layer_norms.", "layernorms.")] = value
    for key in ("linear_in.weight", "linear_out.weight"):
        if not isinstance(named.get(key), torch.Tensor) or named[key].ndim != 2:
            raise Error(f"{path} holds no MLP of the paper: there is no linear_in.weight or linear_out.weight")
    for key, value in named.items():
        if not _is_plain(value):
            raise Error(f"{path} holds no MLP of the paper: {key!r:.80} is no plain tensor")
    return named


def _is_plain(tensor: Any) -> bool:
    """Whether it is a tensor whose numbers are all there: a view may claim more than its storage holds."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _read_off(tensors: dict[str, torch.Tensor], path: Path) -> tuple[Model, int, int]:
    """(config, res, classes) from the shapes of a state dict."""
    width, inputs = tensors["linear_in.weight"].shape
    num_classes = tensors["linear_out.weight"].shape[0]
    res = round((inputs / 3) ** 0.5)
    if not 1 <= res <= MAX_RES or 3 * res * res != inputs:
        raise Error(f"{path} takes {inputs} inputs, which is no square RGB image of 1 to {MAX_RES} pixels a side")
    norm = "layer" if "layernorms.0.weight" in tensors else "none"
    norm = "batch" if "layernorms.0.running_mean" in tensors else norm
    numbered = {match.group(1, 2) for key in tensors if (match := re.match(r"(blocks|layers)\.(\d+)\.", key))}
    expand = tensors.get("blocks.0.block.0.weight")
    config = {"depth": len(numbered), "width": width, "expansion": 4}
    if is_b := any(kind == "blocks" for kind, _ in numbered):
        config["expansion"] = expand.shape[0] // max(1, width) if expand is not None and expand.ndim else 0
    else:
        config["depth"] += 1
    for name, value in config.items():
        if not 1 <= value <= AT_MOST[f"model.{name}"]:
            raise Error(f"{path} holds no MLP of the paper: its {name} is {value}")
    if not 1 <= num_classes <= MAX_CLASSES:
        raise Error(f"{path} holds no MLP of the paper: it has {num_classes} classes")
    return Model(kind="b_mlp" if is_b else "s_mlp", **config, norm=norm), res, num_classes


# --------------------------------------------------------------------------------------------------------------- states


def state_path(folder: Path, step: int) -> Path:
    return folder / f"state-{step:09d}.pt"


def step_of(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    found = [path for path in folder.glob("state-*.pt") if re.fullmatch(r"state-\d{9,12}\.pt", path.name)]
    return sorted(found, key=step_of)


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write tensors, numbers and plain containers as the state of a step, then remove all but the last few."""
    buffer = io.BytesIO()
    torch.save({"version": STATE_VERSION, **state}, buffer)
    with buffer.getbuffer() as data:
        data[-2:] = SUM_BYTES.to_bytes(2, "little")  # the length of a zip file's comment: torch reads it as before
        digest = hashlib.sha256(data).hexdigest().encode()
    buffer.seek(0, io.SEEK_END)
    buffer.write(digest)
    runs.write(state_path(folder, step), buffer.getbuffer())
    _remove(states(folder)[:-keep])


def drop_later(folder: Path, step: int) -> None:
    """Remove the states of steps after `step`: they are damaged, and their steps will come again."""
    _remove(path for path in states(folder) if step_of(path) > step)


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with runs.writing(path):
            path.unlink(missing_ok=True)


def load_state(folder: Path, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The newest state of a run that is whole; `say` is told of others. Raises Error where there is none."""
    damaged = ""
    for path in reversed(states(folder)):
        try:
            return _read_state(path)
        except Error as e:
            damaged = str(e)
            say(f"{damaged}; taking the state before")
    raise Error(f"nothing to resume: {damaged or f'{folder} has no checkpoint yet'}")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as f:
            left, digest = path.stat().st_size - SUM_BYTES, hashlib.sha256()
            while block := f.read(max(0, min(1 << 20, left))):
                digest.update(block)
                left -= len(block)
            told = f.read()
    except OSError as e:
        raise Error(f"{path} cannot be read ({e.strerror})") from None
    if not re.fullmatch(rb"[0-9a-f]{64}", told):
        raise Error(f"{path} cannot be read (it does not end with its checksum: cut short, or of another version)")
    if digest.hexdigest().encode() != told:
        raise Error(f"{path} cannot be read (it is damaged: its checksum is another)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises nearly anything
        raise Error(f"{path} cannot be read ({first_line(e):.200})") from None
    if not isinstance(state, dict) or state.pop("version", None) != STATE_VERSION:
        raise Error(f"{path} cannot be read (it is of another version of the trainer)")
    return state


def check_same(folder: Path, recipe: Recipe, theirs: dict[str, Any]) -> None:
    """Refuse to go on with another recipe. Raises Error."""
    ours = recipe.to_dict()
    changed = []
    for section, value in ours.items():
        there = theirs.get(section)
        if not isinstance(value, dict):
            changed += [section] if value != there else []
        else:
            changed += [f"{section}.{key}" for key in value if value[key] != (there or {}).get(key)]
    # More epochs is how a finished run is prolonged, and a run may move; anything else would be another experiment.
    # Whether the shards hold the same data is checked by their sums.
    free = ("train.epochs", "data.shards", "data.tier", "train.device", "train.record_steps")
    changed = [c for c in changed if c not in free and not c.startswith(("save.", "log."))]
    if changed:
        raise Error(
            f"{folder} was started with another {', '.join(changed)}; resume with its own recipe, or leave --resume"
        )


def check_same_data(folder: Path, shards: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse to go on with other shards. ours, theirs: what trainer.data.facts_of says of them. Raises Error."""
    changed = [
        f"another {what}" if what.startswith(("list", "set")) else f"{what} {theirs.get(what)}, now {ours[what]}"
        for what in ours
        if ours[what] != theirs.get(what)
    ]
    if changed:
        raise Error(
            f"{folder} was trained on other data than {shards} holds: {'; '.join(changed)}; "
            "give it its own shards back, or train anew without --resume"
        )
