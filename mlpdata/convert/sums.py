"""Sums over many samples, which add up over workers: mean and standard deviation of pixels, fidelity of the decode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlpdata.shards.manifest import Fidelity


@dataclass
class Summary:
    """Counts and sums over samples.

    >>> total = Summary(num_samples=2, measured_max_diff=7)
    >>> total.add(Summary(num_samples=3, measured_max_diff=5))
    >>> total.num_samples, total.measured_max_diff
    (5, 7)
    """

    num_samples: int = 0
    num_pixels: int = 0
    pixel_sum: tuple[int, int, int] = (0, 0, 0)
    pixel_sum_squared: tuple[int, int, int] = (0, 0, 0)
    num_encoded_here: int = 0  # lossy encodings made, not passed through
    num_repaired: int = 0  # JPEGs that libjpeg warns about, read as Pillow repairs them
    num_measured: int = 0  # images on which the fidelity of the scaled decode was measured
    measured_values: int = 0
    measured_squared_error: float = 0.0
    measured_mse_squared: float = 0.0  # sum over images of the square of an image's mean squared error
    measured_max_diff: int = 0

    def add(self, other: Summary) -> None:
        for name, value in vars(other).items():
            mine = getattr(self, name)
            if name == "measured_max_diff":
                self.measured_max_diff = max(mine, value)
            elif isinstance(value, tuple):
                setattr(self, name, tuple(a + b for a, b in zip(mine, value, strict=True)))
            else:
                setattr(self, name, mine + value)

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Per channel, on the scale of 0 to 1, from exact integer sums."""
        n = max(1, self.num_pixels)
        mean = [s / n for s in self.pixel_sum]
        variance = [max(0.0, q / n - m * m) for q, m in zip(self.pixel_sum_squared, mean, strict=True)]
        return [round(m / 255, 6) for m in mean], [round(v**0.5 / 255, 6) for v in variance]

    def fidelity(self) -> Fidelity | None:
        """PSNR of the scaled decode against the exact one, for the manifest; None where nothing was measured.

        `psnr_db_upper` is what it may be if chance chose bad images: at two standard errors of the mean squared error.
        """
        n = self.num_measured
        if not n:
            return None
        mse = self.measured_squared_error / self.measured_values
        variance = max(0.0, self.measured_mse_squared / n - mse**2)
        least = mse - 2 * (variance / (n - 1)) ** 0.5 if n > 1 else 0.0
        return {
            "num_samples": n,
            "psnr_db": psnr_db(mse),
            "psnr_db_upper": psnr_db(least),
            "max_diff": self.measured_max_diff,
        }


def psnr_db(mse: float) -> float:
    """10 log10(255^2 / MSE), at most 99.

    >>> psnr_db(100.0), psnr_db(0.0)
    (28.13, 99.0)
    """
    return 99.0 if mse <= 0 else min(99.0, round(float(10 * np.log10(255**2 / mse)), 2))


class PixelSums:
    """Exact integer sums for mean and standard deviation, a block of images of one shape at a time.

    A block's sums fit 16 bits and its sums of squares 32 (64 images of 255 at most), which keeps numpy on narrow types.
    Blocks are added up byte by byte; the bytes of one channel are added up when the shape changes.
    """

    BLOCK, BLOCK_BYTES = 64, 2 << 20  # images, or as many as stay in a core's cache

    def __init__(self):
        self._waiting: list[np.ndarray] = []
        self._wide = np.empty((0, 0), np.uint16)  # a block's pixels, and then their squares
        self._columns = np.zeros((2, 0), np.int64)  # sums and sums of squares of each byte of an image
        self._pixels, self._totals = 0, np.zeros((2, 3), np.int64)

    def add(self, pixels: np.ndarray) -> None:
        """pixels: (H, W, 3) uint8."""
        waiting = self._waiting
        if waiting and (2 * len(waiting) * pixels.nbytes >= self.BLOCK_BYTES or waiting[0].shape != pixels.shape):
            self._add_waiting()
        self._waiting.append(pixels)

    def add_many(self, images: np.ndarray) -> None:
        """images: (N, 3 x pixels) uint8."""
        if self._columns.shape[1] != images.shape[1]:
            self._fold()
            self._columns = np.zeros((2, images.shape[1]), np.int64)
            num_rows = max(1, min(self.BLOCK, self.BLOCK_BYTES // (2 * images.shape[1])))
            self._wide = np.empty((num_rows, images.shape[1]), np.uint16)
        self._pixels += images.size // 3
        for start in range(0, len(images), len(self._wide)):
            block = images[start : start + len(self._wide)]
            wide = self._wide[: len(block)]
            np.copyto(wide, block)  # once: numpy would widen them anew in every step
            self._columns[0] += np.add.reduce(wide, axis=0, dtype=np.uint16)
            np.multiply(wide, wide, out=wide)
            self._columns[1] += np.add.reduce(wide, axis=0, dtype=np.uint32)

    def _add_waiting(self) -> None:
        self.add_many(np.stack(self._waiting).reshape(len(self._waiting), -1))
        self._waiting = []

    def _fold(self) -> None:
        self._totals += self._columns.reshape(2, -1, 3).sum(axis=1)
        self._columns[:] = 0

    def result(self) -> Summary:
        """Pixels, sums and sums of squares a channel."""
        if self._waiting:
            self._add_waiting()
        self._fold()
        (r, g, b), (rr, gg, bb) = self._totals.tolist()
        return Summary(num_pixels=self._pixels, pixel_sum=(r, g, b), pixel_sum_squared=(rr, gg, bb))
