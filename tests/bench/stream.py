"""Stream a cold file that is larger than the memory the process may have, beside `dd` on the same file.

Usage: python tests/bench/stream.py FOLDER [--gigabytes 3] [--limit-mb 1200]

The file is a raw beton at 64 px. Before every run its pages are dropped from the cache (POSIX_FADV_DONTNEED after a
sync). Our process, and dd, run under a memory limit of a control group of their own, page cache included, where the
system lets us make one (as root); the row says whether. Ours is one epoch in batches of 1,024, from the first batch
asked for to the last, in a process of its own; the tier is the one it chooses. Prints one JSON row; target: 80% of dd.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import harness
import numpy as np

from mlpdata.shards import beton
from mlpdata.system import disk

SIZE = 64 * 64 * 3
OURS = """
import json, resource, sys, time
import mlpdata
loader = mlpdata.load(sys.argv[1], batch_size=1024)
started, n, check = time.perf_counter(), 0, 0
for batch in loader:
    n += len(batch.ids)
    check += int(batch.images[0, 0, 0, 0])
seconds = time.perf_counter() - started
assert n == loader.num_samples
print(json.dumps({"s": seconds, "reason": loader.tier_reason, "tier": loader.tier,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""


def make(path: Path, gigabytes: float) -> None:
    n = int(gigabytes * 1e9) // SIZE
    sizes, side = np.full(n, SIZE), np.full(n, 64)
    plan = beton.layout(sizes)
    tmp = path.with_suffix(".tmp")
    beton.create(tmp, plan, "raw", sizes, side, side, np.arange(n) % 1000)
    pixels = np.random.default_rng(0).integers(0, 256, (4096, SIZE), dtype=np.uint8)
    with open(tmp, "r+b") as f:
        for at in range(0, n, 4096):
            ptrs = plan.ptrs[at : at + 4096]
            beton.write(partial(disk.pwrite, f.fileno()), ptrs, pixels[: len(ptrs)])
        os.fsync(f.fileno())
    tmp.rename(path)


def evict(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@contextmanager
def memory_limit(megabytes: int):
    """A control group with a memory limit, or None where none can be made."""
    v1 = Path("/sys/fs/cgroup/memory")
    base, name = (v1, "memory.limit_in_bytes") if v1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = base / f"mlpdata-bench-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(megabytes * 1_000_000))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def run(command: list[str], group: Path | None) -> tuple[float, str]:
    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=enter)
    return time.perf_counter() - started, done.stdout


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=3)
    parser.add_argument("--limit-mb", type=int, default=1200)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    path = args.folder / f"stream-{args.gigabytes:g}.beton"
    if not path.exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        make(path, args.gigabytes)
    size = path.stat().st_size
    speeds: dict[str, list[float]] = {"dd": [], "dd_direct": [], "ours": []}
    with memory_limit(args.limit_mb) as group:
        for _ in range(args.runs):
            for name, words in (("dd", ["bs=1M"]), ("dd_direct", ["bs=4M", "iflag=direct"])):
                evict(path)
                seconds, _ = run(["dd", f"if={path}", "of=/dev/null", *words], group)
                speeds[name].append(size / seconds / 1e6)
            evict(path)
            result = json.loads(run([sys.executable, "-c", OURS, str(path)], group)[1])
            speeds["ours"].append(size / result["s"] / 1e6)
    row = {"bench": "stream", "file_bytes": size, "limit_bytes": args.limit_mb * 1_000_000 if group else None}
    row |= {"tier": result["tier"], "tier_reason": result["reason"], "peak_mb": result["peak_mb"]}
    row |= harness.machine("numpy", "torch")
    row |= {f"{name}_mb_per_s": harness.spread(values, 1) for name, values in speeds.items()}
    row |= {f"ratio_to_{name}": harness.median_ratio(speeds["ours"], speeds[name]) for name in ("dd", "dd_direct")}
    harness.report(row)


if __name__ == "__main__":
    main()
