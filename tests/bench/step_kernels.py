"""A compiled training step as a GPU would run it, known without one: bytes, launches, registers, spills, graph breaks.

    python -m venv gpu-env && gpu-env/bin/pip install torch -e .     # a build of torch for CUDA, with its own triton
    gpu-env/bin/python tests/bench/step_kernels.py [--model B_6-Wi_512] [--chip sm_90 sm_89] [--batch 16384]

Model, loss and right answers are traced on tensors without memory, forward and backward, and handed to Inductor as if
they lay on the chip; so is the update by Lion. Inductor's Triton kernels are then compiled for it; nothing runs. Prints
one JSON row a chip. The autocast is the CPU's. The augmentation's own kernels are in kernels.py.

gb               bytes by part, each tensor of a kernel once. loss: of the kernels that read or write logits or their
                 gradient. The last one also sums the gradient of the head's bias, for which a kernel of its own would
                 read 2 N C bytes: without that, loss and right answers take 4 N C (N samples, C classes).
seconds          estimated: products by FLOPs, everything else by bytes, at rates that such cards reach.
share            of the seconds that are no products.
least_gb         what a step has to move whose products are calls of a library, as Inductor's are by default. Units are
                 N m numbers (samples x width), k the expansion. A block: 4 for the norm (reads the stream and what the
                 block before adds to it; writes both the new stream and what it becomes), 2 k and 3 k for the
                 activation and its gradient, 4 for the norm's gradient (reads the stream, its own and the stream's
                 gradient, writes that). 1 more: the first norm has nothing to add, the head reads a sum that no norm
                 makes. Loss: logits read, their gradient written, 4 N C bytes. Weights: float32 read, bf16 written, and
                 gradients the other way round, 12 bytes a parameter. Lion: 20 bytes a parameter.
least_share      the share at least_gb. Below that lead only products that take the activations along (2 k + 3 k of
                 the 8 + 5 k): `TORCHINDUCTOR_MAX_AUTOTUNE=1` lets Inductor measure on the card whether its own do.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import harness
import torch
from lowering import CHIPS, Step, lowered, pretend, step_parser

from trainer.flops import executed_flops
from trainer.loss import ModelWithLoss
from trainer.model import ALIGNMENT, build, build_on_meta, config_of

RATES = {"sm_90": (798e12, 3.0e12), "sm_89": (165e12, 0.92e12)}  # FLOP/s in bf16 and bytes/s that H100 and 4090 reach
AUGMENTATION = 1.03  # of its pixels and outputs (kernels.py)


def graph_breaks(name: str) -> int:
    """Of model, loss and right answers; the size of a batch makes no difference to them."""
    from torch._dynamo import explain

    labels = torch.zeros(4, dtype=torch.int64)
    net = ModelWithLoss(build(name, 4, 8), harness.SMOOTHING)
    return explain(net)(torch.zeros(4, 3, 4, 4), labels, labels.clone(), torch.zeros(4)).graph_break_count


def least_gb(args, num_parameters: int) -> float:
    """Of a B-MLP, its loss and right answers; see the head of this script."""
    config = config_of(args.model)
    k, stream = config.expansion, 2 * args.batch * config.width
    return (stream * (config.depth * (8 + 5 * k) + 1) + 2 * 2 * args.batch * args.classes + 12 * num_parameters) / 1e9


def row(args) -> dict:
    step, chip = Step(args), args.chip[0]
    lr = torch.tensor(1e-4)
    with step.mode:
        graphs = lowered(step.forward_with_loss, step.mode, step.params, step.images, *step.targets)
        with torch.no_grad():
            detached = [p.detach() for p in step.params]
            lion = lowered(step.lion, step.mode, detached, step.gradients, step.momenta, lr)
    logits = {args.batch * (args.classes + padding) for padding in range(ALIGNMENT)}
    products, others = sum(g.gb(products=True) for g in graphs), sum(g.gb() for g in graphs)
    loss, update = sum(g.gb(of_size=logits) for g in graphs), sum(g.gb() for g in lion)
    augmentation = AUGMENTATION * 3 * step.images.numel() / 1e9
    flops, bandwidth = RATES[chip]
    product_s = args.batch * executed_flops(build_on_meta(args.model, args.res, args.classes)) / flops
    other_s = 1e9 * (others + update + augmentation) / bandwidth
    least = least_gb(args, step.num_parameters)
    least_s = 1e9 * (least + 20e-9 * step.num_parameters + augmentation) / bandwidth
    kernels = {
        f"{part} {name}": values
        for part, graph in zip(("forward", "backward"), graphs, strict=True)
        for name, values in graph.kernels().items()
    }
    return {
        "bench": "step_kernels", "model": args.model, "batch": args.batch, "classes": args.classes, "res": args.res,
        "chip": chip, **harness.machine("torch", "triton"),
        "gb": {"products": products, "model": others - loss, "loss": loss, "lion": update,
               "augmentation": augmentation},
        "least_gb": least, "seconds": {"products": product_s, "others": other_s},
        "share": other_s / (other_s + product_s), "least_share": least_s / (least_s + product_s),
        "lion, bytes a parameter": 1e9 * update / step.num_parameters,
        "launches": sum(g.launches for g in graphs), "graph_breaks": args.breaks,
        "spill_bytes": sum(spills for _, spills in kernels.values()),
        "kernels": {name: {"registers": registers, "spill_bytes": spills}
                    for name, (registers, spills) in kernels.items()},
    }  # fmt: skip


def rounded(value):
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    return round(value, 5 if value < 0.1 else 3) if isinstance(value, float) else value


def main() -> None:
    parser = step_parser(__doc__)
    parser.add_argument("--chip", nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--breaks", type=int, help=argparse.SUPPRESS)  # in a process of its own for each chip
    args = parser.parse_args()
    if torch.version.cuda is None:
        parser.error(f"torch {torch.__version__} is no build for CUDA; see the head of this script")
    if config_of(args.model).kind != "b_mlp":
        parser.error("the least bytes of S-MLPs are not counted")
    if args.breaks is None:  # Inductor asks once a process what chip it has
        options = {**vars(args), "breaks": graph_breaks(args.model)}
        for chip in options.pop("chip"):
            words = [f"--{name}={value}" for name, value in options.items()]
            subprocess.run([sys.executable, __file__, *words, "--chip", chip], check=True)
        return
    pretend(args.chip[0])
    harness.report(rounded(row(args)))


if __name__ == "__main__":
    main()
