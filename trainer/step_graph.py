"""A training step as one CUDA graph: the host launches one thing a step instead of hundreds.

Launching B_6-Wi_512's 245 kernels one by one took a host 7.5 ms, an H200 needed 5.6 ms to run them; of models and
batches as small as CIFAR's, launching is nearly everything.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields

import torch

from mlpdata.augment.batch import Batch
from mlpdata.errors import first_line

WARM_UP = 3  # steps taken one kernel at a time: what is compiled is compiled, optimizers make their state


class StepGraph:
    """take(batch) -> tensors, the same ones at every call, whose kernels a graph replays from the fourth batch on.

    A batch is copied to where the captured kernels read. Batches of other sizes, and every batch if capturing fails,
    are taken without the graph; a warning says the latter.
    """

    def __init__(self, take: Callable[[Batch], tuple[torch.Tensor, ...]], enabled: bool):
        self._take, self._left, self._replay = take, WARM_UP if enabled else -1, None
        self._batch: Batch | None = None

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        if self._left == 0:
            self._left = -1
            self._capture(batch)
        self._left -= self._left > 0
        if self._replay is None or self._batch is None or not _fill(self._batch, batch):
            return self._take(batch)
        self._replay()
        return self._results

    def _capture(self, batch: Batch) -> None:
        captured = copy.deepcopy(batch)
        try:
            self._replay, self._results = capture(lambda: self._take(captured))
            self._batch = captured
        except RuntimeError as e:  # from CUDA
            warnings.warn(f"train.cuda_graphs: steps run without, which is slower: {first_line(e):.300}", stacklevel=4)


def capture(act: Callable[[], tuple[torch.Tensor, ...]]) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """(what replays the kernels that `act` launches, act's results, which each replay fills anew)."""
    graph = torch.cuda.CUDAGraph()
    # Threads that read data go on allocating and copying meanwhile, which is not of this graph.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        results = act()
    return graph.replay, results


def _tensors(batch: Batch) -> list[torch.Tensor | None]:
    return [getattr(batch, f.name) for f in fields(batch)]


def _fill(target: Batch, source: Batch) -> bool:
    """Copy a batch into another one; False, with nothing copied, where their tensors differ in shape."""
    pairs = list(zip(_tensors(target), _tensors(source), strict=True))
    if any(getattr(a, "shape", None) != getattr(b, "shape", None) for a, b in pairs):
        return False
    for a, b in pairs:
        if a is not None and b is not None:
            a.copy_(b, non_blocking=True)
    return True
