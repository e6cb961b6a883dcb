"""Images with chroma at half resolution (4:2:0), as JPEG has them: full-range BT.601 (JFIF 1.02)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def to_ycc420(images: Tensor) -> tuple[Tensor, Tensor]:
    """Luma at full and chroma at half resolution: 1.5 bytes a pixel instead of 3.

    images: uint8 (N, H, W, 3). Returns uint8 (N, H, W, 1) and (N, ceil(H/2), ceil(W/2), 2), Cb and Cr, each the mean of
    two by two pixels. Takes 40 bytes a pixel on the way: convert large sets a part at a time.

    >>> [t.shape for t in to_ycc420(torch.zeros(1, 5, 8, 3, dtype=torch.uint8))]
    [torch.Size([1, 5, 8, 1]), torch.Size([1, 3, 4, 2])]
    """
    r, g, b = images.permute(3, 0, 1, 2).float()
    y = 0.299 * r + 0.587 * g + 0.114 * b
    chroma = torch.stack((128 + (b - y) / 1.772, 128 + (r - y) / 1.402), 1)
    height, width = images.shape[1:3]
    chroma = F.avg_pool2d(F.pad(chroma, (0, width % 2, 0, height % 2), mode="replicate"), 2)
    luma, chroma = (t.round_().clamp_(0, 255).to(torch.uint8) for t in (y, chroma))
    return luma.unsqueeze(3), chroma.permute(0, 2, 3, 1).contiguous()


def from_ycc420(luma: Tensor, chroma: Tensor) -> Tensor:
    """The inverse of `to_ycc420`, but for the detail that it left out; chroma is upsampled bilinearly.

    Takes both outputs of `to_ycc420`; returns uint8 (N, H, W, 3).
    """
    height, width = luma.shape[1:3]
    c = F.interpolate(chroma.permute(0, 3, 1, 2).float() - 128, scale_factor=2, mode="bilinear", align_corners=False)
    cb, cr = c[:, :, :height, :width].unbind(1)
    return torch.stack(to_rgb(luma[..., 0].float(), cb, cr), 3).round_().to(torch.uint8)


def to_rgb(y: Tensor, cb: Tensor, cr: Tensor) -> list[Tensor]:
    """Red, green and blue, from 0 to 255, of luma and of chroma that is 0 for grey; float32 of any one shape."""
    rgb = (y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)
    return [c.clamp(0, 255) for c in rgb]
