"""Bytes that a training step moves uncompiled: what every operation reads and writes, counted and not run.

    python tests/bench/step_bytes.py [--model B_6-Wi_512] [--batch 16384] [--classes 11230] [--res 64]

Needs no GPU: tensors are fake, they have shapes and no memory. Prints one JSON row; all figures are GB a step. What a
compiled step moves: step_kernels.py.
"""

from __future__ import annotations

import harness
import torch
from lowering import Step, step_parser
from step import one_pass, separate_operations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE = ("_unsafe_view", "detach", "alias", "empty", "lift_fresh", "prim.device")


class Eager(TorchDispatchMode):
    """Counts the bytes that operations read and write; views are free."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = str(function)
        if function.is_view or any(word in name for word in FREE):
            return out
        inputs = {id(t): t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}.values()
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if not outputs and "_foreach" in name:  # in place: the first list is written
            outputs = args[0]
        read = outputs if any(w in name for w in ("gather", "index_select", "zeros", "fill", "full")) else inputs
        read = [t for t in read if "nll_loss" not in name or t.ndim < 2]  # which reads one number a row
        self.bytes += sum(map(size_of, [*read, *outputs]))
        return out


def size_of(t: torch.Tensor) -> int:
    """Bytes of a tensor's own numbers: what is broadcast is read once."""
    own = [size for size, stride in zip(t.shape, t.stride(), strict=True) if stride or size == 1]
    return torch.Size(own).numel() * t.element_size()


def eager_gb(function, *inputs) -> float:
    with Eager() as count:
        function(*inputs)
    return count.bytes / 1e9


def main() -> None:
    args = step_parser(__doc__).parse_args()
    step = Step(args)
    row = {"bench": "step_bytes", **vars(args), **harness.machine("torch"), "parameters": step.num_parameters}
    with step.mode:
        detached = [p.detach() for p in step.params]
        parts = {
            "loss and right answers, separate": lambda: separate_operations(step.logits, *step.targets).backward(),
            "loss and right answers": lambda: one_pass(step.logits, *step.targets).backward(),
            "lion": lambda: step.lion(detached, step.gradients, step.momenta, 1e-4),
            "lion without weight decay": lambda: step.lion(detached, step.gradients, step.momenta, 1e-4, 0.0),
        }
        row |= {name: round(eager_gb(part), 3) for name, part in parts.items()}
    for name in ("lion", "lion without weight decay"):
        row[f"{name}, bytes a parameter"] = round(1e9 * row[name] / row["parameters"], 1)
    harness.report(row)


if __name__ == "__main__":
    main()
