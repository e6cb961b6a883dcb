"""One large conversion, watched from outside: time, the largest memory of any of its processes, the most disk it used.

    python tests/bench/make_archive.py made made.tar --images 1000000 --tars 1000
    python tests/bench/large.py imagenet21k made.tar OUT --res 32

Words after OUT go to `mlpdata convert` as they are. Prints one JSON row and removes OUT.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import harness

from mlpdata.shards.manifest import Manifest


def family(pid: int) -> list[int]:
    """A process and its children."""
    try:
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    except OSError:
        return []


def peak_rss(pid: int) -> int:
    """The most memory a process ever held, in bytes, pages of files it mapped included."""
    try:
        line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) << 10
    except (OSError, StopIteration):
        return 0


def disk_bytes(folder: Path) -> int:
    """What the files below a folder occupy: beton files have holes while they are written."""
    total = 0
    for below, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone since it was listed
                total += os.stat(os.path.join(below, name)).st_blocks * 512
    return total


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("dataset")
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    args, words = parser.parse_known_args()
    command = [sys.executable, "-m", "mlpdata.cli", "convert", args.dataset, "--source", args.source, "--out", args.out]
    started = time.perf_counter()
    process = subprocess.Popen([*command, *words], stdout=sys.stderr)
    parent = worker = disk = 0
    while process.poll() is None:
        pids = family(process.pid)
        parent = max(parent, peak_rss(process.pid))
        worker = max([worker, *map(peak_rss, pids[1:])])
        disk = max(disk, disk_bytes(args.out))
        time.sleep(0.2)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(process.returncode)
    images = sum(info.num_samples for info in Manifest.load(args.out).splits.values())
    output = disk_bytes(args.out)
    shutil.rmtree(args.out)
    row = {
        "bench": "large",
        "dataset": args.dataset,
        **harness.machine("mlpdata"),
        "images": images,
        "seconds": round(seconds, 1),
        "images_per_s": round(images / seconds),
        "parent_peak_mb": parent >> 20,
        "worker_peak_mb": worker >> 20,
        "output_mb": output >> 20,
        "disk_peak_mb": disk >> 20,
    }
    harness.report(row)


if __name__ == "__main__":
    main()
