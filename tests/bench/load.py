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

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from pathlib import Path

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


def race(contestants: dict, seconds: float, slices: int) -> dict:
    """{name: {images_per_s: median, min, max, cpu_us}} of contestants that take turns."""
    running = {}
    for name, start in contestants.items():
        try:
            running[name] = start()
            for _ in range(6):  # compilation, thread start, the first epoch's set-up
                next(running[name])
        except ImportError as e:
            if name.startswith("ours"):
                raise
            running.pop(name, None)
            print(f"{name} left out: {e}", file=sys.stderr)
    rates = {name: [] for name in running}
    cpu = {name: [] for name in running}
    for _ in range(slices):
        for name, batches in running.items():
            time.sleep(0.1)  # the threads of the others fill their queues and rest
            next(batches)
            started, used, n = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - started < seconds / slices:
                n += next(batches)
            rates[name].append(n / (time.perf_counter() - started))
            cpu[name].append((time.process_time() - used) / n * 1e6)
    for batches in running.values():
        batches.close()
    return {"rates": rates, "cpu": cpu}


def row(group: str, result: dict, against: list[str], args) -> dict:
    rates = {name: np.array(r) for name, r in result["rates"].items()}
    out = {"bench": "load", "group": group, "batch": BATCH, "slices": args.slices, "seconds_each": args.seconds}
    out |= {"cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__}
    out["jpeg_batches"] = jpeg_batch.batch_decoder()[1]
    for package in ("ffcv", "webdataset", "simplejpeg", "numpy"):
        try:
            out[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            out[package] = None
    out["images_per_s"] = {
        name: {"median": round(float(np.median(r))), "min": round(r.min()), "max": round(r.max()),
               "cpu_us_per_image": round(float(np.median(result["cpu"][name])), 2)}
        for name, r in rates.items()
    }  # fmt: skip
    # Beside the median of neighbouring slices, that of the best slices: on a busy machine the undisturbed ones.
    out["ratio"] = {
        f"{name} / {peer}": [
            round(float(np.median(rates[name] / rates[peer])), 3),
            round(float(rates[name].max() / rates[peer].max()), 3),
        ]
        for peer in against
        for name in rates
        if peer in rates and name.startswith("ours")
    }
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        },
        "slow": {"ours stream": lambda: ours(jpg, tier="stream"), "webdataset": lambda: webdataset_loader(jpg)},
    }
    if args.folder:
        if not args.folder.exists():
            make_folder(jpg, args.folder)
        groups["slow"]["folder"] = lambda: folder_loader(args.folder)
    for group in args.groups:
        result = race(groups[group], args.seconds, args.slices)
        print(json.dumps(row(group, result, [n for n in groups[group] if not n.startswith("ours")], args)), flush=True)


if __name__ == "__main__":
    main()
