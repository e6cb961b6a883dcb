"""Everything that only a GPU can show, in one command: `make gpu`. Under nine minutes; no network.

    python tests/bench/gpu.py [--out DIR] [--budget SECONDS] [--only machine,tests,...]

Each part runs in a process of its own, under a limit: one that fails, or is out of time, leaves its error in the
report, and the next one starts. The report is DIR/report.json; the table for README.md goes to the terminal and to
DIR/table.md. `--device cpu --tiny` runs the same parts small and without a GPU: that is how this script is tested.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "tests" / "bench"
CLASSES = 11_230  # of the paper's ImageNet-21k
MODELS = ("B_6-Wi_512", "B_6-Wi_1024", "B_12-Wi_512", "B_12-Wi_1024")
TIERS = {
    "resident": ["--tier", "resident"],
    "resident ycc420": ["--tier", "resident", "--pixels", "ycc420"],
    "pinned": ["--tier", "pinned"],
    "stream": ["--tier", "stream"],
    "stream JPEG": ["--tier", "stream"],
}


class Failed(Exception):
    """A command of a part failed; the end of its output is the text."""


def command(settings, *words: object) -> str:
    """The standard output of a command in this checkout's environment; it has until the part's end."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    left = max(1.0, settings.deadline - time.monotonic())
    try:
        done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, env=env, capture_output=True, text=True,
                              timeout=left, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise Failed("out of time") from e
    if done.returncode:
        raise Failed(f"exit {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}")
    return done.stdout


def last_json(text: str) -> dict:
    """The last line of an output that is a JSON object."""
    return json.loads(next(line for line in reversed(text.splitlines()) if line.startswith("{")))


# ---------------------------------------------------------------------------------------------------------- parts
# A part is a function of the settings that yields (name, result) pairs: what was measured before a
# failure stays in the report.


def machine(settings):
    """The machine, and its ceilings: GB/s of copies, TFLOP/s of a product."""
    import numpy
    import torch

    cuda = settings.device == "cuda"
    yield "versions", {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__}
    yield "cores", len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        yield "gpu", {"name": properties.name, "bytes": properties.total_memory, "free": torch.cuda.mem_get_info()[0]}
    size = (2 << 30) if cuda else (8 << 20)
    source = torch.ones(size, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    yield "device_copy_gb_per_s", 2 * size / seconds(settings, lambda: target.copy_(source)) / 1e9
    if cuda:
        host = torch.ones(256 << 20, dtype=torch.uint8).pin_memory()
        there = torch.empty_like(host, device="cuda")
        rate = host.numel() / seconds(settings, lambda: there.copy_(host, non_blocking=True)) / 1e9
        yield "host_to_device_pinned_gb_per_s", rate
    n, dtype = (8192, torch.bfloat16) if cuda else (256, torch.float32)
    a, b = (torch.randn(n, n, device=settings.device, dtype=dtype) for _ in range(2))
    yield "product_tflop_per_s", 2 * n**3 / seconds(settings, lambda: a @ b) / 1e12


def seconds(settings, act, repeat: int = 10) -> float:
    """Median seconds of one act on the device, of three rounds."""
    import torch

    wait = torch.cuda.synchronize if settings.device == "cuda" else lambda: None
    act()
    rounds = []
    for _ in range(3):
        wait()
        started = time.perf_counter()
        for _ in range(repeat):
            act()
        wait()
        rounds.append((time.perf_counter() - started) / repeat)
    return statistics.median(rounds)


def shards(settings):
    """Made shards at the paper's resolution with its number of classes: raw, and JPEG."""
    archive, script = settings.out / "made.tar", BENCH / "make_archive.py"
    command(settings, script, "made", archive, "--images", settings.images, "--tars", settings.classes)
    words = ["--source", archive, "--res", settings.res, "--min-class-size", 0, "--val-per-class", 1]
    for codec in ("raw", "jpg"):
        started, out = time.perf_counter(), settings.out / codec
        command(settings, "-m", "mlpdata", "convert", "imagenet21k", *words, "--codec", codec, "--out", out)
        yield codec, {"images_per_s": settings.images / (time.perf_counter() - started)}
    archive.unlink()


def tests(settings):
    """The tests that need a CUDA device."""
    text = command(settings, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "tests")
    yield "pytest", text.strip().splitlines()[-1]


def tiers(settings):
    """The loader from every place pixels can be, augmentation included."""
    sizes = ["--batch-size", settings.batch, "--seconds", settings.seconds, "--device", settings.device]
    for name, words in TIERS.items():
        root = settings.out / ("jpg" if "JPEG" in name else "raw")
        yield name, last_json(command(settings, "-m", "mlpdata", "bench", root, *sizes, *words, "--json"))


def augment(settings):
    """Augmentation beside a plain copy of as many bytes."""
    sizes = ["--batch", settings.batch, "--res", settings.res, "--rounds", 3, "--seconds", settings.seconds]
    for name in settings.augment:
        words = ["--device", settings.device, *sizes, "--augment", name]
        yield name, last_json(command(settings, BENCH / "augment.py", *words))


def steps(settings):
    """Training steps of the paper's four models: images/s, share of the peak, saturation, waiting."""
    for model in settings.models:
        yield model, step(settings, model)


def step(settings, model: str) -> dict:
    """What step.py says of a model on the made shards."""
    values = {"data.shards": settings.out / "raw", "model.name": model, "train.batch_size": settings.batch,
              "train.device": settings.device, **settings.train}  # fmt: skip
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    words += ["--seconds", settings.seconds]
    return last_json(command(settings, BENCH / "step.py", ROOT / "recipes" / "in21k.yaml", *words))


# part -> seconds it may take at most
PARTS = {machine: 60, shards: 120, steps: 240, tests: 180, tiers: 90, augment: 90}


# --------------------------------------------------------------------------------------------------------- report


def table(report: dict) -> str:
    """The rows for README.md, of the parts that succeeded."""
    parts = report["parts"]
    gpu = parts.get("machine", {}).get("gpu", {}).get("name", report["device"])
    lines = [f"On {gpu}:", "", "| what | images/s | of |", "|---|---|---|"]
    for name, row in parts.get("tiers", {}).items():
        if isinstance(row, dict):
            lines.append(
                f"| `load`, {name} | {row['overlapped_images_per_s']:,.0f} | bottleneck: {row['bottleneck']} |"
            )
    for name, row in parts.get("augment", {}).items():
        if isinstance(row, dict):
            share = row["copy_share"]["ours"]
            lines.append(
                f"| augmentation, {name} | {row['images_per_s']['ours']['median']:,} | {share:.0%} of a copy |"
            )
    for name, row in parts.get("steps", {}).items():
        if isinstance(row, dict):
            peak = "" if row["flop_share"] is None else f"{row['flop_share']:.0%} of peak, "
            lines.append(f"| {name} | {row['shards']:,.0f} | {peak}saturation {row['saturation']:.2f} |")
    return "\n".join(lines) + "\n"


def part_in_a_process(name: str, limit: float, settings) -> dict:
    """Run one part in a process of its own; its results up to its end, failure or limit."""
    path, words = settings.out / f"{name}.json", [*sys.argv[1:], "--part", name, "--limit", str(limit)]
    path.unlink(missing_ok=True)
    with open(settings.out / f"{name}.log", "w") as log:
        process = subprocess.Popen([sys.executable, __file__, *words], stdout=log, stderr=subprocess.STDOUT,
                                   start_new_session=True)  # fmt: skip
        try:
            code: int | str = process.wait(limit + 10)  # its own commands end by the limit
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the commands that it started
            process.wait()
            code = "out of time"
    results = json.loads(path.read_text()) if path.exists() else {}
    if code != 0:
        results.setdefault("error", f"exit {code}: {(settings.out / f'{name}.log').read_text()[-1500:]}")
    return results


def run_part(settings) -> int:
    """In the part's own process: every result goes to the disk when it is there."""
    path, results = settings.out / f"{settings.part}.json", {}
    part = next(f for f in PARTS if f.__name__ == settings.part)
    try:
        for name, result in part(settings):
            results[name] = result
            path.write_text(json.dumps(results, indent=1))
    except Exception as e:
        path.write_text(json.dumps(results | {"error": f"{type(e).__name__}: {e}"}, indent=1))
        return 1
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    parser.add_argument("--budget", type=float, default=530, help="seconds for all of it")
    parser.add_argument("--only", default="", help="names of parts, comma separated")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small batches, models and shards")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=float, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    settings.out = settings.out.resolve()
    settings.out.mkdir(parents=True, exist_ok=True)
    tiny = settings.tiny
    settings.batch, settings.res, settings.seconds = (32, 16, 0.2) if tiny else (16_384, 64, 2.0)
    settings.classes, settings.images = (10, 200) if tiny else (CLASSES, 8 * CLASSES)
    settings.models = ("B_2-Wi_32",) if tiny else MODELS
    settings.train = {"train.compile": "false", "train.precision": "fp32"} if tiny else {}
    settings.augment = ("crop+flip+mixup",) if tiny else ("crop+flip", "crop+flip+mixup", "everything")
    if settings.part:
        settings.deadline = time.monotonic() + settings.limit
        return run_part(settings)

    started = time.monotonic()
    report = {"device": settings.device, "tiny": tiny, "parts": {}}
    for part, most in PARTS.items():
        name, left = part.__name__, settings.budget - (time.monotonic() - started)
        if settings.only and name not in settings.only.split(","):
            continue
        begun = time.monotonic()
        report["parts"][name] = part_in_a_process(name, min(most, left), settings) if left > 10 else {
            "error": "no time left"
        }  # fmt: skip
        report["parts"][name]["seconds"] = round(time.monotonic() - begun, 1)
        (settings.out / "report.json").write_text(json.dumps(report, indent=1))
        print(f"{name}: {report['parts'][name].get('error', 'done').splitlines()[-1]}", file=sys.stderr, flush=True)
    (settings.out / "table.md").write_text(table(report))
    print(table(report), end="")
    print(f"report: {settings.out / 'report.json'}")
    return int(any("error" in part for part in report["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
