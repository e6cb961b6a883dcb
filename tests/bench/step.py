"""Training steps on shards against the same steps on one batch that is already on the device: the saturation.

    python tests/bench/step.py RECIPE [--set key=value]... [--seconds S]
    python tests/bench/step.py --loss [--samples 1024] [--classes 11230] [--seconds S]

The ceiling is the second: a loader that costs nothing. Both are timed in short turns, one after the other, in one
process. Also the loader alone, with augmentation and without. On a GPU also where a step's time goes, by its profiler:
milliseconds of a step, the device's part of them, and of that the products, the augmentation and the rest, kernel by
kernel.

--loss: the loss of mixed images with label smoothing, its gradient and the count of right answers in one pass over the
logits (trainer.loss, uncompiled), against the same by torch's operations, in turns. Prints one JSON row.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import statistics
import time
from pathlib import Path

import harness
import torch
import torch.nn.functional as F

from trainer.loss import loss_and_right
from trainer.recipe import load_recipe
from trainer.train import Trainer
from trainer.world import device_of, matmul_precision, precision_of

KERNELS = {  # kind -> pattern of the names of its kernels; the rest is "other"
    "products": r"(?i)gemm|nvjet|cutlass|cublas|triton_tem",
    "augmentation": r"^(_geometry|_fill)",
    "copies": r"^Mem(cpy|set)",
}


def separate_operations(logits, labels, mix_labels, lam) -> torch.Tensor:
    """Loss and right answers by torch's operations, as the trainer had them: once over the logits for each label."""
    own = F.cross_entropy(logits, labels, label_smoothing=harness.SMOOTHING, reduction="none")
    other = F.cross_entropy(logits, mix_labels, label_smoothing=harness.SMOOTHING, reduction="none")
    best = torch.cat([logits.detach()]).argmax(1)
    (lam * (best == labels) + (1 - lam) * (best == mix_labels)).sum()
    return (lam * own + (1 - lam) * other).mean()


def one_pass(logits, labels, mix_labels, lam) -> torch.Tensor:
    return loss_and_right(logits, labels, mix_labels, lam, harness.SMOOTHING)[0]


def loss_row(samples: int, classes: int, seconds: float) -> dict:
    """Milliseconds of both forms, and the median of the turns' ratios, for logits in float32 and in bf16."""
    torch.manual_seed(0)
    labels, mix_labels = torch.randint(classes, (2, samples))
    targets, row = (labels, mix_labels, torch.rand(samples)), {}
    for dtype in (torch.float32, torch.bfloat16):
        base, turns = (2 * torch.randn(samples, classes)).to(dtype), []
        started = time.perf_counter()
        while len(turns) < 3 or time.perf_counter() - started < seconds / 2:
            turn = []
            for form in (separate_operations, one_pass):
                logits, begun = base.clone().requires_grad_(), time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                    loss = form(logits, *targets)
                loss.backward()
                turn.append(time.perf_counter() - begun)
            turns.append(turn)
        before, now = (1e3 * statistics.median(times) for times in zip(*turns, strict=True))
        ratios = [before / now for before, now in turns]
        row[str(dtype).removeprefix("torch.")] = {
            "separate_ms": before, "one_pass_ms": now, "turns": len(turns), "ratio": statistics.median(ratios),
            "ratio_min": min(ratios), "ratio_max": max(ratios),
        }  # fmt: skip
    return {"bench": "loss", **harness.machine("torch"), "threads": torch.get_num_threads(), "samples": samples,
            "classes": classes, **row}  # fmt: skip


def step_row(path: str, overrides: list[str], seconds: float) -> dict:
    recipe = load_recipe(path, overrides)
    device = device_of(recipe.train.device)
    precision = precision_of(recipe.train.precision, device)
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, precision=precision))
    with matmul_precision(precision):
        trainer = Trainer(recipe, Path("unused"), device, quiet=True)
        measured = trainer.measure_saturation(seconds)
        by_kernel = None
        if device.type == "cuda":
            try:
                by_kernel = kernel_times(trainer)
            except Exception as e:  # a profiler that does not work here must not take the other figures along
                by_kernel = {"error": f"{type(e).__name__}: {e}"}
    return {
        "bench": "step", "recipe": recipe.name, "device": str(device), "precision": precision,
        **harness.machine("torch"), "threads": torch.get_num_threads(),
        "batch_size": recipe.train.batch_size, **dataclasses.asdict(measured), "ratio": measured.saturation,
        "flop_share": trainer.flop_share(measured.shards),
        "step_ms": 1e3 * recipe.train.batch_size / measured.shards, "by_kernel": by_kernel,
    }  # fmt: skip


def kernel_times(trainer: Trainer, steps: int = 8) -> dict:
    """Milliseconds of a step by kind of kernel, on a GPU: what its profiler saw of some steps on shards."""
    from torch.profiler import ProfilerActivity, profile

    batches = (batch for _ in itertools.count() for batch in trainer.train_loader)
    for _ in range(3):
        trainer.train_step(next(batches))
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(steps):
            trainer.train_step(next(batches))
        torch.cuda.synchronize()
    kernels = sorted(
        (
            {"ms": e.self_device_time_total / 1e3 / steps, "launches": e.count / steps, "kernel": e.key}
            for e in profiler.key_averages()
            if e.device_type == torch.autograd.DeviceType.CUDA and e.self_device_time_total
        ),
        key=lambda kernel: -kernel["ms"],
    )
    kinds = dict.fromkeys((*KERNELS, "other"), 0.0)
    for kernel in kernels:
        kinds[next((kind for kind, words in KERNELS.items() if re.search(words, kernel["kernel"])), "other")] += kernel[
            "ms"
        ]
    whole = sum(kinds.values())
    return {"device_ms": whole, "ms": kinds, "not_products": 1 - kinds["products"] / whole,
            "launches": sum(k["launches"] for k in kernels), "kernels": kernels[:40]}  # fmt: skip


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("recipe", nargs="?")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--loss", action="store_true", help="measure the loss alone")
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=11_230)
    args = parser.parse_args()
    if args.loss == bool(args.recipe):
        parser.error("give a recipe or --loss")
    if args.loss:
        row = loss_row(args.samples, args.classes, args.seconds)
    else:
        row = step_row(args.recipe, args.overrides, args.seconds)
    harness.report(rounded(row))


if __name__ == "__main__":
    main()
