"""Checkpoints of the paper's authors: plain state dicts, whose model is inferred from the shapes of the tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch

from mlpdata.errors import Error, first_line
from mlpdata.shards.manifest import MAX_RES
from mlpdata.system.format import plural
from trainer.recipe import LIMITS, Model

MAX_CLASSES = 1 << 24


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of torch.save, by the names of our models. No code in the file is run. Raises Error."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as f:
                if f.read(1) != pickle.PROTO:  # what torch.save wrote before it wrote zips
                    raise Error(f"{path} is not a checkpoint: neither safetensors nor a file of torch.save")
        else:
            with zipfile.ZipFile(path) as archive:
                if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                    raise Error(
                        f"{path} is compressed, which torch.save never does: a small file may unpack to a huge one"
                    )
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Error:
        raise
    except pickle.UnpicklingError:  # torch's own text advises to load it unsafely
        raise Error(
            f"{path} cannot be loaded safely: it is damaged, or holds more than tensors and would run code"
        ) from None
    except Exception as e:  # torch raises nearly anything on files that are not its own
        raise Error(f"{path} is no state dict that can be loaded safely ({first_line(e):.200})") from None
    if isinstance(loaded, dict) and "recipe" in loaded and "model" in loaded:
        raise Error(f"{path} is the state of a run, for --resume: give the run directory, or a checkpoint in it")
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    tensors = {}
    for key, value in loaded.items() if isinstance(loaded, dict) else ():
        key = str(key).removeprefix("module.").removeprefix("_orig_mod.")  # left by DDP and torch.compile
        tensors[key.replace("layer_norms.", "layernorms.")] = value
    for key in ("linear_in.weight", "linear_out.weight"):
        if not isinstance(tensors.get(key), torch.Tensor) or tensors[key].ndim != 2:
            raise Error(f"{path} holds no MLP of the paper: there is no linear_in.weight or linear_out.weight")
    for key, value in tensors.items():
        if not _is_plain(value):
            raise Error(f"{path} holds no MLP of the paper: {key!r:.80} is no plain tensor")
    return tensors


def _is_plain(tensor: Any) -> bool:
    """Whether a value is a tensor that holds all of its numbers: a view may claim more than its storage has."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def infer_config(tensors: dict[str, torch.Tensor], path: Path) -> tuple[Model, int, int]:
    """(config, resolution, number of classes) from the shapes of a state dict. Raises Error."""
    width, inputs = tensors["linear_in.weight"].shape
    num_classes = tensors["linear_out.weight"].shape[0]
    res = round((inputs / 3) ** 0.5)
    if not 1 <= res <= MAX_RES or 3 * res * res != inputs:
        raise Error(f"{path} takes {inputs} inputs, which is no square RGB image of 1 to {MAX_RES} pixels a side")
    norm: Literal["layer", "batch", "none"] = "layer" if "layernorms.0.weight" in tensors else "none"
    norm = "batch" if "layernorms.0.running_mean" in tensors else norm
    numbered = {match.group(1, 2) for key in tensors if (match := re.match(r"(blocks|layers)\.(\d+)\.", key))}
    is_b = any(kind == "blocks" for kind, _ in numbered)
    depth, expansion = len(numbered) + (not is_b), 4
    if is_b:
        expand = tensors.get("blocks.0.block.0.weight")
        expansion = expand.shape[0] // max(1, width) if expand is not None and expand.ndim else 0
    for name, value in (("depth", depth), ("width", width), ("expansion", expansion)):
        if not 1 <= value <= LIMITS[f"model.{name}"][1]:
            raise Error(f"{path} holds no MLP of the paper: its {name} is {value}")
    if not 1 <= num_classes <= MAX_CLASSES:
        raise Error(f"{path} holds no MLP of the paper: it has {plural(num_classes, 'class')}")
    kind = "b_mlp" if is_b else "s_mlp"
    return Model(kind=kind, depth=depth, width=width, expansion=expansion, norm=norm), res, num_classes
