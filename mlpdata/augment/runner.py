"""How an augmentation runs. The results are the same to the bit, in float32, wherever and however that is.

On a GPU: two Triton kernels, or, where they do not compile, torch operations.
On the CPU: torch.compile, once that pays, or torch operations; a few images at a time, which stay in the cache.
"""

from __future__ import annotations

import time
import types
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mlpdata.augment.batch import DTYPES, Batch
from mlpdata.augment.draws import Draws
from mlpdata.augment.geometry import Geometry, geometry_of, purposes_of, tables_of
from mlpdata.augment.pixels import StoredImages, fill
from mlpdata.augment.sampling import gather, passes, products, turned
from mlpdata.errors import compiler_reason
from mlpdata.system.progress import announce

if TYPE_CHECKING:
    from mlpdata.augment.augment import Augment

# Float32 pixels of a step on the CPU, which stay in the cache. Of 16 to 1,024 images uncompiled, from 16 to 128 px and
# with three sets of options, so many took the least time or nearly so: 0.34 to 1 of that of always 32, once 1.07.
EAGER_BYTES, COMPILED_BYTES = 3 << 19, 4 << 20
LEAST_STEP = 8  # images
FEW = 3  # images: so few run uncompiled, because the compiler would make a version of its own for each number
COMPILE_PAYS_S = 30.0  # of eager work on the CPU before it is worth the compiler's 10 to 20 seconds


class Runner:
    """Runs an Augment on images of one size and kind."""

    def __init__(self, augment: Augment, height: int, width: int, has_chroma: bool, device: torch.device):
        self.augment, self._purposes = augment, purposes_of(augment)
        self._kind = tables_of(augment, device), (height, width), has_chroma
        self._on_cpu = device.type == "cpu"
        self._eager_step, self._compiled_step = (
            max(LEAST_STEP, most // (12 * height * width)) // 2 * 2  # even, for the pairs of mixup
            for most in (EAGER_BYTES, COMPILED_BYTES)
        )
        self._may_compile, self._announced, self._eager_s = augment.compile is not False, False, 0.0
        self._compiled: Callable[[Callable[..., Any]], Callable[..., Any]] = cache(self._compile)

    def __call__(self, batch: Batch, epoch: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """(finished batch, weights of the own labels or None)."""
        pays = self.augment.compile or self._eager_s > COMPILE_PAYS_S
        if self._may_compile and (not self._on_cpu or (pays and len(batch.ids) > FEW)):
            try:
                return (self._run_compiled if self._on_cpu else self._run_kernels)(batch, epoch, seed)
            except torch.OutOfMemoryError:
                raise
            except Exception as e:
                self._may_compile = False
                _warn_once(f"augmentation runs uncompiled, which is slower: {compiler_reason(e)}")
        started = time.perf_counter()
        draws = Draws.of(batch.ids, seed, epoch, self._purposes)
        geometry, lam = geometry_of(self.augment, draws, *self._kind)
        step = self._eager_step if self._on_cpu else max(1, len(batch.ids))
        x = self._by_steps(self._fill, step, batch, geometry)
        self._eager_s += time.perf_counter() - started
        return x, lam

    def _run_kernels(self, batch: Batch, epoch: int, seed: int) -> tuple[Tensor, Tensor | None]:
        # They import triton, which takes a while and may be missing.
        from mlpdata.augment import geometry_kernel, pixels_kernel

        geometry, lam = geometry_kernel.geometry_of(self.augment, batch.ids, seed, epoch, *self._kind)
        x = self._empty(batch)
        pixels_kernel.fill(self.augment, x, batch.images, batch.chroma, batch.rows, geometry)
        return x, lam

    def _run_compiled(self, batch: Batch, epoch: int, seed: int) -> tuple[Tensor, Tensor | None]:
        if not self._announced:
            self._announced = True
            announce("compiling the augmentation for this CPU, once")
        draws = Draws.of(batch.ids, seed, epoch, self._purposes)
        draws = Draws(_any_length(draws.values)[0], self._purposes)
        geometry, lam = self._compiled(geometry_of)(draws, *self._kind)
        return self._by_steps(self._fill_compiled, self._compiled_step, batch, geometry), lam

    def _by_steps(self, fill_step: Callable[..., None], step: int, batch: Batch, geometry: Geometry) -> Tensor:
        """The finished batch, `step` images at a time."""
        x = self._empty(batch)
        for start in range(0, len(x), step):
            some = slice(start, start + step)
            stored = some if batch.rows is None else batch.rows[some]
            chroma = None if batch.chroma is None else batch.chroma[stored]
            fill_step(x[some], batch.images[stored], chroma, geometry.of(some))
        return x

    def _empty(self, batch: Batch) -> Tensor:
        a = self.augment
        order = torch.channels_last if a.layout == "channels_last" else torch.contiguous_format
        shape = (len(batch.ids), 3, *a.output_size(self._kind[1]))
        x = torch.empty(shape, dtype=DTYPES[a.dtype], device=batch.images.device, memory_format=order)
        return x.flatten(1) if a.layout == "flat" else x

    def _fill(self, out: Tensor, images: Tensor, chroma: Tensor | None, geometry: Geometry) -> None:
        sample = products if self._on_cpu else gather
        fill(self.augment, out, StoredImages(images, chroma, sample), geometry)

    def _fill_compiled(self, out: Tensor, images: Tensor, chroma: Tensor | None, geometry: Geometry) -> None:
        if len(images) <= FEW:
            self._fill(out, images, chroma, geometry)
            return
        if geometry.rows is not None:
            images, chroma = turned(images), None if chroma is None else turned(chroma)
        out, images, chroma, *fields = _any_length(out, images, chroma, *geometry)
        self._compiled(fill)(out, StoredImages(images, chroma, passes), Geometry(*fields))

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
