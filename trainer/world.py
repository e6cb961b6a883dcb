"""The processes that train one model together. A single process is a world of size 1 and communicates with nobody.

torchrun starts them and numbers them in the environment; `torch.distributed` adds up their sums.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from mlpdata.errors import Error, first_line

TIMEOUT = timedelta(minutes=10)  # for another process; loading and evaluating take less


@dataclass(frozen=True)
class World:
    """rank: of this process, from 0. size: number of processes. control: the group for decisions, which are on the CPU.

    >>> World().any(True, False)
    [True, False]
    """

    rank: int = 0
    size: int = 1
    control: Any = None

    def reduce(self, values: torch.Tensor, how: str = "sum") -> torch.Tensor:
        """The sum, least or greatest over all processes, a new tensor; every process must call it."""
        if self.size == 1:
            return values
        out = values.clone()
        dist.all_reduce(out, {"sum": dist.ReduceOp.SUM, "min": dist.ReduceOp.MIN, "max": dist.ReduceOp.MAX}[how])
        return out

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true where it is true for any process. Waits for the others, but not for the device."""
        if self.size == 1:
            return list(flags)
        reduced = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(reduced, dist.ReduceOp.MAX, group=self.control)
        return [bool(flag) for flag in reduced.tolist()]

    def from_first(self, make: Callable[[], Any]) -> Any:
        """The value that the first process makes, in all processes; an Error of the first is raised in all."""
        if self.size == 1:
            return make()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = make()
            except Error as e:
                box[1] = str(e)
        dist.broadcast_object_list(box, src=0, group=self.control)
        if box[1] is not None:
            raise Error(box[1])
        return box[0]


def device_of(name: str, option: str = "--device") -> torch.device:
    """A device by name; auto takes a GPU where there is one. option: what the user set. Raises Error."""
    if name == "cuda" and not torch.cuda.is_available():
        raise Error(f"{option} is cuda, but torch finds no CUDA device; leave it at auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def precision_of(name: str, device: torch.device) -> str:
    """The recipe's precision; auto takes bf16 where the hardware multiplies it. Raises Error."""
    if name == "fp16" and device.type == "cpu":
        raise Error("train.precision fp16 needs a GPU; use fp32 or bf16 on the CPU")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    # AVX-512 without its bf16 instructions computes bf16 too, but slower than fp32.
    has = [getattr(torch.cpu, f"_is_{unit}_supported", bool) for unit in ("avx512_bf16", "amx_tile")]
    return "bf16" if any(ask() for ask in has) else "fp32"


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Where the precision is tf32, torch multiplies float32 in TF32 until the block ends, and then as it did before."""
    if precision != "tf32":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def join(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone.

    When a process ends, for whatever reason, the others raise Error instead of waiting for it. After an error the group
    is not destroyed: destroying a broken group can abort the process.
    """
    try:
        rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        raise Error("RANK and WORLD_SIZE in the environment must be numbers; torchrun sets them") from None
    if size == 1:
        yield World()
        return
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    try:
        dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=TIMEOUT) if on_gpu else dist.group.WORLD
        yield World(rank, size, control)
        dist.destroy_process_group()
    except (dist.DistError, RuntimeError) as e:
        text = first_line(e)
        if not isinstance(e, dist.DistError) and not any(w in text.lower() for w in ("gloo", "peer", "timed out")):
            raise
        raise Error(
            f"process {rank} of {size} lost another one, whose own message says why ({text[:120]}); "
            "the same command with --resume goes on from the last checkpoint"
        ) from None
