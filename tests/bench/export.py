"""Every export of a shard directory, beside a copy of the bytes that it wrote, and back again.

    python tests/bench/export.py shards/cifar10-32 --turns 3

- ours: `mlpdata export`, the whole command, whose files are synced at its end
- copy: `cp -r EXPORT COPY` and a sync of its files, or of the whole disk where they are thousands, as ours does it

With --back, the exports that `mlpdata convert` reads go through it again, the npz through numpy, and `mlpdata verify`
reads shards: the number of samples, the labels and the digests of all pixels have to be those of the directory. Prints
one JSON row a format.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
import xxhash

from mlpdata.choices import EXPORTS, FORMATS
from mlpdata.shards import index
from mlpdata.shards.manifest import Manifest

BACK = {"folder": "folder", "parquet": "hub"}  # what `convert` calls them


def mlpdata(*words: object) -> None:
    quiet = [] if words[0] == "verify" else ["--quiet"]
    command = [sys.executable, "-m", "mlpdata.cli", *map(str, words), *quiet]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")


def seconds(work, *words: object) -> tuple[float, float]:
    """(seconds, seconds of processor time of the processes it started): on a busy machine only the latter compare."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    work(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - started, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", source, target], check=True)
    files = [path for path in target.rglob("*") if path.is_file()]
    subprocess.run(["sync", *files] if len(files) < 1000 else ["sync"], check=True)


def content(root: Path) -> dict[str, np.ndarray]:
    """split -> (N, 2) label and digest of the pixels of every sample, sorted."""
    manifest, found = Manifest.load(root), {}
    for split in manifest.splits:
        columns = index.columns(root, manifest, split, ["label", "digest"])
        found[split] = rows(columns["label"], columns["digest"])
    return found


def rows(labels: np.ndarray, digests: np.ndarray) -> np.ndarray:
    table = np.stack([np.asarray(labels).astype(np.uint64), np.asarray(digests).astype(np.uint64)], 1)
    return table[np.lexsort((table[:, 1], table[:, 0]))]


def read_back(to: str, out: Path, folder: Path, res: int) -> dict[str, np.ndarray] | None:
    """The content of an export after the way back; None where there is none here."""
    if to == "npz":
        found = {}
        for path in out.glob("*.npz"):
            with np.load(path) as data:
                digests = [xxhash.xxh3_64_intdigest(image.tobytes()) for image in data["images"]]
                found[path.stem] = rows(data["labels"], np.array(digests, np.uint64))
        return found
    if to in FORMATS["both"]:
        mlpdata("verify", out)
        return content(out)
    if to not in BACK:
        return None
    mlpdata("convert", BACK[to], "--source", out, "--res", res, "--out", folder / "back")
    return content(folder / "back")


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--to", nargs="+", choices=EXPORTS, default=list(EXPORTS))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write  [default: a temporary folder]")
    parser.add_argument("--back", action="store_true")
    args = parser.parse_args()
    manifest, original = Manifest.load(args.directory), content(args.directory)
    samples = sum(info.num_samples for info in manifest.splits.values())
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
    for to in args.to:
        if (to,) == tuple(manifest.formats):
            continue  # it would be a copy of itself
        ours, copies = [], []
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            out, target = Path(name) / "out", Path(name) / "copy"
            for turn in range(args.turns):
                ours.append(seconds(mlpdata, "export", args.directory, "--to", to, "-o", out))
                copies.append(seconds(copy, out, target))
                shutil.rmtree(target)
                num_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
                if turn < args.turns - 1:
                    shutil.rmtree(out)
            back = read_back(to, out, Path(name), manifest.res) if args.back else None
        row = {"benchmark": "export", "to": to, "directory": args.directory.name, "samples": samples}
        row["bytes"] = num_bytes
        for clock, name in ((0, "s"), (1, "cpu_s")):
            times, theirs = [t[clock] for t in ours], [t[clock] for t in copies]
            row |= {f"ours_{name}": harness.spread(times, 2), f"copy_{name}": harness.spread(theirs, 2)}
            row[f"ours_over_copy_{name}"] = harness.median_ratio(times, theirs)
        row["images_per_s"] = round(samples / harness.spread(t[0] for t in ours)["median"])
        if back is not None:
            row["back"] = {split: len(table) for split, table in back.items()}
            row["equal"] = back.keys() == original.keys() and all(
                np.array_equal(table, original[split]) for split, table in back.items()
            )
        harness.report({**row, **harness.machine("numpy", "pyarrow")})


if __name__ == "__main__":
    main()
