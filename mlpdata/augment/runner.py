"""How an augmentation runs: compiled or not, and on the CPU a few images at a time. The results are the same."""

from __future__ import annotations

import time
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlpdata.augment.batch import DTYPES
from mlpdata.augment.draws import Draws
from mlpdata.augment.geometry import Geometry, geometry_of, purposes_of, tables_of
from mlpdata.augment.pixels import StoredImages, fill
from mlpdata.augment.sampling import gather, passes, products, turned

if TYPE_CHECKING:
    from mlpdata.augment.augment import Augment

# Images a step on the CPU, whose float32 pixels stay in the cache; even, for the pairs of mixup.
STEP = 32  # eager
STEP_BYTES = 4 << 20  # compiled
FEW = 3  # images: so few run uncompiled, because the compiler would make a version of its own for each number
COMPILE_PAYS_S = 30.0  # of eager work on the CPU before it is worth the compiler's 10 to 20 seconds


class Runner:
    """Runs an Augment on images of one size and kind."""

    def __init__(self, augment: Augment, height: int, width: int, has_chroma: bool, device: torch.device):
        self.augment, self.purposes = augment, purposes_of(augment)
        self._kind = tables_of(augment, device), (height, width), has_chroma
        self._on_cpu = device.type == "cpu"
        self._compiled_step = max(8, STEP_BYTES // (12 * height * width)) // 2 * 2
        self._may_compile, self._eager_s = augment.compile is not False, 0.0
        self._compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = cache(self._compile)

    def __call__(self, images: Tensor, chroma: Tensor | None, draws: Draws) -> tuple[Tensor, Tensor | None]:
        """(finished batch, weights of the own labels or None)."""
        pays = self.augment.compile or not self._on_cpu or self._eager_s > COMPILE_PAYS_S
        if self._may_compile and pays and len(images) > FEW:
            try:
                draws = Draws(_any_length(draws.values)[0], draws.purposes)
                geometry, lam = self._compiled(geometry_of)(draws, *self._kind)
                return self._by_steps(self._fill_compiled, self._compiled_step, images, chroma, geometry), lam
            except torch.OutOfMemoryError:
                raise
            except Exception as e:
                self._may_compile = False
                reason = " ".join([line for line in str(e).splitlines() if line.strip()][:2]) or type(e).__name__
                _warn_once(f"augmentation runs uncompiled, which is slower: {reason}")
        started = time.perf_counter()
        geometry, lam = geometry_of(self.augment, draws, *self._kind)
        x = self._by_steps(self._fill, STEP, images, chroma, geometry)
        self._eager_s += time.perf_counter() - started
        return x, lam

    def _by_steps(self, fill_step, step: int, images: Tensor, chroma: Tensor | None, geometry: Geometry) -> Tensor:
        """The finished batch; on the CPU, `step` images at a time."""
        a, n = self.augment, len(images)
        order = torch.channels_last if a.layout == "channels_last" else torch.contiguous_format
        shape = (n, 3, *a.output_size(self._kind[1]))
        x = torch.empty(shape, dtype=DTYPES[a.dtype], device=images.device, memory_format=order)
        x = x.flatten(1) if a.layout == "flat" else x
        step = step if self._on_cpu else max(1, n)
        for start in range(0, n, step):
            some = slice(start, start + step)
            fill_step(x[some], images[some], None if chroma is None else chroma[some], geometry.of(some))
        return x

    def _fill(self, out: Tensor, images: Tensor, chroma: Tensor | None, geometry: Geometry) -> None:
        sample = products if self._on_cpu else gather
        fill(self.augment, out, StoredImages(images, chroma, sample), geometry)

    def _fill_compiled(self, out: Tensor, images: Tensor, chroma: Tensor | None, geometry: Geometry) -> None:
        if len(images) <= FEW:
            self._fill(out, images, chroma, geometry)
            return
        if self._on_cpu and geometry.rows is not None:
            images, chroma = turned(images), None if chroma is None else turned(chroma)
        out, images, chroma, *fields = _any_length(out, images, chroma, *geometry)
        sample = passes if self._on_cpu else gather
        self._compiled(fill)(out, StoredImages(images, chroma, sample), Geometry(*fields))

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the Augment under torch.compile, for one image size and any number of images.

        The compiler counts the versions of a code object and gives up at eight, so each Augment has its own copy.
        """
        copy = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
        return torch.compile(types.MethodType(copy, self.augment), fullgraph=True, dynamic=False)


runner_of = cache(Runner)


@cache
def _warn_once(line: str) -> None:
    warnings.warn(line, RuntimeWarning, stacklevel=2)


def _any_length(*tensors: Tensor | None) -> list[Any]:
    """Views of tensors that the compiler does not tie to their number of samples."""
    views = [None if t is None else t.detach() for t in tensors]
    for view in views:
        if view is not None:
            torch._dynamo.maybe_mark_dynamic(view, 0)
    return views
