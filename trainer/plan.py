"""What a recipe needs of a machine: memory of the training beside its pixels, images/s, and the plan for its data."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import torch

from mlpdata.errors import printable
from mlpdata.image.codec import FULL_CHROMA
from mlpdata.loader import jpeg_batch
from mlpdata.loader.memory_plan import Machine, MemoryPlan, Needs, SplitSize, image_bytes, plan_memory
from mlpdata.loader.reader import Reader
from mlpdata.loader.tiers import this_machine
from mlpdata.shards.open import open_split
from mlpdata.shards.tar_cache import TarCache
from mlpdata.system.disk import aligned, open_direct, preadv
from mlpdata.system.format import format_bytes, format_rate, format_seconds, plural
from trainer.data import DataSplits, find_splits
from trainer.flops import executed_flops, peak_flops
from trainer.model import MLP, build_on_meta, config_of, num_parameters
from trainer.recipe import Data, Model, Recipe, load_recipe
from trainer.world import device_of, precision_of

SHARE_OF_PEAK = 0.5  # that a well-fed device reaches in these models' products
CPU_FLOPS = 30e9  # of a core, in float32: half of what AVX2 does at 2 GHz
OPTIMIZER_BYTES = {"lion": 4, "sgd": 4, "adamw": 8}  # of a parameter
LOGIT_BYTES = {True: 0, False: 16}  # compiled or not: float32 logits, their softmax and gradients, if stored at all
PROBE_BYTES, PROBE_COPIES, PROBE_S = 16 << 20, 16, 0.3  # of a measurement of disk or bus
# On top of what is counted: fragmentation, work space of the products, and on a GPU the memory of the step's graph.
SPARE = {"cpu": 0.1, "gpu": 0.2}
SPARE_BYTES = 1_000_000_000  # the same, and batches on their way


def training_bytes(
    recipe: Recipe, model: MLP, config: Model, res: int, num_classes: int, world_size: int = 1, *, on_gpu: bool = True
) -> dict[str, int]:
    """Bytes on the device besides stored pixels, by what takes them. model: may be one on the meta device.

    Counts the tensors that live at the end of the forward pass, in the precision of the recipe; of the images also the
    copy that a CUDA graph reads. On an H200, the most that torch had reserved for steps of 16,384 images was 4.0 GB for
    B_6-Wi_512, 5.9 GB for B_12-Wi_512 and 10.3 GB for B_12-Wi_1024; this counts 4.9, 6.3 and 10.3.
    """
    train, parameters = recipe.train, num_parameters(model)
    narrow = 2 if train.precision in ("bf16", "fp16") else 4
    images = -(-train.batch_size // (world_size * train.accumulate))
    if config.kind == "b_mlp":  # of each block: input and norm (m), expanded before and after the activation (k m)
        hidden = config.depth * config.width * (2 + 2 * config.expansion)
    else:
        hidden = (config.depth - 1) * config.width * 3
    counted = {
        "weights, gradients, optimizer": parameters
        * (8 + OPTIMIZER_BYTES[recipe.optim.name] + (2 if narrow == 2 else 0) + (4 if train.ema else 0)),
        "activations": images * (hidden + config.width * config.expansion * 2) * narrow,
        "images of a step": images
        * 3
        * res
        * res
        * (1 + narrow * (2 if on_gpu and train.cuda_graphs is not False else 1)),
        "logits": images * num_classes * (2 * narrow + LOGIT_BYTES[train.compile]),
    }
    return counted | {"spare": int(SPARE["gpu" if on_gpu else "cpu"] * sum(counted.values())) + SPARE_BYTES}


def state_bytes(recipe: Recipe, model: MLP) -> int:
    """Bytes of the state that a resume needs: weights, what the optimizer keeps, and the average of the weights."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = num_parameters(model) * (8 if recipe.train.ema else 4)
    return weights + trained * OPTIMIZER_BYTES[recipe.optim.name]


def images_per_s(recipe: Recipe, model: MLP, machine: Machine) -> float | None:
    """What the model takes where data cost nothing, estimated; None for a GPU whose peak is not known."""
    if machine.device_bytes is None:
        peak = machine.cores * CPU_FLOPS
    else:
        known = peak_flops(machine.device, "tf32" if recipe.train.precision == "fp32" else recipe.train.precision)
        if known is None:
            return None
        peak = known * SHARE_OF_PEAK
    return peak / executed_flops(model, probe=recipe.train.probe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecipePlan:
    """Where a recipe's pixels go on a machine, and how long its epochs take.

    needs: of the training; parts: its bytes on the device, by name.
    """

    machine: Machine
    parts: dict[str, int]
    needs: Needs
    train: MemoryPlan
    evaluation: MemoryPlan | None
    num_epochs: int

    @property
    def all_needs(self) -> tuple[Needs | None, Needs | None]:
        """What the (training, held-out) loaders have to leave free."""
        return self.train.needs, self.evaluation.needs if self.evaluation else None

    def table(self) -> str:
        """What `mlpdata train RECIPE --plan` prints."""
        machine, train, wanted = self.machine, self.train, self.needs.images_per_s
        device = machine.host_bytes if machine.device_bytes is None else machine.device_bytes
        rows = [(machine.device, f"{format_bytes(device)} free{' in memory' if machine.device_bytes is None else ''}")]
        rows += [(f"  {name}", format_bytes(size)) for name, size in self.parts.items()]
        held = [("training", train)] + ([("held-out", self.evaluation)] if self.evaluation else [])
        for name, plan in held:
            share = f" ({1 - plan.host_share:.1%} of the images)"
            rows.append((f"  {name} pixels", format_bytes(plan.resident_bytes) + share))
        if machine.device_bytes is not None:
            rows.append(("host", f"{format_bytes(machine.host_bytes)} free"))
            rows += [(f"  {name} pixels, pinned", format_bytes(plan.pinned_bytes)) for name, plan in held]
        every = "read in every epoch" if train.tier == "stream" else "read once"
        rows.append(("files", f"{format_bytes(train.split.file_bytes)}, {every}"))
        if (fetched := train.split.fetched_share) is not None:
            first = machine.network * train.split.num_samples / train.split.file_bytes
            rows.append(("network", f"{machine.network / 1e6:,.0f} MB/s, {format_rate(first)} in the first epoch"))
            rows.append(("  kept on disk", f"{1 - fetched:.0%} of the tars; the others are fetched in every epoch"))
        rows.append(
            ("the model takes", f"{format_rate(wanted)} (estimated)" if wanted else "unknown: no peak is known")
        )
        for name, limit in train.limits.items():
            rows.append((f"  {name}", f"gives {format_rate(limit)}{_rate(train, name, wanted)}"))
        rows += [("tier", train.reason), ("bottleneck", train.bottleneck)]
        if wanted:
            seconds = self.num_epochs * train.split.num_samples / min(wanted, train.supply)
            rows.append(
                ("whole run", f"{plural(self.num_epochs, 'epoch')} in about {format_seconds(seconds)} (estimated)")
            )
        if self.needs.device_bytes > device:
            rows.append(("warning", "the training alone does not fit: raise train.accumulate, or take a smaller model"))
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)


def _rate(plan: MemoryPlan, name: str, wanted: float | None) -> str:
    """The bytes/s that a limit has to give for the images/s that are wanted."""
    if not wanted or name == "decoding":
        return ""
    per_image = plan.image_bytes * plan.host_share
    if name == "the disk":
        per_image = plan.split.file_bytes / plan.split.num_samples
    if name == "the network":
        per_image = (plan.split.fetched_share or 0) * plan.split.file_bytes / plan.split.num_samples
    return f"; {wanted * per_image / 1e9:.2f} GB/s needed"


def plan_recipe(
    recipe: Recipe,
    machine: Machine,
    splits: tuple[SplitSize, SplitSize | None],
    num_classes: int,
    res: int,
    world_size: int = 1,
) -> RecipePlan:
    """The plan of a recipe's (training, held-out) splits on a machine. num_classes, res: as the model sees them.

    Host memory for the held-out images is set aside first: they are few, and every evaluation needs them all.
    """
    config = config_of(recipe.model)
    model = build_on_meta(config, res, num_classes)
    on_cpu = machine.device_bytes is None
    parts = training_bytes(recipe, model, config, res, num_classes, world_size, on_gpu=not on_cpu)
    held_out = splits[1].num_samples * image_bytes(splits[1].shape, "rgb") if splits[1] else 0
    speed = images_per_s(recipe, model, machine)
    needs = Needs(device_bytes=sum(parts.values()), host_bytes=held_out, images_per_s=speed)
    tier, pixels = recipe.data.tier, recipe.data.pixels
    train, evaluation = plan_memory(splits[0], machine, needs, tier, pixels), None
    if splits[1]:
        left = dataclasses.replace(
            machine,
            device_bytes=None if machine.device_bytes is None else machine.device_bytes - train.resident_bytes,
            host_bytes=machine.host_bytes - (train.resident_bytes if on_cpu else train.pinned_bytes),
        )
        evaluation = plan_memory(splits[1], left, Needs(device_bytes=needs.device_bytes), tier, pixels)
    return RecipePlan(
        machine=machine, parts=parts, needs=needs, train=train, evaluation=evaluation, num_epochs=recipe.train.epochs
    )


def plan_splits(recipe: Recipe, splits: DataSplits, machine: Machine, world_size: int = 1) -> RecipePlan:
    """The plan of a recipe for shards that are there, by their manifest."""
    manifest = splits.manifest
    res = recipe.augment.res or manifest.res
    train = split_size(splits, splits.train_split, recipe.data)
    held_out = split_size(splits, splits.eval_split, recipe.data) if splits.eval_split else None
    return plan_recipe(recipe, machine, (train, held_out), manifest.num_classes, res, world_size)


def split_size(splits: DataSplits, split: str, data: Data) -> SplitSize:
    """How large a split of a shard directory is, by its manifest; whether JPEGs have planes, by a look at some."""
    manifest, streamed = splits.manifest, splits.tars
    info = manifest.splits[split]
    from_beton = bool(info.beton) and data.format != "tar" and streamed is None
    names = [info.beton] if info.beton and from_beton else info.tars
    codec = manifest.beton_codec if from_beton else manifest.tar_codec
    return SplitSize(
        num_samples=info.num_samples,
        shape=(manifest.res, manifest.res, 3),
        file_bytes=sum(manifest.files[name]["bytes"] for name in names),
        is_coded=codec != "raw",
        has_coded_planes=codec == "jpg" and data.pixels != "rgb" and _has_coded_planes(splits, split, from_beton),
        fetched_share=streamed.fetched_share if streamed else None,
    )


def _has_coded_planes(splits: DataSplits, split: str, from_beton: bool) -> bool:
    if splits.tars is not None:  # a look would fetch tars: go by what is usual
        return (splits.manifest.quality or 0) < FULL_CHROMA and jpeg_batch.batch_decoder()[0] is not None
    opened = open_split(splits.root, split, "beton" if from_beton else "tar")
    return Reader(opened.index, num_threads=1).has_coded_planes


def plan(recipe_path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> str:
    """What `mlpdata train RECIPE --plan` prints: the plan on this machine, with its rates measured. Raises Error."""
    recipe = load_recipe(recipe_path, list(overrides))
    device = device_of(recipe.train.device, "train.device")
    precision = precision_of(recipe.train.precision, device)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision))
    splits = find_splits(recipe, to_train=False)
    info = splits.manifest.splits[splits.train_split]
    machine, first = this_machine(device), info.beton or info.tars[0]
    if splits.tars is not None:
        first = info.tars[0]
        machine = dataclasses.replace(machine, network=_network_rate(splits.tars, first) or machine.network)
    machine = dataclasses.replace(machine, disk=_disk_rate(splits.root / first))
    if device.type == "cuda":
        machine = dataclasses.replace(machine, bus=_bus_rate(device))
    title, batch = f"{recipe.name}: {plural(info.num_samples, 'image')}", recipe.train.batch_size
    if info.num_samples < batch:
        title += f", fewer than one batch of {batch:,}: training takes a lower train.batch_size"
    return f"{printable(title)}\n{plan_splits(recipe, splits, machine).table()}"


def _disk_rate(path: Path) -> float:
    """Bytes/s of a file read from its disk, past the page cache where that can be; takes at most PROBE_S."""
    fd = open_direct(path, os.O_RDONLY)
    fd = os.open(path, os.O_RDONLY) if fd is None else fd
    try:
        buffer, done, started = aligned(PROBE_BYTES), 0, time.perf_counter()
        while time.perf_counter() - started < PROBE_S:
            n = preadv(fd, [buffer], done)
            done += n
            if n < PROBE_BYTES:
                break
        return max(1, done) / max(1e-9, time.perf_counter() - started)
    finally:
        os.close(fd)


def _network_rate(tars: TarCache, name: str) -> float | None:
    """Bytes/s of one tar that is fetched; None where it is here already."""
    started = time.perf_counter()
    os.close(tars.open(name))
    return tars.fetched_bytes / max(1e-9, time.perf_counter() - started) or None


def _bus_rate(device: torch.device) -> float:
    """Bytes/s of copies from pinned memory to the device."""
    source = torch.empty(PROBE_BYTES, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)
    target.copy_(source)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(PROBE_COPIES):
        target.copy_(source, non_blocking=True)
    torch.cuda.synchronize(device)
    return PROBE_COPIES * PROBE_BYTES / max(1e-9, time.perf_counter() - started)
