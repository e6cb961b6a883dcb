"""A training step on tensors without memory, and what Inductor makes of it for a GPU that is not there.

It is traced, lowered to kernels, compiled, and never run. Lowering takes a build of torch for CUDA, with its own
triton; `pretend` comes before anything of Inductor is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import logging
import re
import subprocess
import tempfile
import types
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import harness
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trainer.loss import loss_and_right
from trainer.model import build, num_parameters
from trainer.optim import _lion_update

CHIPS = {"sm_90": 90, "sm_89": 89}
KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str='cuda'\)", re.DOTALL)
COMMON = {
    "warp_size": 32, "regs_per_multiprocessor": 65_536, "max_threads_per_block": 1024, "is_integrated": 0,
    "shared_memory_per_block": 49_152, "gcnArchName": "",
}  # fmt: skip
PROPERTIES = {
    "sm_90": COMMON | {
        "name": "NVIDIA H100 80GB HBM3", "major": 9, "minor": 0, "multi_processor_count": 132,
        "total_memory": 85 * 10**9, "max_threads_per_multi_processor": 2048, "L2_cache_size": 50 << 20,
        "shared_memory_per_block_optin": 232_448, "shared_memory_per_multiprocessor": 233_472,
    },
    "sm_89": COMMON | {
        "name": "NVIDIA GeForce RTX 4090", "major": 8, "minor": 9, "multi_processor_count": 128,
        "total_memory": 25 * 10**9, "max_threads_per_multi_processor": 1536, "L2_cache_size": 72 << 20,
        "shared_memory_per_block_optin": 101_376, "shared_memory_per_multiprocessor": 102_400,
    },
}  # fmt: skip


class Step:
    """A model, a batch and their gradients as fake CPU tensors, and the functions of a step, in bf16 as by autocast."""

    def __init__(self, args: argparse.Namespace):
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            self._model = build(args.model, args.res, args.classes)
            self._names = [name for name, _ in self._model.named_parameters()]
            self.params = [p.detach().requires_grad_() for p in self._model.parameters()]
            self.images = torch.empty(args.batch, 3, args.res, args.res, dtype=torch.bfloat16)
            labels, lam = torch.zeros(args.batch, dtype=torch.int64), torch.zeros(args.batch)
            self.targets = labels, labels.clone(), lam
            self.logits = torch.empty(args.batch, args.classes, dtype=torch.bfloat16, requires_grad=True)
            self.gradients, self.momenta = ([torch.empty_like(p) for p in self.params] for _ in range(2))
        self.num_parameters = num_parameters(self._model)

    def forward(self, params, images) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return torch.func.functional_call(self._model, dict(zip(self._names, params, strict=True)), (images,))

    def forward_with_loss(self, params, images, *targets) -> tuple[torch.Tensor, torch.Tensor]:
        return loss_and_right(self.forward(params, images), *targets, harness.SMOOTHING)

    @staticmethod
    def lion(params, gradients, momenta, lr, weight_decay=0.1) -> None:
        _lion_update([(params, gradients, momenta, lr, lr * weight_decay, 0.1, 0.01)])


def step_parser(doc: str | None) -> argparse.ArgumentParser:
    parser = harness.parser(doc)
    parser.add_argument("--model", default="B_6-Wi_512")
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--classes", type=int, default=11_230)
    parser.add_argument("--res", type=int, default=64)
    return parser


@dataclass
class Lowered:
    """A graph as Inductor wrote it: code, and its kernels as (is it a product, GB read and written, sizes).

    sizes: numbers in each of the tensors that the kernel reads or writes.
    """

    code: str
    _kernels: list[tuple[bool, float, set[int]]]

    def gb(self, *, products: bool = False, of_size: Container[int] | None = None) -> float:
        """GB that products, or all other kernels, read and write. of_size: of those with a tensor of such a size."""
        return sum(
            gb for is_product, gb, sizes in self._kernels
            if is_product == products and (of_size is None or any(size in of_size for size in sizes))
        )  # fmt: skip

    @property
    def launches(self) -> int:
        """Of kernels that are no products."""
        return len(re.findall(r"^\s+triton_\w+\.run\(", self.code, re.MULTILINE))

    def kernels(self) -> dict[str, tuple[int, int]]:
        """{name: (registers a thread, bytes a thread that they do not hold)} of its Triton kernels."""
        return {name: registers_and_spills(_compiled(name, code)) for name, code in KERNEL.findall(self.code)}


class _Stopped(Exception):
    """Raised when Inductor has written its code, or compiled a kernel: there is no chip to load it on."""


def pretend(chip: str) -> None:
    """Make torch and Triton believe that there is such a chip; before Inductor is imported, which asks at once."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    properties = types.SimpleNamespace(**PROPERTIES[chip])
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties,
        "get_device_capability": (properties.major, properties.minor), "get_device_name": properties.name,
        "is_bf16_supported": True, "is_tf32_supported": True, "get_arch_list": [chip], "_exchange_device": 0,
        "_maybe_exchange_device": 0, "_lazy_init": None, "synchronize": None, "set_device": None,
        "is_current_stream_capturing": False,
        "mem_get_info": (properties.total_memory, properties.total_memory), "set_rng_state": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer, **options: answer)
    target = GPUTarget("cuda", CHIPS[chip], 32)
    driver.set_active(
        types.SimpleNamespace(
            get_current_target=lambda: target,
            get_current_device=lambda: 0,
            get_active_torch_device=lambda: torch.device("cuda", 0),
            get_device_interface=lambda: torch.cuda,
            binary_ext="cubin",
        )
    )
    from torch._inductor import config
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm, reinplace
    from torch._inductor.runtime import triton_helpers

    config.compile_threads, config.force_disable_caches, config.shape_padding = 1, True, False
    for name in ("runtime.triton_heuristics", "utils"):  # they report how `_Stopped` stops them
        logging.getLogger(f"torch._inductor.{name}").disabled = True
    triton_helpers.set_driver_to_gpu = lambda: None
    # Patterns of attention and the like, which are made with tensors on the chip.
    fuse_attention._sfdp_init = misc_patterns._misc_patterns_init = pad_mm._pad_mm_init = lambda *args: None
    reinplace._inplace_generalized_scatter = lambda whole, part, views: whole  # else it copies, if only to see it work


@contextlib.contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """The trainer's functions take the ways that are for compiled code on a GPU, though they are traced on the CPU."""
    with contextlib.ExitStack() as stack:
        for module in ("loss", "model", "optim"):
            stack.enter_context(mock.patch(f"trainer.{module}.is_compiling", lambda: True))
        stack.enter_context(mock.patch("trainer.model.GPUS", ("cpu",)))
        yield


def lowered(function: Callable, mode: FakeTensorMode, *inputs) -> list[Lowered]:
    """Forward and, if the first result needs a gradient, backward of a function of fake CPU tensors, for the chip."""
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch.utils._pytree import tree_leaves

    graphs: list[Lowered] = []

    def stop(graph):
        code, _ = graph.codegen()
        kernels = []
        for node in graph.scheduler.nodes:
            kind, used = type(node).__name__, node.read_writes.reads | node.read_writes.writes
            if "Nop" not in kind:
                sizes = {int(graph.get_numel(use.name)) for use in used}
                kernels.append(("Extern" in kind, node.get_read_write_buffers_sizes() / 1e9, sizes))
        graphs.append(Lowered(getattr(code, "value", code), kernels))
        raise _Stopped

    def lower(graph, example_inputs, **options):
        moved, moved_inputs = _on_chip(graph, example_inputs, mode)
        GraphLowering.compile_to_module = GraphLowering._compile_to_module = stop
        try:
            compile_fx_inner(moved, moved_inputs, **options)
        except BaseException as e:
            cause = e
            while cause is not None and not isinstance(cause, _Stopped):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
        return make_boxed_func(graph.forward)

    def partition(graph, joint_inputs, **options):
        _recursive_joint_graph_passes(graph)
        return min_cut_rematerialization_partition(graph, joint_inputs, compiler="inductor", **options)

    traced = aot_function(
        function, fw_compiler=lower, bw_compiler=lambda g, x: lower(g, x, is_backward=True), partition_fn=partition,
        decompositions=select_decomp_table(),
    )  # fmt: skip
    with as_on_a_gpu():
        results = traced(*inputs)
    first = next((t for t in tree_leaves(results) if isinstance(t, torch.Tensor)), None)
    if first is not None and first.requires_grad:
        weights = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.requires_grad]
        torch.autograd.grad(first, weights, torch.empty_like(first))
    return graphs


def _on_chip(graph, example_inputs, mode):
    """A graph of CPU tensors, and its inputs, moved to the chip."""
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    graph = copy.deepcopy(graph)
    for node in graph.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}

    def moved(t):
        if not isinstance(t, torch.Tensor):
            return t
        return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda:0")

    with mode:
        inputs = [moved(t) for t in example_inputs]
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*inputs)
    graph.recompile()
    return graph, inputs


def _compiled(name: str, code: str) -> bytes:
    """The cubin of one of Inductor's Triton kernels, in the first of its configurations."""
    import torch._inductor.runtime.triton_heuristics as heuristics
    import triton
    from torch._inductor.codecache import PyCodeCache

    tuner = getattr(PyCodeCache.load(code), name)
    original, binaries = triton.compile, []

    def keep(*args, **options):
        binaries.append(original(*args, **options))
        raise _Stopped

    triton.compile = heuristics.triton.compile = keep
    try:
        tuner._precompile_config(tuner.configs[0])
    except _Stopped:
        pass
    finally:
        triton.compile = heuristics.triton.compile = original
    return binaries[0].asm["cubin"]


def registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes a thread of memory for what the registers do not hold."""
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local
