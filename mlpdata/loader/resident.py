"""The resident tier: all pixels as one uint8 tensor on the device; a batch is one gather there."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import replace

import numpy as np
import torch

from mlpdata.augment.batch import Batch
from mlpdata.augment.chroma import from_ycc420, to_ycc420
from mlpdata.errors import Error
from mlpdata.loader.buffers import BufferPool, empty_store
from mlpdata.loader.memory_plan import plane_shapes
from mlpdata.loader.options import Pixels
from mlpdata.loader.order import EpochSteps
from mlpdata.loader.reader import Reader
from mlpdata.loader.subset import Selection
from mlpdata.system.progress import Progress
from mlpdata.system.threads import WaitClock

LOAD_BYTES = 64 << 20  # of pixels read at a time
NUM_ROWS = 1 << 16  # row numbers sent to a GPU at a time
SHOW_AFTER_S = 3.0  # seconds of reading, after which a progress line shows


class Resident:
    """All pixels on the device, as RGB or as luma and chroma planes."""

    blocks = None  # its order is one of samples, not of blocks

    def __init__(self, reader: Reader, selection: Selection, device: torch.device, pixels: Pixels, quiet: bool = False):
        self.device, self.pixels = device, pixels
        self.stores = load_pixels(reader, selection.all_ids, device, pixels, quiet)
        self._labels = torch.from_numpy(selection.labels).to(device)
        self._ids = None if selection.ids is None else torch.from_numpy(selection.ids).to(device)
        self._buffers = BufferPool() if device.type == "cpu" else None

    def batches(self, steps: EpochSteps, clock: WaitClock | None = None) -> Generator[Batch, None, None]:
        """The batches of an epoch's steps, as rows of the stores: what augments them gathers them on the way.

        clock: stands still, since pixels are never waited for.
        """
        if self.device.type == "cpu":
            for step in steps.range:
                yield self._batch(torch.from_numpy(steps.rows(step)))
            return
        # The row numbers of many batches are sent at once, so that launching a batch needs no copy of its own.
        group = max(1, NUM_ROWS // steps.local_batch_size)
        for first in range(steps.range.start, steps.range.stop, group):
            rows = [steps.rows(step) for step in range(first, min(steps.range.stop, first + group))]
            on_device = torch.from_numpy(np.concatenate(rows)).pin_memory().to(self.device, non_blocking=True)
            for rows_of_step in on_device.split([len(r) for r in rows]):
                yield self._batch(rows_of_step)

    def _batch(self, rows: torch.Tensor) -> Batch:
        ids = rows if self._ids is None else self._ids.index_select(0, rows)
        return replace(batch_of(self.stores, self._labels.index_select(0, rows), ids), rows=rows)

    def gathered(self, batch: Batch) -> Batch:
        """A batch with pixels of its own."""
        rows = batch.rows
        assert rows is not None
        if self._buffers is None:
            planes = [store.index_select(0, rows) for store in self.stores]
        else:
            planes = [self._buffers.take((len(rows), *store.shape[1:])) for store in self.stores]
            for store, plane in zip(self.stores, planes, strict=True):
                torch.index_select(store, 0, rows, out=plane)
        return batch_of(planes, batch.labels, batch.ids)

    def rgb(self) -> torch.Tensor:
        """All pixels, uint8 (N, H, W, 3) on the device."""
        return from_ycc420(*self.stores) if len(self.stores) > 1 else self.stores[0]


def batch_of(planes: list[torch.Tensor], labels: torch.Tensor, ids: torch.Tensor) -> Batch:
    """A batch of RGB pixels [(n, H, W, 3)] or of planes [luma (n, H, W, 1), chroma (n, H/2, W/2, 2)]."""
    return Batch(planes[0], labels, ids, chroma=planes[1] if len(planes) > 1 else None)


def load_pixels(
    reader: Reader, ids: np.ndarray, device: torch.device, pixels: Pixels, quiet: bool = False
) -> list[torch.Tensor]:
    """Read samples to a device, as the planes of `plane_shapes` with a first dimension of len(ids).

    Reads LOAD_BYTES at a time: a GPU may have more free memory than the host. quiet: no progress line, which else shows
    where it takes its time.
    """
    stores = [empty_store((len(ids), *shape), device) for shape in plane_shapes(reader.shape, pixels)]
    converts = pixels == "ycc420" and not reader.has_coded_planes  # from RGB, on the device
    in_place = device.type == "cpu" and not converts
    step = max(1, LOAD_BYTES // reader.image_bytes)
    staging = [
        torch.empty((min(step, len(ids)), *shape), dtype=torch.uint8, pin_memory=device.type == "cuda")
        for shape in ([] if in_place else plane_shapes(reader.shape, "rgb" if converts else pixels))
    ]
    with Progress("loading", len(ids), quiet=quiet, after_s=SHOW_AFTER_S) as progress:
        for first in range(0, len(ids), step):
            rows = slice(first, min(first + step, len(ids)))
            planes = [store[rows] for store in stores] if in_place else [s[: rows.stop - first] for s in staging]
            reader.read(ids[rows], *(plane.numpy() for plane in planes))
            if not in_place:
                planes = [plane.to(device) for plane in planes]  # waits for the copy: the staging buffers are free
                for store, plane in zip(stores, to_ycc420(planes[0]) if converts else planes, strict=True):
                    store[rows] = plane
            progress.add(rows.stop - first)
    return stores


def ycc420_psnr(images: np.ndarray, luma: np.ndarray, chroma: np.ndarray) -> float:
    """How near luma and half-resolution chroma come to uint8 images (n, H, W, 3), in dB; infinite if equal."""
    restored = from_ycc420(torch.from_numpy(luma), torch.from_numpy(chroma))
    error = (restored.double() - torch.from_numpy(images)).square().mean()
    return float(10 * torch.log10(255**2 / error))


def mapped_pixels(reader: Reader) -> np.ndarray | None:
    """All pixels, uint8 (n, H, W, 3), as a read-only map of their file; None unless they lie in one at even distances.

    Raises Error where the file cannot be read or has changed.
    """
    index, shape, n = reader.index, reader.shape, len(reader.index)
    if len(index.files) > 1 or not reader.all_raw or index.cache:
        return None
    distances = np.diff(index.offset)
    distance = int(distances[0]) if n > 1 else reader.image_bytes
    if distance < reader.image_bytes or (distances != distance).any():
        return None
    try:
        reader.check_stamp(0, os.stat(index.files[0]))
        size = (n - 1) * distance + reader.image_bytes
        flat = np.memmap(index.files[0], np.uint8, "r", int(index.offset[0]), (size,))
    except OSError as e:
        raise Error(f"cannot read {index.files[0]}: {e.strerror}") from None
    strides = (distance, shape[1] * shape[2], shape[2], 1)
    return np.lib.stride_tricks.as_strided(flat, (n, *shape), strides, writeable=False)
