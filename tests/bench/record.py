"""Run the benchmarks that need no data of anybody, one after the other, and append what they measured to results.jsonl.

Usage: python tests/bench/record.py [--only NAME ...] [--ffcv-python PYTHON] [--machine "WORDS"]      (`make bench`)
       python tests/bench/record.py --gpu build/gpu/report.json      what `make gpu` measured, here or elsewhere

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


PEERS = {
    "kornia": "kornia",
    "grid_sample": "`affine_grid` and `grid_sample`",
    "torchvision_batch": "torchvision's v2 transforms, one draw a batch",
}
PARTS = {"open": open_, "stream": stream, "remote": remote, "convert": convert, "derive": derive}


def gpu_rows(report: dict):
    """The rows of a report of gpu.py, of the parts that succeeded, each with its script."""
    for model, row in measured(report, "steps"):
        share = f"{row['flop_share']:.0%} of the peak" if row["flop_share"] else "share of the peak unknown"
        what = f"training {model} at 64 px, 11,230 classes, batches of {row['batch_size']:,}: {share}"
        yield (
            f"gpu-step-{model}",
            what,
            row["shards"],
            "images/s",
            row["saturation"],
            "the same steps on one stored batch",
            "step.py",
        )
    for tier, row in measured(report, "tiers"):
        what, rate = f"loader with crops and flips at 64 px, {tier}", row["overlapped_images_per_s"]
        yield f"gpu-load-{tier}", what, rate, "images/s", None, "", "mlpdata bench"
    for name, row in measured(report, "augment"):
        what, rate = f"augmentation on the GPU, {name}, 64 px to bf16", row["images_per_s"]["ours"]["median"]
        yield (
            f"gpu-augment-{name}",
            what,
            rate,
            "images/s",
            row["copy_share"]["ours"],
            "a copy of its bytes",
            "augment.py",
        )
        for peer in PEERS:
            if (ratio := row["ratio"].get(f"ours / {peer}")) is not None:
                yield f"gpu-augment-{name}-{peer}", what, rate, "images/s", ratio, PEERS[peer], "augment.py"


def measured(report: dict, part: str) -> list[tuple[str, dict]]:
    """[(name, row)] of what a part measured."""
    return [(name, row) for name, row in report["parts"].get(part, {}).items() if isinstance(row, dict)]


def append(key, what, value, unit, ratio, peer, script, *, machine: str, date: str) -> None:
    row = {"name": key, "what": what, "values": [round(value, 3)], "unit": unit}
    row |= {
        "ratios": [] if ratio is None else [ratio],
        "peer": peer,
        "machine": machine,
        "date": date,
        "script": script,
    }
    with open(HERE / "results.jsonl", "a") as f:
        print(json.dumps(row), file=f)
    harness.report(row)


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ffcv-python", help="interpreter of an environment with ffcv")
    parser.add_argument(
        "--gpu", type=Path, metavar="REPORT", help="append what a report of gpu.py has; measure nothing"
    )
    parser.add_argument("--machine", help="what the machine is  [default: its architecture and cores]")
    args = parser.parse_args()
    where = harness.machine()
    machine = args.machine or f"{where['cores']} cores, {where['machine']}"
    if args.gpu:
        report = json.loads(args.gpu.read_text())
        dates = [row["date"] for part in ("steps", "augment") for _, row in measured(report, part)]
        if not dates or "gpu" not in report["parts"].get("machine", {}):
            parser.error(f"{args.gpu} lacks the card, or what steps and augment measured on it")
        card, cores, date = report["parts"]["machine"]["gpu"]["name"], report["parts"]["machine"]["cores"], dates[0]
        for row in gpu_rows(report):
            append(*row, machine=args.machine or f"{card}, {cores} cores", date=date)
        return
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            for row in PARTS[name](Path(folder), args):
                append(*row, f"{name}.py", machine=machine, date=where["date"])


if __name__ == "__main__":
    main()
