"""The kernels of augmentation and loss as a GPU would run them, known without one: bytes, registers, spills.

    python tests/bench/kernels.py

Compiles the Triton kernels for sm_90 (H100) and sm_89 (RTX 4090), for which triton's wheel is enough, and reads
registers and spills from the code. Prints one JSON row a kernel, option set and chip.

A batch takes both: `geometry` (draws to positions and boxes), then `pixels` (stored pixels, gathered by row, to the
finished batch). `bytes` is what a kernel has to move, each input and output once. `bytes_ratio` is that over the
batch's stored pixels and outputs; the two kernels' ratios add up. `loss` reads the logits of --classes and writes their
gradient.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from pathlib import Path

import harness
import torch

from mlpdata import Augment
from mlpdata.augment.batch import DTYPES
from mlpdata.augment.geometry import tables_of
from trainer.model import ALIGNMENT

try:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mlpdata.augment import geometry_kernel, pixels_kernel
    from trainer import loss_kernel
except ImportError:
    triton = None

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHIPS = {"sm_90": 90, "sm_89": 89}
POINTERS = {
    torch.uint8: "*u8", torch.int32: "*i32", torch.int64: "*i64", torch.float32: "*fp32", torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}  # fmt: skip


def compiled(function, arguments: dict, constants: dict, chip: int):
    """A kernel compiled for arguments like these: tensors, numbers, None."""
    signature, constexprs, attributes = {}, {}, {}
    options = {name: constants[name] for name in ("num_warps", "enable_fp_fusion") if name in constants}
    numbers = {name: value for name, value in constants.items() if isinstance(value, float)}
    arguments, constants = arguments | numbers, {k: v for k, v in constants.items() if k not in numbers | options}
    for index, name in enumerate(function.arg_names):
        value = arguments.get(name)
        if name in constants or value is None:
            signature[name] = "constexpr"
            constexprs[(index,)] = constants.get(name)
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i64" if value >= 1 << 31 else "i32"
    source = ASTSource(function, signature, constexprs, attributes)
    return triton.compile(source, target=GPUTarget("cuda", chip, 32), options=options)


def registers_and_spills(cubin: bytes) -> tuple[int, int]:
    """Registers a thread, and bytes a thread of memory for what the registers do not hold."""
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        text = subprocess.run([cuobjdump, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def num_bytes(*tensors) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def rows(name: str, a: Augment, is_ycc: bool, batch: int, res: int, chip: str):
    """A row for each of the two kernels."""
    meta = torch.device("meta")  # only shapes and types are looked at
    images = torch.empty((batch, res, res, 1 if is_ycc else 3), dtype=torch.uint8, device=meta)
    chroma = torch.empty((batch, res // 2, res // 2, 2), dtype=torch.uint8, device=meta) if is_ycc else None
    out = torch.empty((batch, 3, res, res), dtype=DTYPES[a.dtype], device=meta)
    ids, norm = torch.empty(batch, dtype=torch.int64, device=meta), torch.empty((3, 2), device=meta)
    geometry, lam = geometry_kernel._empty(a, ids, (res, res), is_ycc)
    tables = geometry_kernel.tensors_of(tables_of(a, torch.device("cpu")))
    made = {**geometry._asdict(), "lam": lam}
    names = ("crop_table", "erase_table", "mixup_table", "cutmix_table")
    kernels = {
        "geometry": (
            geometry_kernel._geometry,
            {"ids": ids, "key": 1 << 40, **dict(zip(names, tables, strict=True)), **made},
            geometry_kernel.launch_of(a, batch, (res, res)),
        ),
        "pixels": (
            pixels_kernel._fill,
            {"out": out, "images": images, "chroma": chroma, "which": ids, **geometry._asdict(), "norm": norm},
            pixels_kernel.launch_of(a, batch, res, res),
        ),
    }
    least = num_bytes(images, chroma, out)
    for kernel, (function, arguments, (grid, constants)) in kernels.items():
        row = {"bench": "kernels", "kernel": kernel, "set": name, "pixels": "ycc420" if is_ycc else "rgb"}
        row |= {"chip": chip, "batch": batch, "res": res, "dtype": a.dtype, "programs": math.prod(grid)}
        moved = num_bytes(*(t for t in arguments.values() if isinstance(t, torch.Tensor)))
        row |= {"bytes": moved, "bytes_ratio": round(moved / least, 3)}
        binary = compiled(function, arguments | {"num_samples": batch}, constants, CHIPS[chip])
        row["registers"], row["spill_bytes"] = registers_and_spills(binary.asm["cubin"])
        row |= {"shared_bytes": binary.metadata.shared} | harness.machine("torch", "triton")
        yield row


def loss_row(classes: int, batch: int, chip: str) -> dict:
    """The kernel of the loss, for a mixed batch in bf16."""
    meta, width = torch.device("meta"), classes + -classes % ALIGNMENT
    labels, weights = torch.empty(batch, dtype=torch.int64, device=meta), torch.empty(batch, device=meta)
    logits = torch.empty((batch, width), dtype=torch.bfloat16, device=meta)
    losses, right, gradient = loss_kernel._empty(logits)
    arguments = {"logits": logits, "labels": labels, "mix_labels": labels, "mix_lam": weights, "losses": losses,
                 "right": right, "gradient": gradient, "sharpness": 0.7, "spread": 1e-5}  # fmt: skip
    binary = compiled(loss_kernel._loss_and_gradient, arguments,
                      loss_kernel.constants_of(width, classes), CHIPS[chip])  # fmt: skip
    registers, spills = registers_and_spills(binary.asm["cubin"])
    moved = num_bytes(*(t for t in arguments.values() if isinstance(t, torch.Tensor)))
    return {"bench": "kernels", "kernel": "loss", "classes": classes, "chip": chip, "batch": batch, "dtype": "bfloat16",
            "programs": batch, "bytes": moved, "bytes_ratio": round(moved / num_bytes(logits, gradient), 3),
            "registers": registers, "spill_bytes": spills, "shared_bytes": binary.metadata.shared,
            **harness.machine("torch", "triton")}  # fmt: skip


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--batch", type=int, default=16_384)
    parser.add_argument("--res", type=int, default=64)
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES)
    parser.add_argument("--set", nargs="*", default=list(harness.AUGMENTATIONS), choices=harness.AUGMENTATIONS)
    parser.add_argument("--classes", type=int, nargs="*", default=[1000, 11_230])
    parser.add_argument("--chip", nargs="+", default=list(CHIPS), choices=CHIPS)
    args = parser.parse_args()
    if triton is None:
        parser.error("triton is not installed: pip install triton")
    for chip in args.chip:
        for name in args.set:
            for is_ycc in (False, True):
                a = Augment(**harness.AUGMENTATIONS[name], mean=MEAN, std=STD, dtype=args.dtype)
                for row in rows(name, a, is_ycc, args.batch, args.res, chip):
                    harness.report(row)
        for classes in args.classes:
            harness.report(loss_row(classes, args.batch, chip))


if __name__ == "__main__":
    main()
