"""The batch that loaders give, augmentation changes and models take."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(slots=True)
class Batch:
    """N samples on the device.

    images: uint8 (N, H, W, 3), or what the augmentation made of them. labels, ids: int64 (N,); an id is the sample's
    position in its split. mix_labels, mix_lam: the partner's label, int64 (N,), and the own label's weight, float32
    (N,); None without mixup or cutmix. chroma: None, or uint8 (N, ceil(H/2), ceil(W/2), 2), Cb and Cr as `to_ycc420`
    makes them; images is then the luma, uint8 (N, H, W, 1).
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    mix_labels: torch.Tensor | None = None
    mix_lam: torch.Tensor | None = None
    chroma: torch.Tensor | None = None
