"""The MLPs of *Scaling MLPs* (arXiv 2306.13575), section 2 and its code.

Shapes: N batch, r pixels a side, d = 3 r r inputs, m width, k expansion, L depth, C classes.

B-MLP  Linear(d -> m); L blocks z + W_c act(W_e norm(z)), W_e: m -> k m, W_c: k m -> m; Linear(m -> C)
S-MLP  Linear(d -> m); L - 1 times norm, act, Linear(m -> m); Linear(m -> C)

State dicts have the keys of the authors' checkpoints.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.compiler import is_compiling

from mlpdata.errors import Error
from mlpdata.system.format import format_bytes
from mlpdata.system.memory import free_memory
from trainer.recipe import LIMITS, Model

NORMS = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d, "none": lambda width: nn.Identity()}
ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU}
GPUS = ("cuda",)  # devices where products are padded and sums cut as below
ALIGNMENT = 64  # columns of the head's product
MOST_ROWS, LEAST_ROWS = 128, 4  # of a batch, whose gradients of a bias are summed by one thread
HEAD = "linear_out"  # the module that fine-tuning replaces and a probe trains


class Block(nn.Module):
    """Expand, activate, contract: (N, m) -> (N, m).

    Compiled for a GPU, the first bias is added by the activation, anew for each group of rows. Then its gradient is
    summed over the rows of a group by the kernel that makes the activation's gradient, and over groups afterwards.
    Where the product adds it, the compiler splits that sum in another way, and reads (N, k m) gradients once more.
    """

    def __init__(self, width: int, expansion: int, activation: str, dropout: float):
        super().__init__()
        expand, contract = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.block = nn.Sequential(expand, ACTIVATIONS[activation](), contract)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        rows = math.gcd(len(z), MOST_ROWS) if is_compiling() and z.device.type in GPUS else 0
        if rows < LEAST_ROWS:
            return self.dropout(self.block(z))
        expand, activation, contract = cast(tuple[nn.Linear, nn.Module, nn.Linear], tuple(self.block))
        expanded = F.linear(z, expand.weight)
        groups = expanded.view(-1, rows, expanded.shape[1])
        activated = activation(groups + expand.bias.expand(len(groups), 1, -1))
        return self.dropout(contract(activated.view(expanded.shape)))


class Head(nn.Linear):
    """The last layer: (N, m) -> (N, C).

    A GPU multiplies matrices faster when rows are multiples of 16 bytes, and Inductor pads them to 128 bytes; then the
    product cannot add the bias. There the product has 64 k >= C columns, of which a view of the first C is returned;
    the weights stay (C, m).
    """

    def padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (64 k, m) and bias (64 k,)."""
        missing = -self.out_features % ALIGNMENT
        return F.pad(self.weight, (0, 0, 0, missing)), F.pad(self.bias, (0, missing))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type not in GPUS or self.out_features % ALIGNMENT == 0:
            return super().forward(input)
        return F.linear(input, *self.padded())[:, : self.out_features]


class MLP(nn.Module):
    """Body and head: (N, d) or (N, 3, r, r) normalised images -> (N, C) logits."""

    linear_in: nn.Linear
    linear_out: Head

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the head reads: (N, m)."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.linear_out(self.features(images))


class BMLP(MLP):
    """The inverted-bottleneck MLP."""

    def __init__(self, config: Model, res: int, num_classes: int):
        super().__init__()
        width, depth = config.width, range(config.depth)
        self.linear_in = nn.Linear(3 * res * res, width)
        self.blocks = nn.ModuleList(Block(width, config.expansion, config.activation, config.dropout) for _ in depth)
        self.layernorms = nn.ModuleList(NORMS[config.norm](width) for _ in depth)
        self.linear_out = Head(width, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        z = self.linear_in(images.flatten(1))
        for norm, block in zip(self.layernorms, self.blocks, strict=True):
            z = z + block(norm(z))
        return z


class SMLP(MLP):
    """The standard MLP, without skip connections."""

    def __init__(self, config: Model, res: int, num_classes: int):
        super().__init__()
        width, inner = config.width, range(config.depth - 1)
        self.linear_in = nn.Linear(3 * res * res, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in inner)
        self.layernorms = nn.ModuleList(NORMS[config.norm](width) for _ in inner)
        self.activation = ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.linear_out = Head(width, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        z = self.linear_in(images.flatten(1))
        for norm, layer in zip(self.layernorms, self.layers, strict=True):
            z = layer(self.dropout(self.activation(norm(z))))
        return z


def parse_name(name: str) -> Model:
    """`B_12-Wi_1024` or `S_6-Wi_512`, optionally with the expansion: `B_12-Wi_1024-E_2`. Raises Error.

    The E may be any word, as in the authors' code.

    >>> config = parse_name("B_12-Wi_1024")
    >>> config.kind, config.depth, config.width, config.expansion
    ('b_mlp', 12, 1024, 4)
    """
    match = re.fullmatch(r"([BS])_(\d{1,9})-Wi_(\d{1,9})(?:-[A-Za-z]+_(\d{1,9}))?", name)
    if not match or not int(match[2]) or not int(match[3]) or match[4] == "0" or (match[1] == "S" and match[4]):
        raise Error(f"model name {name!r} is not like B_12-Wi_1024, B_12-Wi_1024-E_2 or S_6-Wi_1024")
    depth, width, expansion = int(match[2]), int(match[3]), int(match[4] or 4)
    for field, value in (("depth", depth), ("width", width), ("expansion", expansion)):
        if value > (most := LIMITS[f"model.{field}"][1]):
            raise Error(f"model name {name!r}: {field} must be at most {most}")
    return Model(kind="b_mlp" if match[1] == "B" else "s_mlp", depth=depth, width=width, expansion=expansion)


def build(model: str | Model, res: int, num_classes: int, seed: int | None = None) -> MLP:
    """Make a model with torch's default initialisation.

    model: a name, or the recipe's section. res: pixels a side. seed: of the initial weights; None takes torch's global
    generator. Raises Error for a name that is none.

    >>> model = build("B_1-Wi_8", res=4, num_classes=5, seed=0)
    >>> model(torch.zeros(2, 3, 4, 4)).shape
    torch.Size([2, 5])
    """
    config = config_of(model)
    kind = {"b_mlp": BMLP, "s_mlp": SMLP}[config.kind]
    if seed is None:
        return kind(config, res, num_classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, res, num_classes)


def build_on_meta(model: str | Model, res: int, num_classes: int) -> MLP:
    """The model with the shapes of its weights and without their memory (torch's meta device)."""
    with torch.device("meta"):
        return build(model, res, num_classes)


def check_size(model: str | Model, res: int, num_classes: int) -> None:
    """Raise Error for a model whose training does not fit the memory: a failed allocation names no cause."""
    parameters, free = num_parameters(build_on_meta(model, res, num_classes)), free_memory()
    need = 12 * parameters  # weights, gradients and an optimizer's state, float32; a checkpoint holds as much
    if need > free:
        raise Error(
            f"recipe: the model has {parameters:,} parameters, whose training takes at least {format_bytes(need)}, "
            f"and {format_bytes(free)} of memory are free: lower model.width, model.depth or model.expansion"
        )


def config_of(model: str | Model) -> Model:
    """The recipe's section with its name resolved to fields; norm, activation and dropout apply to names too."""
    if isinstance(model, str):
        return parse_name(model)
    if model.name is None:
        return model
    named = parse_name(model.name)
    return replace(model, name=None, kind=named.kind, depth=named.depth, width=named.width, expansion=named.expansion)


def num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
