"""The plan of memory: where a split's pixels go on a machine, beside a model, and what is then the bottleneck.

Only arithmetic: `mlpdata.loader.tiers` measures this machine and opens what is planned, `mlpdata train RECIPE --plan`
prints it, and the tests plan for machines that nobody has here.

resident  all pixels in the device's memory: nothing moves
split     as many as fit in the device's memory, the rest in pinned host memory
pinned    all in host memory, copied over the bus batch by batch
stream    in their files, read anew in every epoch
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

from mlpdata.loader.options import Pixels, Tier
from mlpdata.system.format import format_bytes

# Rates that are assumed where they are not measured. Two cores of an x86-64 server decoded 45,000 to 59,000 JPEGs of
# 64 x 64 pixels a second each, and gathered 3 GB/s of such rows each.
DECODE_PIXELS_PER_S = 180e6  # a core, to RGB
PLANES_SPEEDUP = 1.13  # of decoding JPEGs to luma and half-resolution chroma: most of the time goes into Huffman codes
GATHER_BYTES_PER_S = 3e9  # a core, from host memory into a batch
BUS_BYTES_PER_S = 25e9  # PCIe 4.0 x16 reaches that much
DISK_BYTES_PER_S = 2e9
NETWORK_BYTES_PER_S = 125e6  # 1 Gbit/s

MARGIN = 2.0  # how much faster than the model a source has to be, for RGB to be kept: the rates are estimates
UNKNOWN_SHARE = 0.4  # of the free memory, left to a model of which nothing is known
HOST_SHARE = 0.08  # of the free host memory, left to everything else
SMALL_SHARE = 0.03  # of the free memory: a split that takes less makes no difference to a model
MIN_RESIDENT = 0.02  # of the samples; fewer on the device are not worth a second place to gather from


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine offers: free memory in bytes, rates in bytes/s.

    device_bytes: free on the GPU; None where batches stay on the CPU, whose memory is the host's.
    """

    device: str
    device_bytes: int | None
    host_bytes: int
    cores: int
    bus: float = BUS_BYTES_PER_S
    disk: float = DISK_BYTES_PER_S
    network: float = NETWORK_BYTES_PER_S


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a training needs besides pixels: bytes on the device and on the host, and images/s (None: unknown).

    >>> Needs(device_bytes=8 << 30).images_per_s is None
    True
    """

    device_bytes: int = 0
    host_bytes: int = 0
    images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class SplitSize:
    """How large a split is. shape: (H, W, 3) of an image as it is loaded. is_coded: whether images must be decoded.

    has_coded_planes: whether decoding gives luma and half-resolution chroma at once, so that a stream can have them.
    fetched_share: of the files, that is fetched from elsewhere in every epoch, as the disk cannot keep it; None where
    they are all here.
    """

    num_samples: int
    shape: tuple[int, int, int]
    file_bytes: int
    is_coded: bool = False
    has_coded_planes: bool = False
    fetched_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Where the pixels of a split go. is_forced: the tier was asked for. num_resident: samples on the device."""

    split: SplitSize
    machine: Machine
    needs: Needs | None
    tier: Tier
    pixels: Pixels
    num_resident: int
    is_forced: bool

    @property
    def image_bytes(self) -> int:
        """Bytes of an image in memory."""
        return image_bytes(self.split.shape, self.pixels)

    @property
    def resident_bytes(self) -> int:
        """Bytes on the device."""
        return self.num_resident * self.image_bytes

    @property
    def pinned_bytes(self) -> int:
        """Bytes in host memory; a stream has none but its windows."""
        return 0 if self.tier == "stream" else (self.split.num_samples - self.num_resident) * self.image_bytes

    @property
    def host_share(self) -> float:
        """The share of an epoch's images that come from the host."""
        return 1 - self.num_resident / max(1, self.split.num_samples)

    @property
    def limits(self) -> dict[str, float]:
        """Images/s that each part of the way can give, by name; empty if all pixels are on the device."""
        split, machine, limits = self.split, self.machine, {}
        if self.tier == "stream":
            limits["the disk"] = machine.disk * split.num_samples / max(1, split.file_bytes)
            if split.fetched_share:
                fetched_bytes = max(1, split.fetched_share * split.file_bytes)
                limits["the network"] = machine.network * split.num_samples / fetched_bytes
            if split.is_coded:
                faster = PLANES_SPEEDUP if self.pixels == "ycc420" else 1
                limits["decoding"] = faster * machine.cores * DECODE_PIXELS_PER_S / (split.shape[0] * split.shape[1])
        if self.num_resident < split.num_samples:
            per_image = self.image_bytes * self.host_share
            limits["the gather in host memory"] = machine.cores * GATHER_BYTES_PER_S / per_image
            if machine.device_bytes is not None:
                limits["the bus"] = machine.bus / per_image
        return limits

    @property
    def supply(self) -> float:
        """Images/s that the source can give."""
        return min(self.limits.values(), default=inf)

    @property
    def bottleneck(self) -> str:
        """The name of what limits the training: the model where the source gives as much as it takes."""
        wanted = self.needs.images_per_s if self.needs else None
        limits = self.limits
        if not limits or (wanted is not None and self.supply >= wanted):
            return "the model"
        return min(limits, key=lambda name: limits[name])

    @property
    def reason(self) -> str:
        """Why this tier, in one line."""
        split, machine = self.split, self.machine
        free, memory = machine.host_bytes, "memory"
        if machine.device_bytes is not None:
            free, memory = machine.device_bytes, machine.device
        text = f"{self.tier}, as asked: " if self.is_forced else f"{self.tier}: "
        form = "RGB" if self.pixels == "rgb" else "luma and half-resolution chroma"
        text += f"{format_bytes(split.num_samples * self.image_bytes)} of pixels as {form}, "
        text += f"{format_bytes(free)} free in {memory}"
        if reserved := free - rooms(machine, self.needs)[0]:
            text += f", {format_bytes(reserved)} of it for {'the model' if self.needs else 'a model of unknown size'}"
        if self.tier == "split":
            text += f"; {format_bytes(self.resident_bytes)} resident, {format_bytes(self.pinned_bytes)} pinned"
        if machine.device_bytes is not None and self.tier != "resident":
            text += f"; {format_bytes(machine.host_bytes)} free in host memory"
        return text


def plane_shapes(shape: tuple[int, int, int], pixels: Pixels) -> list[tuple[int, int, int]]:
    """The arrays that hold one image (H, W, 3).

    >>> plane_shapes((5, 4, 3), "rgb"), plane_shapes((5, 4, 3), "ycc420")
    ([(5, 4, 3)], [(5, 4, 1), (3, 2, 2)])
    """
    height, width, _ = shape
    return [shape] if pixels == "rgb" else [(height, width, 1), ((height + 1) // 2, (width + 1) // 2, 2)]


def image_bytes(shape: tuple[int, int, int], pixels: Pixels) -> int:
    """Bytes of an image (H, W, 3) in memory.

    >>> image_bytes((64, 64, 3), "rgb"), image_bytes((64, 64, 3), "ycc420")
    (12288, 6144)
    """
    return sum(map(prod, plane_shapes(shape, pixels)))


def plan_memory(
    split: SplitSize, machine: Machine, needs: Needs | None = None, tier: Tier = "auto", pixels: Pixels = "rgb"
) -> MemoryPlan:
    """Choose tier and pixels; one that is not "auto" is taken as it is.

    RGB is kept where it fits into memory and comes MARGIN times as fast as the model takes it. needs None: nothing is
    known of the model, so UNKNOWN_SHARE of the memory is left to it.

    >>> gpu = Machine(device="GPU", device_bytes=24 * 10**9, host_bytes=64 * 10**9, cores=16)
    >>> split = SplitSize(num_samples=10**7, shape=(64, 64, 3), file_bytes=123 * 10**9)
    >>> plan = plan_memory(split, gpu, Needs(device_bytes=10 * 10**9), pixels="auto")
    >>> plan.tier, plan.pixels, plan.num_resident
    ('split', 'ycc420', 2278645)
    """
    if pixels != "auto":
        return _plan(split, machine, needs, tier, pixels)
    rgb, ycc = (_plan(split, machine, needs, tier, kind) for kind in ("rgb", "ycc420"))
    wanted = MARGIN * (needs.images_per_s or 0) if needs else 0
    if ycc.tier == "stream" and not split.has_coded_planes:
        return rgb
    is_enough = rgb.supply >= wanted or rgb.supply >= ycc.supply
    return rgb if is_enough and (rgb.tier != "stream" or ycc.tier == "stream") else ycc


def _plan(split: SplitSize, machine: Machine, needs: Needs | None, wanted: Tier, pixels: Pixels) -> MemoryPlan:
    n, per_image = split.num_samples, image_bytes(split.shape, pixels)
    device_room, host_room = rooms(machine, needs)
    fit = min(n, device_room // per_image)
    free = machine.host_bytes if machine.device_bytes is None else machine.device_bytes
    if wanted != "auto":
        tier = wanted
    elif fit == n or n * per_image <= SMALL_SHARE * free:
        tier = "resident"
    elif machine.device_bytes is None or (n - fit) * per_image > host_room:
        tier = "stream"
    elif fit < MIN_RESIDENT * n and n * per_image <= host_room:
        tier = "pinned"
    else:
        tier = "split"
    return MemoryPlan(
        split=split,
        machine=machine,
        needs=needs,
        tier=tier,
        pixels="rgb" if tier == "stream" and not split.has_coded_planes else pixels,
        num_resident={"resident": n, "split": fit}.get(tier, 0),
        is_forced=wanted != "auto",
    )


def rooms(machine: Machine, needs: Needs | None) -> tuple[int, int]:
    """Bytes for pixels (on the device, in host memory); on a CPU both are the same memory."""
    on_cpu = machine.device_bytes is None
    free = machine.host_bytes if machine.device_bytes is None else machine.device_bytes
    reserved = int(UNKNOWN_SHARE * free)
    if needs is not None:
        reserved = needs.device_bytes + (needs.host_bytes if on_cpu else 0)
    host = int((1 - HOST_SHARE) * machine.host_bytes) - (needs.host_bytes if needs else 0)
    return max(0, free - reserved), max(0, host)
