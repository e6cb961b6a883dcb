"""Checkpoints: weights as safetensors with the recipe inside, or the authors' state dicts; the model a run starts with.

A checkpoint may come from anywhere or be damaged. No model is built, and no memory taken, before the sizes that it
declares are known to fit the tensors that it holds.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from mlpdata.errors import Error, first_line
from mlpdata.shards.manifest import MAX_RES, Manifest, is_shard_directory
from mlpdata.sources.keys import listed
from trainer import authors
from trainer.model import HEAD, MLP, build, build_on_meta, check_size, config_of
from trainer.recipe import Model, Recipe
from trainer.run_directory import write_file

LAST, BEST = "last.safetensors", "best.safetensors"
MAX_FACTS_BYTES = 1 << 20  # of a checkpoint's metadata; ours have 3 kB


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model in eval mode and what is known of it."""

    model: MLP
    config: Model  # without a name
    res: int  # pixels a side
    num_classes: int
    facts: dict[str, Any]  # of save_weights, with the recipe under `recipe`; {} for a checkpoint of the authors


def save_weights(path: Path, tensors: dict[str, torch.Tensor], recipe: Recipe, facts: dict[str, Any]) -> None:
    """Write a model's state dict. facts: at least res and num_classes, which with the recipe rebuild it; JSON-able."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_file(path, save(tensors, {"mlpdata": json.dumps({"recipe": recipe.to_dict(), **facts})}))


def load(path: str | Path) -> MLP:
    """The model of a checkpoint, in eval mode; see open_checkpoint."""
    return open_checkpoint(path).model


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of ours (safetensors) or of the paper's authors (a plain state dict). Raises Error.

    path: a file, or a run directory, of which the best checkpoint is taken. For a checkpoint of the authors kind,
    depth, width, expansion, resolution and classes are inferred from the shapes.
    """
    path, facts = Path(path), {}
    if path.is_dir():
        if is_shard_directory(path):
            raise Error(f"{path} is a shard directory: give a checkpoint, or a run directory")
        if not (path / BEST).exists():
            raise Error(f"{path} has no {BEST}: give a checkpoint, or a run directory that has one{_runs_in(path)}")
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
        config, res, num_classes = _declared_config(facts, path)
        with safe_open(path, "pt") as f:
            shapes = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}  # noqa: SIM118 - it is no dict
            model = _matching_model(config, res, num_classes, shapes, path)
            tensors = {k: f.get_tensor(k) for k in shapes}
    else:
        tensors = authors.read_state_dict(path)
        config, res, num_classes = authors.infer_config(tensors, path)
        model = _matching_model(config, res, num_classes, {k: tuple(t.shape) for k, t in tensors.items()}, path)
    _assign(model, tensors, path)
    return Checkpoint(model=model.eval(), config=config, res=res, num_classes=num_classes, facts=facts)


def _runs_in(folder: Path) -> str:
    runs = sorted(run.parent for run in folder.glob(f"*/{BEST}"))
    return f", as {listed(runs, 3)}" if runs else ""


def read_facts(path: str | Path) -> dict[str, Any]:
    """The facts that save_weights stored, with the recipe under `recipe`. Raises Error for a file that is not ours."""
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
        raise Error(f"{path} is not a checkpoint of this trainer: its metadata is not a table of facts")
    return facts


def recipe_of(facts: dict[str, Any], path: Path) -> Recipe:
    """The recipe that a checkpoint of ours was trained by. Raises Error."""
    try:
        return Recipe.from_dict(facts["recipe"])
    except Error as e:
        raise Error(f"{path} has no recipe inside that can be read ({e})") from None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
        raise Error(f"{path} lacks metadata that a checkpoint of this trainer has ({first_line(e)})") from None


def _declared_config(facts: dict[str, Any], path: Path) -> tuple[Model, int, int]:
    """(config, resolution, number of classes) as a checkpoint of ours declares them. Raises Error."""
    for name, most in (("res", MAX_RES), ("num_classes", authors.MAX_CLASSES)):
        if type(facts.get(name)) is not int or not 1 <= facts[name] <= most:
            raise Error(f"{path} says {name} {facts.get(name)!r:.40}, which must be a whole number from 1 to {most:,}")
    for name in ("mean", "std"):  # which evaluation normalises by
        value = facts.get(name, [0.0] * 3)
        plain = isinstance(value, list) and all(type(x) in (int, float) and abs(x) < 1e6 for x in value)
        if not plain or len(value) != 3:
            raise Error(f"{path} says {name} {value!r:.40}, which must be three numbers")
    return config_of(recipe_of(facts, path).model), facts["res"], facts["num_classes"]


def _matching_model(config: Model, res: int, num_classes: int, shapes: dict[str, tuple], path: Path) -> MLP:
    """The model without memory. Raises Error unless `shapes` are exactly those of its tensors."""
    if config.depth > len(shapes):
        raise Error(f"{path} does not fit the model it names: depth {config.depth}, but {len(shapes)} tensors")
    model = build_on_meta(config, res, num_classes)
    expected = {k: tuple(t.shape) for k, t in model.state_dict().items()}
    for key in sorted(expected.keys() | shapes.keys()):
        if expected.get(key) != shapes.get(key):
            ours, theirs = (str(list(s[key])) if key in s else "nothing" for s in (expected, shapes))
            raise Error(
                f"{path} does not fit the model it names: of {key!r:.80} the model has {ours}, the file {theirs}"
            )
    return model


def _assign(model: MLP, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Give a model without memory its weights. Raises Error for weights that are no finite numbers."""
    expected = model.state_dict()
    for key, tensor in tensors.items():
        if expected[key].is_floating_point() and not tensor.is_floating_point():
            raise Error(f"{path}: {key} holds {tensor.dtype}, which are no weights")
        tensors[key] = tensor = tensor.to(expected[key].dtype).contiguous()
        if not torch.isfinite(tensor).all():
            raise Error(f"{path}: {key} holds weights that are no finite numbers")
    model.load_state_dict(tensors, assign=True)


# ------------------------------------------------------------------------------------------------ the start of a run


def initial_model(recipe: Recipe, res: int, manifest: Manifest, state: dict[str, Any] | None) -> tuple[Model, MLP]:
    """(config, model) that a run starts with. Raises Error for an `init` that does not fit, or a model too large.

    state: of a resume, which has the model. Else the model is new, or recipe.init's with a new head for other classes.
    """
    seed, classes, config = recipe.seed, manifest.num_classes, config_of(recipe.model)
    weights: dict[str, torch.Tensor] | None = None
    if state:
        config, weights = Model(**state["config"]), state["model"]
    elif recipe.init:
        config, weights = _initial_weights(recipe, config, res, manifest)
    if not state:
        check_size(config, res, classes)
    model = build(config, res, classes, seed=seed)
    if weights:
        model.load_state_dict(weights, strict=state is not None)  # an init for other classes lacks the head
    return config, model


def _initial_weights(
    recipe: Recipe, own_config: Model, res: int, manifest: Manifest
) -> tuple[Model, dict[str, torch.Tensor]]:
    """(config, weights) of the checkpoint that a recipe starts from, without the head where classes differ."""
    start = open_checkpoint(recipe.init or "")
    config = replace(start.config, dropout=recipe.model.dropout)
    if recipe.model not in (Model(), Model(dropout=recipe.model.dropout)) and own_config != config:
        raise Error(
            f"recipe: model differs from that of {recipe.init}; leave the section out: the model of init is used"
        )
    if start.res != res:
        raise Error(f"{recipe.init} takes {start.res} px, this recipe gives {res}; set augment.res to {start.res}")
    same_list = start.facts.get("classes_sha256") in (None, manifest.classes_sha256)
    keep_head = same_list and start.num_classes == manifest.num_classes
    return config, {k: v for k, v in start.model.state_dict().items() if keep_head or not k.startswith(HEAD)}
