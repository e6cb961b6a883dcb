"""The batch that loaders give, augmentation changes and models take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # of augmented images
LAYOUTS = ("nchw", "channels_last", "flat")


@dataclass(slots=True)
class Batch:
    """N samples on the device.

    It unpacks: `images, labels = batch`, or, where labels are mixed, `images, labels, mix_labels, mix_lam = batch`.

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

    def __iter__(self) -> Iterator[Tensor]:
        """Images and labels. Mixed labels come too, so that a loop which knows nothing of them stops and is not wrong.

        >>> images, labels = Batch(torch.zeros(2, 4, 4, 3), torch.arange(2), ids=torch.arange(2))
        >>> labels
        tensor([0, 1])
        """
        mixed = () if self.mix_labels is None or self.mix_lam is None else (self.mix_labels, self.mix_lam)
        return iter((self.images, self.labels, *mixed))

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Batch:
        """The batch on another device.

        >>> batch = Batch(torch.zeros(2, 4, 4, 3), torch.arange(2), ids=torch.arange(2))
        >>> batch.to("meta").labels.device
        device(type='meta')
        """
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(
            self, **{k: t.to(device, non_blocking=non_blocking) for k, t in tensors.items() if t is not None}
        )
