"""Run the benchmarks that need no data of anybody, one after the other, and append what they measured to results.jsonl.

Usage: python tests/bench/record.py [--only NAME ...] [--ffcv-python PYTHON] [--machine "WORDS"]      (`make bench`)

Takes about ten minutes and 4 GB in the temp folder. Each script prints its rows; of each, the figures that
tests/bench/README.md shows are kept, with machine and date: the median of this run and, where a peer ran beside it, the
median ratio. Older rows stay: they are the history.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import harness

HERE = Path(__file__).parent


def run(script: str, *words: object) -> list[dict]:
    """The rows that a script prints."""
    command = [sys.executable, HERE / script, *map(str, words)]
    print(" ".join(map(str, command)), file=sys.stderr)
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def open_(folder: Path, args):
    (row,) = run("open.py", folder)
    yield "open-beton", "opening 11.8 million samples from a beton", row["beton"]["median_s"], "s", None, ""
    what = "opening 11.8 million samples from tars for the first time"
    yield "open-tar", what, row["tar"]["first_s"], "s", None, ""
    yield "open-tar-again", "opening them again, from the cache", row["tar"]["median_s"], "s", None, ""


def stream(folder: Path, args):
    (row,) = run("stream.py", folder)
    rate, ratio = row["ours_mb_per_s"]["median"] / 1000, row["ratio_to_dd_direct"]
    yield "stream", "streaming a cold 3 GB file in 1.2 GB of memory", rate, "GB/s", ratio, "`dd iflag=direct`"


def remote(folder: Path, args):
    (row,) = run("remote.py", folder)
    for key, when in (("cold", "in the first epoch"), ("warm", "once its tars are kept")):
        what = f"20,000 JPEGs at 64 px over HTTP from this machine, without a copy, {when}"
        rate, ratio = row[f"{key}_images_per_s"]["median"], row[f"{key}_to_local"]
        yield f"remote-{key}", what, rate, "images/s", ratio, "streaming the same files from a folder"


def convert(folder: Path, args):
    run("make_archive.py", "made", folder / "made.tar", "--images", 100_000, "--tars", 100)
    words = ["--ffcv-python", args.ffcv_python] if args.ffcv_python else []
    (row,) = run("convert.py", "imagenet21k", folder / "made.tar", "--res", 32, "--folder", folder, *words)
    what, rate = "100,000 made images at 32 px, to betons and tars", row["ours"]["median"]
    yield "convert-made-ceiling", what, rate, "images/s", row["ratio_to_ceiling"], "decoding alone"
    if "ratio_to_ffcv_raw" in row:
        yield "convert-made", what, rate, "images/s", row["ratio_to_ffcv_raw"], "ffcv's raw writer"


def derive(folder: Path, args):
    (row,) = run("derive.py", folder)
    for name, what in (
        ("subset", "`subset` of everything, 100,000 JPEGs at 64 px in both formats"),
        ("merge", "`merge` of its two halves"),
        ("seed", "`subset` of everything in another order"),
    ):
        rate, ratio = row["mb"] / row[name]["s"]["median"], round(1 / row[f"{name}_s_to_cp"], 2)
        yield f"derive-{name}", what, rate, "MB/s", ratio, "`cp -r` and `sync`"


PARTS = {"open": open_, "stream": stream, "remote": remote, "convert": convert, "derive": derive}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ffcv-python", help="interpreter of an environment with ffcv")
    parser.add_argument("--machine", help="what the machine is  [default: its architecture and cores]")
    args = parser.parse_args()
    where = harness.machine()
    machine = args.machine or f"{where['cores']} cores, {where['machine']}"
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            for key, what, value, unit, ratio, peer in PARTS[name](Path(folder), args):
                row = {"name": key, "what": what, "values": [round(value, 3)], "unit": unit}
                row |= {"ratios": [] if ratio is None else [ratio], "peer": peer, "machine": machine}
                row |= {"date": where["date"], "script": f"{name}.py"}
                with open(HERE / "results.jsonl", "a") as f:
                    print(json.dumps(row), file=f)
                harness.report(row)


if __name__ == "__main__":
    main()
