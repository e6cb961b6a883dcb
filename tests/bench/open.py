"""Open an index of ImageNet-21k's size: a sparse beton of 11.8 million raw samples at 64 px, and a tar index as long.

Usage: python tests/bench/open.py FOLDER        needs 1.1 GB there; the pixels are holes in the file

The metadata are real, the payloads are not: opening must not touch them. Each opening runs in a process of its own, so
that its peak memory is its own. The first opening from tars (`first_s`) reads their index and leaves it in a cache,
here one of the benchmark's own; the median is that of the openings after it. Target: under 1 s and under 1 GB. Prints
one JSON row.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata.shards import beton
from mlpdata.shards.manifest import Manifest, SplitInfo, index_path, tar_path

N, RES, CLASSES, SHARD = 11_801_680, 64, 11_230, 10_000

OPEN = """
import json, resource, sys, time
import numpy, pyarrow.parquet, mlpdata.shards.tar, mlpdata.shards.beton          # imports are not the opening
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
from mlpdata.shards.open import open_split
started, cpu = time.perf_counter(), time.process_time()
opened = open_split(sys.argv[1], "train", sys.argv[2])
seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(opened.index) == int(sys.argv[3])
print(json.dumps({"s": seconds, "cpu_s": cpu, "peak_mb": peak / 1e3, "before_mb": before / 1e3}))
"""


def make(root: Path) -> None:
    """A finished shard directory whose files have the right sizes and headers and no pixels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, N)
    path = root / "train.beton"
    sizes, side = np.broadcast_to(RES * RES * 3, N), np.broadcast_to(RES, N)
    plan = beton.layout(sizes)
    beton.create(path, plan, "raw", sizes, side, side, labels)
    lengths = [min(SHARD, N - at) for at in range(0, N, SHARD)]
    tars = [tar_path(root, "train", k) for k in range(len(lengths))]
    from mlpdata.shards.index import SCHEMA

    with pq.ParquetWriter(index_path(root, "train"), SCHEMA, compression="zstd") as writer:
        for k, (tar, n) in enumerate(zip(tars, lengths, strict=True)):
            nbytes = rng.integers(1500, 3500, n)
            offset = np.cumsum(nbytes + 2048) - nbytes
            with open(tar, "wb") as f:
                f.truncate(int(offset[-1] + nbytes[-1] + 2048))
            first = k * SHARD
            keys = [f"n{labels[first + i]:08d}_{first + i}" for i in range(n)]
            columns = {
                "key": keys, "label": labels[first : first + n], "source": [f"{key[:9]}/{key}.JPEG" for key in keys],
                "source_width": rng.integers(100, 600, n), "source_height": rng.integers(100, 600, n),
                "width": np.full(n, RES), "height": np.full(n, RES), "file": [tar.name] * n, "offset": offset,
                "bytes": nbytes, "codec": ["jpg"] * n, "digest": rng.integers(0, 1 << 63, n),
            }  # fmt: skip
            writer.write_table(pa.table([pa.array(columns[f.name]).cast(f.type) for f in SCHEMA], SCHEMA))
    counts = np.bincount(labels, minlength=CLASSES).tolist()
    info = SplitInfo(num_samples=N, num_skipped=0, class_counts=counts, beton=path.name, tars=[t.name for t in tars],
                     tar_lengths=lengths, index=index_path(root, "train").name)  # fmt: skip
    files = {}
    for path in root.iterdir():
        with open(path, "rb") as f:  # of the index alone is the checksum asked
            digest = hashlib.file_digest(f, "sha256").hexdigest() if path.suffix == ".parquet" else "0" * 64
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    Manifest(
        format_version=1, dataset="bench", release="", source_files={}, source_filter={}, num_classes=CLASSES,
        classes_sha256="0" * 64, res=RES, resize="squash", filter="box", formats=["beton", "tar"], codec="auto",
        beton_codec="raw", tar_codec="jpg", quality=90, seed=0, shard_size=SHARD, image_library={}, fidelity=None,
        mean=[0.5] * 3, std=[0.25] * 3, splits={"train": info}, files=files, tool_version="", command="",
    ).save(root)  # fmt: skip


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    root = args.folder / "sparse-in21k"
    if not (root / "manifest.json").exists():
        root.mkdir(parents=True, exist_ok=True)
        make(root)
    row = {"bench": "open", "samples": N, **harness.machine("numpy", "pyarrow")}
    for format_ in ("beton", "tar"):
        command = [sys.executable, "-c", OPEN, str(root), format_, str(N)]
        with tempfile.TemporaryDirectory(dir=args.folder) as cache:
            environment = {**os.environ, "MLPDATA_HOME": cache}
            runs = [
                json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
                for _ in range(args.runs + 1)
            ]
        seconds = harness.spread((r["s"] for r in runs[1:]), 4)
        row[format_] = {
            "first_s": round(runs[0]["s"], 4),
            **{f"{name}_s": value for name, value in seconds.items()},
            "cpu_s": min(r["cpu_s"] for r in runs), "peak_mb": max(r["peak_mb"] for r in runs),
            "apparent_bytes": sum(p.stat().st_size for p in root.glob(f"train*.{format_}")),
        }  # fmt: skip
    harness.report(row)


if __name__ == "__main__":
    main()
