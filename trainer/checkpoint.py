"""Checkpoints: weights as safetensors with the recipe inside, and one file with everything a resume needs.

Every file is written to a temporary name, synced and renamed: whenever the machine stops, the last one is whole.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from mlpdata.manifest import Error, write_atomic
from trainer.model import build
from trainer.recipe import Model, Recipe

LAST, BEST, STATE = "last.safetensors", "best.safetensors", "state.pt"


def save_weights(path: Path, model: nn.Module, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write a model. facts: at least res and num_classes, which with the recipe rebuild it; JSON-able."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    metadata = {"mlpdata": json.dumps({"recipe": recipe.to_dict(), **facts})}
    write_atomic(path, save(tensors, metadata))


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
    """A model from a checkpoint of ours (safetensors) or of the paper's authors (a plain state dict), in eval mode.

    Of the latter, kind, depth, width, expansion, resolution and classes are read off the shapes. Raises Error.
    """
    path = Path(path)
    if not path.is_file():
        raise Error(f"no checkpoint at {path}")
    with open(path, "rb") as f:
        start = f.read(9)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        facts = read_facts(path)
        recipe = Recipe.from_dict(facts["recipe"])
        model = build(recipe.model, facts["res"], facts["num_classes"], seed=0)
        with safe_open(path, "pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - it is no dict
    else:
        tensors = _plain_state_dict(path)
        model = build(*_read_off(tensors, path), seed=0)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        raise Error(f"{path} does not fit the model it names: {str(e).splitlines()[-1].strip()}") from None
    return model.eval()


def _plain_state_dict(path: Path) -> dict[str, torch.Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # torch raises nearly anything on files that are not its own
        raise Error(f"{path} is no state dict that can be loaded safely ({str(e).splitlines()[0]})") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    named = {}
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        key = str(key).removeprefix("module.").removeprefix("_orig_mod.")  # left by DDP and torch.compile
        named[key.replace("layer_norms.", "layernorms.")] = value
    if not isinstance(named.get("linear_in.weight"), torch.Tensor) or "linear_out.weight" not in named:
        raise Error(f"{path} holds no MLP of the paper: there is no linear_in.weight or linear_out.weight")
    return named


def _read_off(tensors: dict[str, torch.Tensor], path: Path) -> tuple[Model, int, int]:
    """(model, res, classes) from the shapes of a state dict."""
    width, inputs = tensors["linear_in.weight"].shape
    num_classes = tensors["linear_out.weight"].shape[0]
    res = round((inputs / 3) ** 0.5)
    if 3 * res * res != inputs:
        raise Error(f"{path} takes {inputs} inputs, which is no square RGB image")
    norm = "layer" if "layernorms.0.weight" in tensors else "none"
    norm = "batch" if "layernorms.0.running_mean" in tensors else norm
    if "blocks.0.block.0.weight" in tensors:
        depth = 1 + max(int(k.split(".")[1]) for k in tensors if k.startswith("blocks."))
        expansion = tensors["blocks.0.block.0.weight"].shape[0] // width
        return Model(kind="b_mlp", depth=depth, width=width, expansion=expansion, norm=norm), res, num_classes
    inner = {int(k.split(".")[1]) for k in tensors if k.startswith("layers.")}
    return Model(kind="s_mlp", depth=len(inner) + 1, width=width, norm=norm), res, num_classes


# ---------------------------------------------------------------------------------------------------------- resume


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and plain containers."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise Error(f"nothing to resume: there is no {path}") from None
    except Exception as e:
        raise Error(f"{path} cannot be read ({str(e).splitlines()[0]})") from None
