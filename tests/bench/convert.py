"""Conversion against its ceiling and against ffcv's writer, on the same images, in one run with interleaved repeats.

    python tests/bench/convert.py imagenet21k photos.tar --ffcv-python .venv-interop/bin/python

- ours: the whole `mlpdata convert` command as a subprocess, start-up and both formats included; the archive was read
  once before, for the others' images are in memory too
- ceiling: decode at reduced scale and box resize in memory, one thread a core, nothing read and nothing written
- ffcv: `DatasetWriter`, as many workers as cores, raw and JPEG; only its writing is timed, and the images lie ready in
  one flat file, so that reading an archive is not held against it

Prints one JSON row. `per_core` is images a second of one core's time. Ours includes syncing every byte to the disk, as
a directory that is called finished must survive the loss of power; `synced` is ffcv's rate when its file is synced too.
make_archive.py makes archives that are large enough.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness
import numpy as np
from harness import CORES
from PIL import Image

BLOCK = 64  # images a thread takes at a time


class FlatFile:
    """The images end to end in `images.bin`; `images.npy` says where. As ffcv's data set it yields (image, label)."""

    def __init__(self, folder: Path):
        self.rows = np.load(folder / "images.npy")  # (N, 3) int64: offset, bytes, label
        self.path, self.file = folder / "images.bin", None

    def __len__(self) -> int:
        return len(self.rows)

    def data(self, i: int) -> bytes:
        if self.file is None:
            self.file = os.open(self.path, os.O_RDONLY)
        offset, size, _ = self.rows[i].tolist()
        return os.pread(self.file, size, offset)

    def __getitem__(self, i: int):
        return Image.open(io.BytesIO(self.data(i))).convert("RGB"), int(self.rows[i, 2])


def lay_out(dataset: str, source: str, res: int, folder: Path) -> int:
    """Write the flat file. Returns the number of images."""
    from mlpdata import datasets
    from mlpdata.sources import Sample

    archive = datasets.open_source(datasets.get(dataset), source, res=res, seed=0)
    rows, at = [], 0
    with open(folder / "images.bin", "wb") as f:
        for unit in archive.units():
            for sample in archive.samples(unit):
                if isinstance(sample, Sample):
                    rows.append((at, len(sample.data), sample.label))
                    at += f.write(sample.data)
    np.save(folder / "images.npy", np.array(rows, np.int64))
    return len(rows)


class Clock:
    """Seconds by the wall, and of all cores together: the second also tells on a machine that others use."""

    def __init__(self):
        self._start = self._now()

    @staticmethod
    def _now() -> np.ndarray:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return np.array([time.perf_counter(), sum(u.ru_utime + u.ru_stime for u in used)])

    def read(self) -> list[float]:
        return (self._now() - self._start).tolist()


def ours(dataset: str, source: str, res: int, folder: Path) -> list[float]:
    out = folder / "out"
    for path in [source] if os.path.isfile(source) else []:
        with open(path, "rb", buffering=0) as f:
            while f.read(1 << 24):
                pass
    command = [sys.executable, "-m", "mlpdata.cli", "convert", dataset, "--source", source, "--res", str(res)]
    clock = Clock()
    subprocess.run([*command, "--out", out, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    seconds = clock.read()
    shutil.rmtree(out)
    return seconds


def ceiling(images: FlatFile, res: int) -> list[float]:
    import simplejpeg

    data = [images.data(i) for i in range(len(images))]

    def work(start: int) -> None:
        for jpeg in data[start : start + BLOCK]:
            try:
                height, width, _, _ = simplejpeg.decode_jpeg_header(jpeg)
                least = 0 if (height, width) == (res, res) else 2 * res
                pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_width=least, min_height=least)
            except ValueError:
                continue  # CMYK and the like
            if pixels.shape[:2] != (res, res):
                np.asarray(Image.fromarray(pixels).resize((res, res), Image.Resampling.BOX))

    clock = Clock()
    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(work, range(0, len(data), BLOCK)))
    return clock.read()


def ffcv(python: str, mode: str, res: int, folder: Path) -> list[float]:
    words = [python, __file__, "--peer", mode, "--res", str(res), "--folder", str(folder)]
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ffcv_role(mode: str, res: int, folder: Path) -> None:
    """Runs in ffcv's own environment; prints the seconds its writer took."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    image = RGBImageField(write_mode=mode if mode == "raw" else "proportion", max_resolution=res)
    image.proportion = 1.0  # upstream reads this name and sets another
    out = folder / "ffcv.beton"
    writer = DatasetWriter(str(out), {"image": image, "label": IntField()}, num_workers=CORES)
    images = FlatFile(folder)
    clock = Clock()
    writer.from_indexed_dataset(images, chunksize=100)
    seconds, _ = clock.read()
    with open(out, "rb") as f:
        os.fsync(f.fileno())
    synced, _ = clock.read()
    for process in multiprocessing.active_children():
        process.join()  # only then is its time counted
    print(json.dumps([seconds, clock.read()[1], synced]))
    out.unlink()


def summary(n: int, seconds: list[list[float]]) -> dict[str, float]:
    row = harness.spread(n / wall for wall, *_ in seconds)
    for i, k in enumerate(["per_core", "synced"][: len(seconds[0]) - 1], 1):
        row[k] = round(n / statistics.median(s[i] for s in seconds))
    return row


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("source", nargs="?")
    parser.add_argument("--res", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for what is written in passing  [default: the temp folder]")
    parser.add_argument("--ffcv-python", help="interpreter of an environment with ffcv; without it ffcv is left out")
    parser.add_argument("--peer", choices=["raw", "jpg"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        ffcv_role(args.peer, args.res, args.folder)
        return
    if not args.source:
        parser.error("which data set, and where is its archive?")

    from mlpdata import image

    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-convert-") as name:
        folder = Path(name)
        n = lay_out(args.dataset, args.source, args.res, folder)
        images = FlatFile(folder)
        runs = {
            "ours": lambda: ours(args.dataset, args.source, args.res, folder),
            "ceiling": lambda: ceiling(images, args.res),
        }
        if args.ffcv_python:
            runs |= {f"ffcv_{m}": lambda m=m: ffcv(args.ffcv_python, m, args.res, folder) for m in ("raw", "jpg")}
        seconds: dict[str, list[list[float]]] = {k: [] for k in runs}
        for _ in range(args.repeats):
            for k, run in runs.items():
                os.sync()  # nobody pays for what the one before left to be written
                seconds[k].append(run())
    row = {"bench": "convert", "dataset": args.dataset, "images": n, "res": args.res, **harness.machine("mlpdata")}
    row |= {"unit": "images/s", **{k: summary(n, s) for k, s in seconds.items()}}
    for k in seconds:
        if k != "ours":
            row[f"ratio_to_{k}"] = round(row["ours"]["median"] / row[k]["median"], 3)
            if "synced" in row[k]:
                row[f"ratio_to_{k}_synced"] = round(row["ours"]["median"] / row[k]["synced"], 3)
            row[f"ratio_to_{k}_per_core"] = round(row["ours"]["per_core"] / row[k]["per_core"], 3)
    row["versions"] = image.library_versions()
    harness.report(row)


if __name__ == "__main__":
    main()
