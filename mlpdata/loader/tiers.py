"""Where the pixels of a split are during an epoch: the tier, chosen by size and said in one line."""

from __future__ import annotations

import math

import numpy as np
import torch

from mlpdata.loader.pinned import Pinned
from mlpdata.loader.reader import Reader
from mlpdata.loader.resident import Resident, plane_shapes, ycc420_psnr
from mlpdata.loader.stream import Stream
from mlpdata.loader.subset import Selection
from mlpdata.system.memory import free_memory

SHARE = 0.6  # of the free memory that a split may take
PSNR_SAMPLES = 512


def open_tier(
    reader: Reader, selection: Selection, device: torch.device, wanted: str, pixels: str
) -> tuple[Resident | Pinned | Stream, str, str]:
    """(tier, its name, why it was chosen). wanted, pixels: as of LoadOptions."""
    num_samples = len(selection.labels)
    rgb_bytes, pixel_bytes = (
        num_samples * sum(math.prod(shape) for shape in plane_shapes(reader.shape, kind)) for kind in ("rgb", pixels)
    )
    name, reason = choose_tier(rgb_bytes, pixel_bytes, device, wanted)
    if pixels == "ycc420" and name != "resident":
        reason += "; pixels ycc420 concerns the resident tier only, these stay RGB"
    elif pixels == "ycc420":
        some = np.unique(np.linspace(0, num_samples - 1, PSNR_SAMPLES).astype(np.int64))
        images = np.empty((len(some), *reader.shape), np.uint8)
        reader.read(selection.all_ids[some], images)
        psnr = ycc420_psnr(images)
        reason += f"; luma in full and chroma at half resolution: {psnr:.1f} dB on {len(some)} of these images"
    if name == "resident":
        return Resident(reader, selection, device, pixels), name, reason
    if name == "pinned":
        return Pinned(reader, selection, device), name, reason
    file_bytes = int(reader.index.num_bytes.sum(dtype=np.int64))
    direct = file_bytes > SHARE * free_memory()
    how = "past the page cache, which could not hold them" if direct else "through the page cache"
    reason += f"; {file_bytes / 1e9:.2f} GB of files read in blocks, {how}"
    return Stream(reader, selection, device, direct), name, reason


def choose_tier(host_bytes: int, device_bytes: int, device: torch.device, wanted: str) -> tuple[str, str]:
    """(tier, why). host_bytes, device_bytes: of all pixels, as the pinned and the resident tier hold them."""
    host = free_memory()
    if device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)[0], torch.cuda.get_device_name(device)
    else:
        free, memory = host, "memory"
    sizes = f"{device_bytes / 1e9:.2f} GB of pixels, {free / 1e9:.1f} GB free in {memory}"
    if wanted != "auto":
        return wanted, f"{wanted}, as asked: {sizes}"
    if device_bytes <= SHARE * free:
        return "resident", f"resident: {sizes}"
    sizes += f", of which {SHARE:.0%} may be used"
    if device.type == "cuda" and host_bytes <= SHARE * host:
        return "pinned", f"pinned: {sizes}; {host / 1e9:.1f} GB free in memory"
    return "stream", f"stream: {sizes}"
