"""The batch that loaders give, augmentation changes and models take."""

from __future__ import annotations

from dataclasses import dataclass

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
    rows:       None, or int64 (N,), the samples' rows in `images` and `chroma`, which then are a whole store: the
                augmentation gathers them on the way. Never so in a batch that a Loader gives.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    mix_labels: Tensor | None = None
    mix_lam: Tensor | None = None
    chroma: Tensor | None = None
    rows: Tensor | None = None
