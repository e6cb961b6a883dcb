"""How fast shards feed a device, and what holds it up: loader alone, augmentation alone, both overlapped."""

from __future__ import annotations

import itertools
import json
import math
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from mlpdata.augment.augment import Augment
from mlpdata.augment.batch import Batch
from mlpdata.augment.chroma import to_ycc420
from mlpdata.choices import CODECS
from mlpdata.errors import printable_lines
from mlpdata.loader import jpeg_batch
from mlpdata.loader.loader import Loader
from mlpdata.system.format import format_rate, plural
from mlpdata.system.threads import cores

ENOUGH = 20  # batches, of which one more or less changes a rate by 5%
WARM_UP = 5  # batches: compilation, the first blocks, the allocator
NEAR = 0.1  # rates that differ by less are the same for people


def bench(
    root: Path | str,
    *,
    split: str = "train",
    device: str = "auto",
    batch_size: int = 1024,
    res: int | None = None,
    seconds: float = 3.0,
    as_json: bool = False,
    **options,
) -> str:
    """Measure and report. res: of the augmented images, None for the stored one. options: the Loader's.

    Raises Error as the Loader does.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loader = Loader(root, split, batch_size=batch_size, device=device, infinite=True, **options)
    wait = torch.cuda.synchronize if loader.device.type == "cuda" else lambda: None
    res = res or loader.shape[0]
    augment = Augment(res=res, dtype="bfloat16", layout="flat", mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    jpeg_batch.batch_decoder()  # set up now, not while the clock runs
    stored = next(iter(loader))
    if loader.device.type == "cuda" or loader.pixels == "ycc420":  # there the augmentation gathers, and makes RGB
        loader.augment = cast(Augment, types.SimpleNamespace(apply=lambda batch, epoch, seed: batch))
    cache = loader.index.cache
    fetched_before = cache.fetched_bytes if cache else 0
    alone, *counts = rate(iter(loader), wait, seconds)
    fetches = cache is not None and cache.fetched_bytes > fetched_before
    if loader.pixels == "ycc420":
        luma, chroma = to_ycc420(stored.images)
        stored = Batch(luma, stored.labels, stored.ids, chroma=chroma)
    augmented, *more = rate((augment.apply(stored, epoch, 0) for epoch in itertools.count()), wait, seconds)
    counts += more
    loader.augment = augment
    both, *more = rate(iter(loader), wait, seconds)
    fewest = min(counts + more)

    codecs = {CODECS[c] for c in np.unique(loader.index.codec).tolist()}
    row = {
        "device": torch.cuda.get_device_name(loader.device) if loader.device.type == "cuda" else "cpu",
        "cores": cores(),
        "batch_size": batch_size,
        "shape": list(loader.shape),
        "codecs": sorted(codecs),
        "tier": loader.tier,
        "tier_reason": loader.tier_reason,
        "loader_images_per_s": round(alone),
        "augment_images_per_s": round(augmented),
        "overlapped_images_per_s": round(both),
        "bottleneck": bottleneck(loader, codecs, alone, augmented, both, fetches),
        "fewest_batches": fewest,
        "is_rough": fewest < ENOUGH,
    }
    if as_json:
        return json.dumps(row)
    per_image = int(torch.Size(loader.shape).numel())
    lines = [
        ("loader", f"{format_rate(alone):>21}, {alone * per_image / 1e9:.2f} GB/s of pixels"),
        ("augment", f"{format_rate(augmented):>21}: crop, flip, normalise to bfloat16 at {res} px"),
        ("both", f"{format_rate(both):>21}"),
        ("bottleneck", row["bottleneck"]),
        ("tier", loader.tier_reason),
        (
            "measured on",
            f"{row['device']}, {plural(row['cores'], 'core')}, batches of {batch_size}, {seconds:g} s each",
        ),
    ]
    if row["is_rough"]:
        enough = f"--seconds {math.ceil(seconds * ENOUGH / fewest)}, or a smaller --batch-size"
        lines.append(("warning", f"{plural(fewest, 'batch')} measured, too few for a reliable rate; use {enough}"))
    return printable_lines(f"{name:<12} {text}" for name, text in lines)


def rate(batches: Iterator[Batch], wait: Callable[[], object], seconds: float) -> tuple[float, int]:
    """(images a second of an endless generator, which is closed; batches measured).

    wait: until the device has done what it was given.
    """
    for _ in range(WARM_UP):
        next(batches)
    wait()
    started, n, num_batches = time.perf_counter(), 0, 0
    while time.perf_counter() - started < seconds or not num_batches:  # one at least, however slow the machine
        n, num_batches = n + len(next(batches).ids), num_batches + 1
    wait()
    seconds = max(1e-9, time.perf_counter() - started)
    batches.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    return n / seconds, num_batches


def bottleneck(
    loader: Loader, codecs: set[str], alone: float, augmented: float, both: float, fetches: bool = False
) -> str:
    """What to make faster, from three rates. fetches: whether tars were fetched from elsewhere meanwhile."""
    if fetches and loader.index.cache:
        feeding = f"fetching tars from {loader.index.cache.address}"
    elif loader.tier == "stream" and codecs != {"raw"}:
        feeding = f"decoding {' and '.join(sorted(codecs - {'raw'})).upper()} on {plural(loader.num_threads, 'thread')}"
        if codecs == {"jpg"}:
            decoder, what = jpeg_batch.batch_decoder()
            feeding += "" if decoder else f", image by image: {what}"
    elif loader.tier == "stream":
        feeding = "reading the files"
    elif loader.tier in ("split", "pinned"):
        feeding = "gathering in host memory and copying to the device"
    elif loader.device.type == "cuda":
        feeding = "choosing each batch's samples, on the host"
    else:
        feeding = "the gather in memory"
    if augmented < alone * (1 - NEAR):
        name = "the augmentation"
    elif alone < augmented * (1 - NEAR):
        name = f"the loader: {feeding}"
    else:
        name = f"loader ({feeding}) and augmentation alike"
    if both < (1 - 2 * NEAR) * min(alone, augmented):
        shared = "they share the cores" if loader.device.type == "cpu" else "they hold each other up"
        name += f"; together they reach {both / min(alone, augmented):.0%} of the slower one, as {shared}"
    return name
