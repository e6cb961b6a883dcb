"""Run directories and checkpoints: weights as safetensors with the recipe inside, and states, which a resume needs.

Every file is written to a temporary name, synced and renamed: whenever the machine stops, the last one is whole.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mlpdata.errors import Error
from mlpdata.manifest import Manifest, write_atomic
from trainer.model import HEAD, build, config_of
from trainer.recipe import Model, Recipe

LAST, BEST = "last.safetensors", "best.safetensors"


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
    _write(path, save(tensors, {"mlpdata": json.dumps({"recipe": recipe.to_dict(), **facts})}))


def read_facts(path: str | Path) -> dict[str, Any]:
    """What save_weights was told, with the recipe under `recipe`. Raises Error for a file that is not ours."""
    try:
        with safe_open(path, "pt") as f:
            return json.loads((f.metadata() or {})["mlpdata"])
    except FileNotFoundError:
        raise Error(f"no checkpoint at {path}") from None
    except (SafetensorError, KeyError, ValueError, OSError) as e:
        raise Error(f"{path} is no checkpoint of this trainer ({e})") from None


def load(path: str | Path) -> nn.Module:
    """The model of a checkpoint, in eval mode; see open_checkpoint."""
    return open_checkpoint(path).model


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint of ours (safetensors) or of the paper's authors (a plain state dict), its model in eval mode.

    Of the latter, kind, depth, width, expansion, resolution and classes are read off the shapes. Raises Error.
    """
    path, facts = Path(path), {}
    if not path.is_file():
        raise Error(f"no checkpoint at {path}")
    with open(path, "rb") as f:
        start = f.read(9)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        facts = read_facts(path)
        try:
            config, res, num_classes = (
                config_of(Recipe.from_dict(facts["recipe"]).model),
                facts["res"],
                facts["num_classes"],
            )
        except (KeyError, TypeError, AttributeError) as e:
            raise Error(f"{path} lacks what a checkpoint of this trainer says of itself ({e})") from None
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - it is no dict
    else:
        tensors = _plain_state_dict(path)
        config, res, num_classes = _read_off(tensors, path)
    model = build(config, res, num_classes, seed=0)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        raise Error(f"{path} does not fit the model it names: {str(e).splitlines()[-1].strip()}") from None
    return Checkpoint(model=model.eval(), config=config, res=res, num_classes=num_classes, facts=facts)


def make_model(recipe: Recipe, res: int, manifest: Manifest, state: dict[str, Any] | None) -> tuple[Model, nn.Module]:
    """(config, model) that a run starts with: a state's, or recipe.init's with a new head for other classes, or new."""
    seed, classes, ours = recipe.seed, manifest.num_classes, config_of(recipe.model)
    if state:
        ours = Model(**state["config"])
        model = build(ours, res, classes, seed=seed)
        model.load_state_dict(state["model"])
        return ours, model
    if not recipe.init:
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
    model = build(config, res, classes, seed=seed)
    model.load_state_dict(tensors, strict=False)
    return config, model


def _plain_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises nearly anything on files that are not its own
        raise Error(f"{path} is no state dict that can be loaded safely ({_first_line(e)})") from None
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
    return named


def _read_off(tensors: dict[str, torch.Tensor], path: Path) -> tuple[Model, int, int]:
    """(config, res, classes) from the shapes of a state dict."""
    width, inputs = tensors["linear_in.weight"].shape
    num_classes = tensors["linear_out.weight"].shape[0]
    res = round((inputs / 3) ** 0.5)
    if 3 * res * res != inputs:
        raise Error(f"{path} takes {inputs} inputs, which is no square RGB image")
    norm = "layer" if "layernorms.0.weight" in tensors else "none"
    norm = "batch" if "layernorms.0.running_mean" in tensors else norm
    if "blocks.0.block.0.weight" in tensors:
        depth = len({k.split(".")[1] for k in tensors if k.startswith("blocks.")})
        expansion = tensors["blocks.0.block.0.weight"].shape[0] // width
        return Model(kind="b_mlp", depth=depth, width=width, expansion=expansion, norm=norm), res, num_classes
    inner = {k.split(".")[1] for k in tensors if k.startswith("layers.")}
    return Model(kind="s_mlp", depth=len(inner) + 1, width=width, norm=norm), res, num_classes


# ------------------------------------------------------------------------------------------- run directories, states


def run_folder(runs: Path, recipe: Recipe, resume: bool) -> Path:
    """The directory of a new run, or of the latest to go on with. A taken name gets a number, so nothing is lost."""
    taken = [runs / recipe.name] + [runs / f"{recipe.name}-{k}" for k in range(2, 10_000)]
    free = next(k for k, folder in enumerate(taken) if not folder.exists())
    if resume and free == 0:
        raise Error(f"nothing to resume: there is no run {taken[0]}")
    return taken[free - 1] if resume else taken[free]


def state_path(folder: Path, step: int) -> Path:
    return folder / f"state-{step:09d}.pt"


def states(folder: Path) -> list[Path]:
    """The states of a run, oldest first."""
    return sorted(folder.glob("state-*.pt"))


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write tensors, numbers and plain containers as the state of a step, then remove all but the last few."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _write(state_path(folder, step), buffer.getbuffer())
    for old in states(folder)[:-keep]:
        old.unlink(missing_ok=True)


def load_state(folder: Path, say=print) -> dict[str, Any]:
    """The newest state of a run that can be read. Raises Error where there is none."""
    damaged = ""
    for path in reversed(states(folder)):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as e:  # torch raises nearly anything on damaged files
            damaged = f"{path} cannot be read ({_first_line(e)})"
            say(f"{damaged}; taking the state before")
    raise Error(f"nothing to resume: {damaged or f'{folder} has no checkpoint yet'}")


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
    free = ("train.epochs", "data.shards", "data.tier", "train.device", "train.record_steps")
    changed = [c for c in changed if c not in free and not c.startswith(("save.", "log."))]
    if changed:
        raise Error(
            f"{folder} was started with another {', '.join(changed)}; resume with its own recipe, or leave --resume"
        )


def _first_line(e: Exception) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def _write(path: Path, data) -> None:
    try:
        write_atomic(path, data)
    except OSError as e:
        raise Error(f"cannot write {path}: {e.strerror}") from None
