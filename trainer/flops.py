"""Floating point operations of models, and the devices' peaks: what share of its peak a device reaches."""

from __future__ import annotations

import re

import torch
from torch import nn

from trainer.model import MLP

# Peak of dense products in bf16, FLOP/s, from the vendors' data sheets. First match counts.
PEAKS = (
    ("B200", 2250e12), ("H200", 989e12), ("H100 NVL", 835e12), ("H100 PCIe", 756e12), ("H100", 989e12),
    ("A100", 312e12), ("L40S", 362e12), ("L40", 181e12), ("L4", 121e12), ("RTX 4090", 165e12), ("A5000", 111e12),
    ("A6000", 155e12),
)  # fmt: skip
SHARE_OF_PEAK = {"bf16": 1.0, "fp16": 1.0, "tf32": 0.5}


def forward_flops(model: nn.Module) -> int:
    """FLOPs of one image's forward pass: two a weight of every linear layer.

    >>> forward_flops(nn.Linear(3, 4))
    24
    """
    return sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))


def training_flops(model: MLP, *, probe: bool = False, cached: bool = False) -> int:
    """FLOPs of training on one image as the paper counts them: forward once, backward twice that.

    probe: only the head is trained. cached: the body's features are stored, so only the head runs.
    """
    body, head = forward_flops(model) - forward_flops(model.linear_out), forward_flops(model.linear_out)
    if not probe:
        return 3 * (body + head)
    return (0 if cached else body) + 3 * head


def executed_flops(model: MLP, *, probe: bool = False, cached: bool = False) -> int:
    """FLOPs that a device really executes for one image: the first trained layer computes no input gradient."""
    first = model.linear_out if probe else model.linear_in
    return training_flops(model, probe=probe, cached=cached) - forward_flops(first)


def peak_flops(device_name: str, precision: str) -> float | None:
    """A GPU's peak in FLOP/s by the name that its driver gives; None where the peak is not known.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "bf16"), peak_flops("NVIDIA L40S", "tf32"), peak_flops("T4", "bf16")
    (989000000000000.0, 181000000000000.0, None)
    """
    if precision not in SHARE_OF_PEAK:
        return None
    peaks = (peak for name, peak in PEAKS if re.search(rf"\b{name}\b", device_name))
    return next((SHARE_OF_PEAK[precision] * peak for peak in peaks), None)


def flop_share(
    images_per_s: float, image_flops: float, device: torch.device, precision: str, num_devices: int = 1
) -> float | None:
    """Model FLOPs/s over the devices' peak (MFU), a share; None where the peak is not known."""
    peak = peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    return images_per_s * image_flops / (peak * num_devices) if peak else None
