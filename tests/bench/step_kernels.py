"""The kernels of a compiled training step as a GPU would run them, known without one: bytes, registers, spills.

    python -m venv gpu-env && gpu-env/bin/pip install torch -e .     # a build of torch for CUDA, with its own triton
    gpu-env/bin/python tests/bench/step_kernels.py [--model B_6-Wi_512] [--chip sm_90] [--batch 16384] [--classes 11230]

Model, loss and right answers are traced on tensors without memory, forward and backward, and handed to Inductor as if
they lay on the chip. Inductor's Triton kernels are then compiled for it; nothing runs. Prints one JSON row: GB that
products and the other kernels move, launches, and of each kernel its registers and spilt bytes.

The autocast is the CPU's. Graph breaks are counted in tests/trainer; the augmentation's kernels are in kernels.py.
"""

from __future__ import annotations

import copy
import logging
import re
import types

import harness
import torch
from kernels import CHIPS, registers_and_spills

SMOOTHING = 0.3  # the paper's

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


class Lowered(Exception):
    """Raised when Inductor has written its code, or compiled a kernel: there is no chip to load it on."""


def on_chip(graph, example_inputs, mode):
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


def lowered(function, mode, *inputs) -> list[tuple[str, list[tuple[str, float]]]]:
    """(code, [(kind of a kernel, GB)]) of forward and backward of a function that returns (loss, ...)."""
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.graph import GraphLowering
    from torch.utils._pytree import tree_leaves

    graphs = []

    def stop(graph):
        code, _ = graph.codegen()
        sizes = [(type(node).__name__, node.get_read_write_buffers_sizes() / 1e9) for node in graph.scheduler.nodes]
        graphs.append((getattr(code, "value", code), [(kind, gb) for kind, gb in sizes if "Nop" not in kind]))
        raise Lowered

    def lower(graph, example_inputs, **options):
        moved, inputs = on_chip(graph, example_inputs, mode)
        GraphLowering.compile_to_module = GraphLowering._compile_to_module = stop
        try:
            compile_fx_inner(moved, inputs, **options)
        except BaseException as e:
            cause = e
            while cause is not None and not isinstance(cause, Lowered):
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
    loss = traced(*inputs)[0]
    torch.autograd.grad(loss, [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor) and t.requires_grad])
    return graphs


def compiled(name: str, code: str):
    """The cubin of one of Inductor's Triton kernels, in the first of its configurations."""
    import torch._inductor.runtime.triton_heuristics as heuristics
    import triton
    from torch._inductor.codecache import PyCodeCache

    tuner = getattr(PyCodeCache.load(code), name)
    original, binaries = triton.compile, []

    def keep(*args, **options):
        binaries.append(original(*args, **options))
        raise Lowered

    triton.compile = heuristics.triton.compile = keep
    try:
        tuner._precompile_config(tuner.configs[0])
    except Lowered:
        pass
    finally:
        triton.compile = heuristics.triton.compile = original
    return binaries[0].asm["cubin"]


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--model", default="B_6-Wi_512")
    parser.add_argument("--chip", default="sm_90", choices=CHIPS)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--classes", type=int, default=11_230)
    parser.add_argument("--res", type=int, default=64)
    args = parser.parse_args()
    if torch.version.cuda is None:
        parser.error(f"torch {torch.__version__} is no build for CUDA; see the head of this script")
    pretend(args.chip)
    from torch._inductor import config
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm
    from torch._inductor.runtime import triton_helpers
    from torch._subclasses.fake_tensor import FakeTensorMode

    from trainer.loss import _whole
    from trainer.model import build

    config.compile_threads, config.force_disable_caches, config.shape_padding = 1, True, False
    logging.getLogger("torch._inductor.runtime.triton_heuristics").disabled = True  # it reports how `compiled` stops it
    triton_helpers.set_driver_to_gpu = lambda: None
    # Patterns of attention and the like, which are made with tensors on the chip.
    fuse_attention._sfdp_init = misc_patterns._misc_patterns_init = pad_mm._pad_mm_init = lambda *args: None
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = build(args.model, args.res, args.classes)
        names = [name for name, _ in model.named_parameters()]
        params = [p.detach().requires_grad_() for p in model.parameters()]
        images = torch.empty(args.batch, 3, args.res, args.res, dtype=torch.bfloat16)
        labels, lam = torch.zeros(args.batch, dtype=torch.int64), torch.zeros(args.batch)

        def step(params, images, labels, mix_labels, lam):
            with torch.autocast("cpu", torch.bfloat16):
                logits = torch.func.functional_call(model, dict(zip(names, params, strict=True)), (images,))
            with torch.autocast("cpu", enabled=False):
                return _whole(logits, labels, mix_labels, lam, SMOOTHING)

        graphs = lowered(step, mode, params, images, labels, labels.clone(), lam)
    row = {"bench": "step_kernels", **vars(args), **harness.machine("torch", "triton")}
    row |= {"products_gb": 0.0, "other_gb": 0.0, "launches": 0, "spill_bytes": 0, "kernels": {}}
    for (code, sizes), name_of_graph in zip(graphs, ("forward", "backward"), strict=True):
        row["launches"] += len(re.findall(r"^\s+triton_\w+\.run\(", code, re.MULTILINE))
        for kind, gb in sizes:
            row["products_gb" if "Extern" in kind else "other_gb"] += gb
        for name, source in KERNEL.findall(code):
            registers, spill_bytes = registers_and_spills(compiled(name, source))
            row["kernels"][f"{name_of_graph} {name}"] = {"registers": registers, "spill_bytes": spill_bytes}
            row["spill_bytes"] += spill_bytes
    row |= {name: round(row[name], 3) for name in ("products_gb", "other_gb")}
    harness.report(row)


if __name__ == "__main__":
    main()
