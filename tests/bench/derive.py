"""Deriving a shard directory against copying the same bytes: whole commands, taking turns, everything synced.

Usage: python tests/bench/derive.py FOLDER [DIRECTORY ...] [--images 100000] [--turns 3]

Without a DIRECTORY one is made in FOLDER first: so many JPEGs of 64 px, as raw beton and JPEG tars. Contestants:

- subset: `mlpdata subset` of everything: every byte read and verified, written, hashed and synced
- seed: the same in another order, for which payloads are copied twice
- merge: two halves put together again, where one directory alone was made
- cp: `cp -r` and `sync` of the files

Prints a row a directory: seconds and seconds of processor time, and the median ratios to cp of the same turn. On a
machine that others use, the processor time is what can be compared.
"""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import harness
import numpy as np

CLASSES = 10


def make_archive(folder: Path, n: int) -> None:
    """Tars of 10,000 JPEGs of 64 px: coarse random pictures with some grain."""
    import simplejpeg

    rng = np.random.default_rng(0)
    grain = rng.integers(-12, 13, (64, 64, 3))
    folder.mkdir()
    for first in range(0, n, 10_000):
        with tarfile.open(folder / f"train-{first // 10_000:05d}.tar", "w") as tar:
            for i in range(first, min(n, first + 10_000)):
                coarse = rng.integers(20, 236, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
                pixels = np.ascontiguousarray((coarse + grain).clip(0, 255).astype(np.uint8))
                jpeg = simplejpeg.encode_jpeg(pixels, quality=90, colorsubsampling="420")
                for suffix, data in (("jpg", jpeg), ("cls", b"%d" % (i % CLASSES))):
                    member = tarfile.TarInfo(f"{i:08d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def mlpdata(*words: object) -> None:
    subprocess.run(
        [sys.executable, "-m", "mlpdata.cli", *map(str, words), "--quiet"], check=True, stdout=subprocess.DEVNULL
    )


def copy(source: Path, out: Path) -> None:
    subprocess.run(["cp", "-r", source, out], check=True)
    subprocess.run(["sync", *out.iterdir()], check=True)


def timed(run) -> dict[str, float]:
    """Seconds, and seconds of processor time of what `run` starts."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run()
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"s": seconds, "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure(directory: Path, halves: list[Path], folder: Path, turns: int) -> None:
    out = folder / "out"
    contestants = {
        "subset": lambda: mlpdata("subset", directory, "--out", out),
        "seed": lambda: mlpdata("subset", directory, "--seed", 1, "--out", out),
        "cp": lambda: copy(directory, out),
    }
    if halves:
        contestants["merge"] = lambda: mlpdata("merge", *halves, "--classes", "union", "--out", out)

    def turn(run) -> dict[str, float]:
        os.sync()
        row = timed(run)
        shutil.rmtree(out)
        return row

    found = harness.take_turns(contestants, turn, turns)
    num_bytes = sum(path.stat().st_size for path in directory.iterdir())
    row: dict[str, object] = {"bench": "derive", "directory": directory.name, "mb": num_bytes // 1_000_000}
    for name, rows in found.items():
        row[name] = {key: harness.spread((r[key] for r in rows), 2) for key in ("s", "cpu_s")}
        if name != "cp":
            for key in ("s", "cpu_s"):
                row[f"{name}_{key}_to_cp"] = harness.median_ratio(
                    (r[key] for r in rows), (r[key] for r in found["cp"]), 2
                )
    harness.report({**row, **harness.machine("numpy", "pyarrow")})


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("directories", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    directories, halves = args.directories, []
    if not directories:
        directory = args.folder / "made-64"
        if not directory.exists():
            make_archive(args.folder / "archive", args.images)
            mlpdata("convert", "wds", "--source", args.folder / "archive", "--res", 64, "--out", directory)
            shutil.rmtree(args.folder / "archive")
        names = [line.split("\t")[0] for line in (directory / "classes.txt").read_text().splitlines()]
        directories = [directory]
        for name, some in (("half-a", names[: CLASSES // 2]), ("half-b", names[CLASSES // 2 :])):
            halves.append(args.folder / name)
            mlpdata("subset", directory, "--classes", ",".join(some), "--out", halves[-1])
    for directory in directories:
        measure(directory, halves, args.folder, args.turns)


if __name__ == "__main__":
    main()
