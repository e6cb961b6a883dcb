"""The batch that loaders give, augmentation changes and models take."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of augmented images
LAYOUTS = ("nchw", "channels_last", "flat")


@dataclass(slots=True)
class Batch:
    """N samples on the device.

    images:     uint8 (N, H, W, 3), or what the augmentation made of them.
    labels:     int64 (N,).
    ids:        int64 (N,), the samples' positions in their split.
    mix_labels: int64 (N,), the partner's label; None without mixup or cutmix.
    mix_lam:    float32 (N,), the weight of the own label; None without mixup or cutmix.
    chroma:     None, or uint8 (N, ceil(H/2), ceil(W/2), 2), Cb and Cr as `to_ycc420` makes them; `images` is then the
                luma, uint8 (N, H, W, 1).
    rows:       None, or int64 (N,): the samples' rows in `images` and `chroma`, which then are a whole store. It is
                for batches that are augmented next, which gathers them on the way; `gathered` does so at once.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    mix_labels: Tensor | None = None
    mix_lam: Tensor | None = None
    chroma: Tensor | None = None
    rows: Tensor | None = None

    def gathered(self) -> Batch:
        """The same samples without `rows`."""
        if self.rows is None:
            return self
        images, chroma = (None if t is None else t.index_select(0, self.rows) for t in (self.images, self.chroma))
        return replace(self, images=images, chroma=chroma, rows=None)
