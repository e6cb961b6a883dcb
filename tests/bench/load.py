"""Feed batches: ours beside ffcv's Loader, webdataset and a folder with a DataLoader, on the same images.

Usage: python tests/bench/load.py SHARDS JPEG_SHARDS [--folder DIR]
       SHARDS:       directory with a raw beton and tars      JPEG_SHARDS: directory with a JPEG beton and JPEG tars
       --folder:     class sub-folders of the same images, made from the JPEG tars where it does not exist

Random order, batches of 1,024, uint8 on the CPU; the page cache is warm. Contestants take turns in short slices, so
that a machine that slows down slows all of them; a rate is the median of the slices, a ratio the median of the ratios
of neighbouring slices. Everything runs in this process, in an environment that has the peers beside our dependencies
(simplejpeg, deflate, rapidgzip, requests, numba); a peer that is missing is left out and said. The ceiling is
torch.index_select of the same bytes into a buffer that is there.
Prints one JSON row a group: raw, jpg, and the slow ways.
"""

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import numpy as np
import torch

import mlpdata
from mlpdata.loader import jpeg_batch

BATCH = 1024


def endless(loader) -> Iterator[int]:
    """The sizes of a loader's batches, epoch after epoch."""
    while True:
        for batch in loader:
            yield len(batch[0]) if isinstance(batch, (tuple, list)) else len(batch.ids)


def ours(root, **options) -> Iterator[int]:
    return endless(mlpdata.load(root, "train", BATCH, **options))


def planes(root, **options) -> Iterator[int]:
    """Batches of luma and chroma, as the augmentation takes them; without it a Loader turns them into RGB."""
    loader = mlpdata.load(root, "train", BATCH, pixels="ycc420", tier="stream", **options)
    assert loader.pixels == "ycc420", loader.tier_reason
    for epoch in itertools.count():
        steps = loader._steps(epoch, loader._tier.blocks, range(len(loader)))
        for batch in loader._tier.batches(steps):
            yield len(batch.ids)


def ceiling(root) -> Iterator[int]:
    pixels = torch.tensor(mlpdata.load(root, "train", BATCH).arrays()[0])
    out = torch.empty((BATCH, *pixels.shape[1:]), dtype=torch.uint8)
    while True:
        order = torch.randperm(len(pixels))
        for at in range(0, len(order) - BATCH + 1, BATCH):
            torch.index_select(pixels, 0, order[at : at + BATCH], out=out)
            yield BATCH


def ffcv_loader(path) -> Iterator[int]:
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    pipelines = {"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]}
    return endless(Loader(str(path), BATCH, num_workers=os.cpu_count(), order=OrderOption.RANDOM, os_cache=True,
                          drop_last=False, pipelines=pipelines))  # fmt: skip


def webdataset_loader(root) -> Iterator[int]:
    import webdataset as wds

    urls = sorted(str(p) for p in Path(root).glob("train-*.tar"))
    data = (
        wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
        .shuffle(BATCH)
        .decode("rgb8")
        .to_tuple("jpg", "cls")
    )
    return endless(wds.WebLoader(data.batched(BATCH), batch_size=None, num_workers=min(len(urls), os.cpu_count())))


class Folder(torch.utils.data.Dataset):
    def __init__(self, root):
        self.files = [(p, k) for k, d in enumerate(sorted(Path(root).iterdir())) for p in sorted(d.iterdir())]

    def __len__(self):
        return len(self.files)

    def __getitem__(self, i):
        from PIL import Image

        path, label = self.files[i]
        return torch.from_numpy(np.array(Image.open(path).convert("RGB"))), label


def folder_loader(root) -> Iterator[int]:
    return endless(torch.utils.data.DataLoader(Folder(root), BATCH, shuffle=True, num_workers=os.cpu_count()))


def make_folder(shards, root) -> None:
    """The JPEGs of the train tars as class sub-folders."""
    loader = mlpdata.load(shards, "train", BATCH, format="tar", tier="stream")
    index = loader.index
    maps = [np.memmap(path, np.uint8, "r") for path in index.files]
    for i in range(len(index)):
        folder = root / f"{int(index.label[i]):05d}"
        folder.mkdir(parents=True, exist_ok=True)
        start = int(index.offset[i])
        (folder / f"{i}.jpg").write_bytes(maps[int(index.file[i])][start : start + int(index.num_bytes[i])].tobytes())


def race(contestants: dict, seconds: float, slices: int) -> tuple[dict, dict]:
    """Images a second, and CPU microseconds an image, of each contestant, a value a slice: {name: array} twice."""

    def warm_up(batches) -> None:  # compilation, thread start, the set-up of the first epoch
        for _ in range(6):
            next(batches)

    def turn(batches) -> tuple[float, float]:
        time.sleep(0.1)  # the threads of the others fill their queues and rest
        next(batches)
        start, used, n = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - start < seconds / slices:
            n += next(batches)
        return n / (time.perf_counter() - start), (time.process_time() - used) / n * 1e6

    running = harness.started(contestants, warm_up)
    results = harness.take_turns(running, turn, slices)
    for batches in running.values():
        batches.close()
    rates, cpu = ({name: np.array(turns)[:, k] for name, turns in results.items()} for k in (0, 1))
    return rates, cpu


def row(group: str, rates: dict, cpu: dict, against: list[str], args) -> dict:
    """One JSON row. A ratio is [the median of neighbouring slices, that of the best slices]: on a busy machine the
    best slices are the undisturbed ones."""
    return {
        "bench": "load",
        "group": group,
        "batch": BATCH,
        "slices": args.slices,
        "seconds_each": args.seconds,
        **harness.machine("torch", "ffcv", "webdataset", "simplejpeg", "numpy"),
        "jpeg_batches": jpeg_batch.batch_decoder()[1],
        "images_per_s": {
            name: harness.spread(r) | {"cpu_us_per_image": round(float(np.median(cpu[name])), 2)}
            for name, r in rates.items()
        },
        "ratio": {
            f"{name} / {peer}": [
                harness.median_ratio(rates[name], rates[peer]),
                round(float(rates[name].max() / rates[peer].max()), 3),
            ]
            for peer in against
            for name in rates
            if peer in rates and name.startswith("ours")
        },
    }


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("jpeg_shards", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--seconds", type=float, default=6, help="for each contestant")
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--groups", nargs="+", default=["raw", "jpg", "slow"])
    args = parser.parse_args()
    raw, jpg = args.shards, args.jpeg_shards
    groups = {
        "raw": {
            "ours resident": lambda: ours(raw, tier="resident"),
            "index_select": lambda: ceiling(raw),
            "ffcv": lambda: ffcv_loader(raw / "train.beton"),
            "ours pinned": lambda: ours(raw, tier="pinned"),
            "ours stream": lambda: ours(raw, tier="stream"),
            "ours stream tar": lambda: ours(raw, tier="stream", format="tar"),
        },
        "jpg": {
            "ours stream": lambda: ours(jpg, format="beton", tier="stream"),
            "ffcv": lambda: ffcv_loader(jpg / "train.beton"),
            "ours stream tar": lambda: ours(jpg, format="tar", tier="stream"),
            "ours planes": lambda: planes(jpg, format="beton"),
            "ours planes tar": lambda: planes(jpg, format="tar"),
        },
        "slow": {"ours stream": lambda: ours(jpg, tier="stream"), "webdataset": lambda: webdataset_loader(jpg)},
    }
    if args.folder:
        if not args.folder.exists():
            make_folder(jpg, args.folder)
        groups["slow"]["folder"] = lambda: folder_loader(args.folder)
    for group in args.groups:
        peers = [name for name in groups[group] if not name.startswith("ours")]
        harness.report(row(group, *race(groups[group], args.seconds, args.slices), peers, args))


if __name__ == "__main__":
    main()
