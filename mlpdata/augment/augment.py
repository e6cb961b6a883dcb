"""`Augment`: a batch to its augmented version, on its device, in one pass.

    apply      random numbers by counting (`draws`)
               -> where each output pixel comes from (`geometry`)
               -> pixels (`pixels`, by the samplers of `sampling`, from `chroma` too), compiled or not (`runner`)

Shapes throughout: N batch, H x W stored image, R augmented image.

Positions are in 1/256 pixel, so a bilinear weight has 8 bits, as in a GPU's texture unit, and a sum of four pixels by
two weights each has 24: float32 holds it exactly. That is why results are equal bit for bit whether compiled or not,
as gathers or as matrix products, and however batches are cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlpdata.augment.batch import DTYPES, LAYOUTS, Batch
from mlpdata.augment.runner import runner_of
from mlpdata.augment.settings import Augmentation


@dataclass(frozen=True, kw_only=True)
class Augment(Augmentation):
    """Augments batches. Without random parts it is the evaluation transform.

    dtype:  of the output, one of DTYPES.
    layout: "nchw", "channels_last" (in memory), or "flat" (N, 3 * R * R), channels first.

    Everything else is in `Augmentation`, from which it inherits. Raises ValueError for values that make no sense.

    Test-time crops are the same thing: crop k of a sample is what `apply` makes of it as epoch k.

    >>> batch = Batch(torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.arange(4), ids=torch.arange(4))
    >>> out = Augment(res=24, mixup=0.8).apply(batch, epoch=0, seed=0)
    >>> out.images.shape, out.mix_labels
    (torch.Size([4, 3, 24, 24]), tensor([1, 0, 3, 2]))
    """

    dtype: str = "float32"
    layout: str = "nchw"

    def __post_init__(self):
        super().__post_init__()
        if self.dtype not in DTYPES or self.layout not in LAYOUTS:
            raise ValueError(f"dtype is one of {', '.join(DTYPES)}, layout of {', '.join(LAYOUTS)}")

    @torch.no_grad()
    def apply(self, batch: Batch, epoch: int, seed: int) -> Batch:
        """Augment uint8 (N, H, W, 3) images, or luma and chroma. Never waits for the device.

        Equal ids, epoch and seed give equal results. Returns images in `dtype` and `layout`, (N, 3, R, R) or flat.
        """
        run = runner_of(self, *batch.images.shape[1:3], batch.chroma is not None, batch.images.device)
        with torch.autocast(batch.images.device.type, enabled=False):  # which would round the products
            images, lam = run(batch, epoch, seed)
        mix_labels = None if lam is None else batch.labels.index_select(0, _neighbours(batch.ids))
        return Batch(images, batch.labels, batch.ids, mix_labels, lam)


def _neighbours(ids: Tensor) -> Tensor:
    """Positions of the partners: 1, 0, 3, 2, ... A batch cut at even places mixes the same pairs. An odd last sample is
    its own partner."""
    return (torch.arange(len(ids), device=ids.device) ^ 1).clamp(max=len(ids) - 1)
