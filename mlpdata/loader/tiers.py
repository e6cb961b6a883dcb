"""This machine's memory, and the tier that its plan chooses for a split, opened."""

from __future__ import annotations

import numpy as np
import torch

from mlpdata.errors import Error, first_line
from mlpdata.loader.memory_plan import Machine, MemoryPlan, SplitSize, plan_memory, plane_shapes
from mlpdata.loader.options import LoadOptions, Pixels
from mlpdata.loader.pinned import Pinned
from mlpdata.loader.reader import Reader
from mlpdata.loader.resident import Resident, ycc420_psnr
from mlpdata.loader.stream import Stream
from mlpdata.loader.subset import Selection
from mlpdata.system.format import format_bytes, plural
from mlpdata.system.memory import free_memory
from mlpdata.system.threads import cores

CACHE_SHARE = 0.6  # of the free memory: larger files are read past the page cache
PSNR_SAMPLES = 512

AnyTier = Resident | Pinned | Stream


def this_machine(device: torch.device, num_processes: int = 1) -> Machine:
    """What this machine offers to one of the processes that share its host memory; the rates are assumed ones."""
    name, device_bytes = "CPU", None
    if device.type == "cuda":
        name, device_bytes = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[0]
    return Machine(device=name, device_bytes=device_bytes, host_bytes=free_memory() // num_processes, cores=cores())


def split_size(reader: Reader, num_samples: int, pixels: Pixels = "rgb") -> SplitSize:
    """How large the samples of a split are that are loaded. pixels: "rgb" if nobody asks for planes."""
    return SplitSize(
        num_samples=num_samples,
        shape=reader.shape,
        file_bytes=int(reader.index.num_bytes.sum(dtype=np.int64)) * num_samples // len(reader.index),
        is_coded=not reader.all_raw,
        has_coded_planes=pixels != "rgb" and reader.has_coded_planes,
        fetched_share=cache.fetched_share if (cache := reader.index.cache) else None,
    )


def open_tier(
    reader: Reader, selection: Selection, device: torch.device, options: LoadOptions
) -> tuple[AnyTier, MemoryPlan, str]:
    """(tier, its plan, why it was chosen). Raises Error where the memory turns out not to be enough."""
    size = split_size(reader, len(selection.labels), options.pixels)
    machine = this_machine(device, options.world_size or 1)
    plan = plan_memory(size, machine, options.needs, options.tier or "auto", options.pixels)
    reason, cache = plan.reason, reader.index.cache
    if cache is not None:
        how = "streamed" if plan.tier == "stream" else "read once"
        why = ", as a copy does not fit" if options.tier == "auto" else ""
        reason += f"; {how} from {cache.address}{why}: of {format_bytes(cache.total_bytes)} in tars, at most "
        reason += f"{format_bytes(cache.limit)} are kept in {cache.folder}"
    if plan.pixels == "ycc420":
        some = np.unique(np.linspace(0, size.num_samples - 1, PSNR_SAMPLES).astype(np.int64))
        images, luma, chroma = (
            np.empty((len(some), *shape), np.uint8)
            for shape in (reader.shape, *plane_shapes(reader.shape, plan.pixels))
        )
        reader.read(selection.all_ids[some], images)
        reader.read(selection.all_ids[some], luma, chroma)
        how = "as the JPEGs are coded" if size.has_coded_planes else "at half resolution"
        psnr = ycc420_psnr(images, luma, chroma)
        reason += f"; chroma {how}, against these pixels: {psnr:.1f} dB on {plural(len(some), 'image')}"
    elif options.pixels == "ycc420":
        which = "images of even height and width" if any(n % 2 for n in reader.shape[:2]) else "JPEGs in 4:2:0"
        reason += f"; only {which} are streamed as ycc420 (with mlpdata[turbo]), these stay RGB"
    quiet = options.rank > 0  # the progress line of one process is enough
    try:
        if plan.tier == "resident":
            return Resident(reader, selection, device, plan.pixels, quiet), plan, reason
        if plan.tier in ("split", "pinned"):
            return Pinned(reader, selection, device, plan.pixels, plan.num_resident, quiet), plan, reason
    except (torch.OutOfMemoryError, MemoryError) as e:
        raise Error(
            f"the memory is not enough for the pixels ({first_line(e):.120}); load with tier='stream', or "
            f"pixels='ycc420', which halves them: {reason}"
        ) from None
    if cache is not None:
        return Stream(reader, selection, device, plan.pixels, direct=False), plan, reason
    direct = size.file_bytes > CACHE_SHARE * machine.host_bytes
    how = "past the page cache, which could not hold them" if direct else "through the page cache"
    return (
        Stream(reader, selection, device, plan.pixels, direct),
        plan,
        f"{reason}; {format_bytes(size.file_bytes)} of files read in blocks, {how}",
    )
