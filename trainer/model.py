"""The MLPs of *Scaling MLPs* (arXiv 2306.13575), section 2 and its code.

Shapes: N batch, r pixels a side, d = 3 r r inputs, m width, k expansion, L depth, C classes.

B-MLP  Linear(d -> m); L blocks z + W_c act(W_e norm(z)), W_e: m -> k m, W_c: k m -> m; Linear(m -> C)
S-MLP  Linear(d -> m); L - 1 times norm, act, Linear(m -> m); Linear(m -> C)

State dicts have the keys of the authors' checkpoints.
"""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import nn

from mlpdata.errors import Error
from mlpdata.system.memory import free_memory
from trainer.recipe import AT_MOST, Model

NORMS = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": lambda width: nn.Identity()}
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}
HEAD = "linear_out"  # the module that fine-tuning replaces and a probe trains


class Block(nn.Module):
    """Expand, activate, contract: (N, m) -> (N, m)."""

    def __init__(self, width: int, expansion: int, activation: str, dropout: float):
        super().__init__()
        expand, contract = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.block = nn.Sequential(expand, ACTIVATIONS[activation](), contract)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.block(z))


class BMLP(nn.Module):
    """The inverted-bottleneck MLP: (N, d) or (N, 3, r, r) normalised images -> (N, C) logits."""

    def __init__(self, config: Model, res: int, num_classes: int):
        super().__init__()
        width = config.width
        self.linear_in = nn.Linear(3 * res * res, width)
        self.blocks = nn.ModuleList(
            Block(width, config.expansion, config.activation, config.dropout) for _ in range(config.depth)
        )
        self.layernorms = nn.ModuleList(NORMS[config.norm](width) for _ in range(config.depth))
        self.linear_out = nn.Linear(width, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the head reads: (N, m)."""
        z = self.linear_in(images.flatten(1))
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            z = z + block(norm(z))
        return z

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear_out(self.features(images))


class SMLP(nn.Module):
    """The standard MLP, without skip connections: (N, d) or (N, 3, r, r) normalised images -> (N, C) logits."""

    def __init__(self, config: Model, res: int, num_classes: int):
        super().__init__()
        width, inner = config.width, config.depth - 1
        self.linear_in = nn.Linear(3 * res * res, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(inner))
        self.layernorms = nn.ModuleList(NORMS[config.norm](width) for _ in range(inner))
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.linear_out = nn.Linear(width, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the head reads: (N, m)."""
        z = self.linear_in(images.flatten(1))
        for norm, layer in zip(self.layernorms, self.layers, strict=True):
            z = layer(self.dropout(self.activation(norm(z))))
        return z

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear_out(self.features(images))


def parse_name(name: str) -> Model:
    """`B_12-Wi_1024` or `S_6-Wi_512`, optionally with the expansion: `B_12-Wi_1024-E_2`. Raises Error.

    The authors' code takes any word for the E, so any is taken here.
    """
    match = re.fullmatch(r"([BS])_(\d{1,9})-Wi_(\d{1,9})(?:-[A-Za-z]+_(\d{1,9}))?", name)
    if not match or not int(match[2]) or not int(match[3]) or match[4] == "0" or (match[1] == "S" and match[4]):
        raise Error(f"model name {name!r} is not like B_12-Wi_1024, B_12-Wi_1024-E_2 or S_6-Wi_1024")
    sizes = {"depth": int(match[2]), "width": int(match[3]), "expansion": int(match[4] or 4)}
    for field, value in sizes.items():
        if value > AT_MOST[f"model.{field}"]:
            raise Error(f"model name {name!r}: {field} must be at most {AT_MOST[f'model.{field}']}")
    return Model(kind="b_mlp" if match[1] == "B" else "s_mlp", **sizes)


def build(model: str | Model, res: int, num_classes: int, seed: int | None = None) -> nn.Module:
    """Make a model with torch's default initialisation.

    model: a name, or the recipe's section. seed: of the initial weights; None takes torch's global generator.
    """
    config = config_of(model)
    kind = {"b_mlp": BMLP, "s_mlp": SMLP}[config.kind]
    if seed is None:
        return kind(config, res, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, res, num_classes)


def outline(model: str | Model, res: int, num_classes: int) -> nn.Module:
    """The model with the shapes of its weights and without their memory."""
    with torch.device("meta"):
        return build(model, res, num_classes)


def check_size(model: str | Model, res: int, num_classes: int) -> None:
    """Raise Error for a model whose training does not fit the memory: an allocation that fails says nothing useful."""
    parameters, free = num_parameters(outline(model, res, num_classes)), free_memory()
    need = 12 * parameters  # weights, gradients and an optimizer's state, float32; a checkpoint holds as much
    if need > free:
        raise Error(
            f"recipe: the model has {parameters:,} parameters, whose training takes at least {need / 1e9:,.1f} GB, "
            f"and {free / 1e9:.1f} GB of memory are free: lower model.width, model.depth or model.expansion"
        )


def config_of(model: str | Model) -> Model:
    """A name or the recipe's section as fields; norm, activation and dropout go with a name too."""
    if isinstance(model, str):
        return parse_name(model)
    if model.name is None:
        return model
    named = parse_name(model.name)
    return replace(model, name=None, kind=named.kind, depth=named.depth, width=named.width, expansion=named.expansion)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def forward_flops(model: nn.Module) -> int:
    """Floating point operations of one image's forward pass: two a weight of every linear layer."""
    return sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
