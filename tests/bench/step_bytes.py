"""Bytes that a training step moves, counted and not run: what is not a matrix product, part by part. Needs no GPU.

    python tests/bench/step_bytes.py [--model B_6-Wi_512] [--batch 16384] [--classes 11230] [--res 64]

"uncompiled" counts what every operation reads and writes. "compiled" counts what Inductor's kernels read and write
after fusion: its scheduler decides on fusion alike for the CPU, which is what it compiles for here, and for a GPU.
Tensors are fake: they have shapes and no memory. Prints one JSON row; all figures are GB a step.
"""

from __future__ import annotations

import argparse
import copy
import json
from unittest import mock

import torch
from step import SMOOTHING, one_pass, separate_operations
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.loss import loss_and_right
from trainer.model import build, num_parameters
from trainer.optim import _lion_update

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


class Lowered(Exception):
    """Raised behind Inductor's scheduler, before it writes code: nothing has to be compiled by a C++ compiler."""


def compiled_gb(function, *inputs) -> dict[str, float]:
    """GB of products and of other kernels, forward and backward, and how many other kernels there are."""
    counts = {"products": 0.0, "other": 0.0, "kernels": 0}

    def stop(graph):
        graph.codegen()
        for node in graph.scheduler.nodes:
            kind = "products" if "Extern" in type(node).__name__ else "other"
            if "Nop" not in type(node).__name__:
                counts[kind] += node.get_read_write_buffers_sizes() / 1e9
                counts["kernels"] += kind == "other"
        raise Lowered

    def lower(graph, example_inputs, **options):
        original, GraphLowering.compile_to_module = GraphLowering.compile_to_module, stop
        try:
            compile_fx_inner(copy.deepcopy(graph), list(example_inputs), **options)
        except BaseException as e:
            cause = e
            while cause is not None and not isinstance(cause, Lowered):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
        finally:
            GraphLowering.compile_to_module = original
        return make_boxed_func(graph.forward)

    def partition(graph, joint_inputs, **options):
        _recursive_joint_graph_passes(graph)
        return min_cut_rematerialization_partition(graph, joint_inputs, compiler="inductor", **options)

    traced = aot_function(
        function, fw_compiler=lower, bw_compiler=lambda g, x: lower(g, x, is_backward=True), partition_fn=partition,
        decompositions=select_decomp_table(),
    )  # fmt: skip
    with mock.patch("trainer.loss.is_compiling", lambda: True), mock.patch("trainer.optim.is_compiling", lambda: True):
        out = traced(*inputs)
    loss = out[0] if isinstance(out, (tuple, list)) else out
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        torch.autograd.grad(loss, [t for t in tree_leaves(inputs) if t.requires_grad], torch.empty_like(loss))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="B_6-Wi_512")
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--classes", type=int, default=11_230)
    parser.add_argument("--res", type=int, default=64)
    args = parser.parse_args()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = build(args.model, args.res, args.classes)
        names = [name for name, _ in model.named_parameters()]
        params = [p.detach().requires_grad_() for p in model.parameters()]
        grads, momenta = ([torch.empty_like(p) for p in params] for _ in range(2))
        images = torch.empty(args.batch, 3, args.res, args.res, dtype=torch.bfloat16)
        labels, lam = torch.zeros(args.batch, dtype=torch.int64), torch.zeros(args.batch)
        logits = torch.empty(args.batch, args.classes, dtype=torch.bfloat16, requires_grad=True)
        targets = labels, labels.clone(), lam

        def forward(params, images):
            with torch.autocast("cpu", torch.bfloat16):
                return torch.func.functional_call(model, dict(zip(names, params, strict=True)), (images,))

        def forward_with_loss(params, images, *targets):
            return loss_and_right(forward(params, images), *targets, SMOOTHING)

        lion = lambda: _lion_update([([p.detach() for p in params], grads, momenta, 1e-4, 0.0, 0.1, 0.01)])  # noqa: E731
        alone, both = compiled_gb(forward, params, images), compiled_gb(forward_with_loss, params, images, *targets)
        row = {
            "bench": "step_bytes", "torch": torch.__version__, **vars(args), "parameters": num_parameters(model),
            "products": both["products"], "model, compiled": alone["other"],
            "loss and right answers, separate": eager_gb(lambda: separate_operations(logits, *targets).backward()),
            "loss and right answers, uncompiled": eager_gb(lambda: one_pass(logits, *targets).backward()),
            "loss and right answers, compiled with the model": both["other"] - alone["other"],
            "kernels, compiled with the model": both["kernels"],
            "lion, uncompiled": eager_gb(lion),
        }  # fmt: skip
        with torch.no_grad():
            detached = [p.detach() for p in params]
            row["lion, compiled"] = compiled_gb(
                lambda p, g, m, lr: _lion_update([(p, g, m, lr, lr * 0.0, 0.1, 0.01)]),
                detached, grads, momenta, torch.tensor(1e-4),
            )["other"]  # fmt: skip
    for kind in ("lion, uncompiled", "lion, compiled"):
        row[f"{kind}, bytes a parameter"] = 1e9 * row[kind] / row["parameters"]
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, indent=1))


if __name__ == "__main__":
    main()
