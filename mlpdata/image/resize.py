"""Resize: the rules and filters, and an area mean for JPEGs that were decoded at a reduced scale."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image

BAND = 8  # target rows or columns that one matrix product makes: more multiply more zeros, fewer are more calls
# Multiplications in one product. OpenBLAS gives threads to products of more than 2^18, and threads of several processes
# that wait for each other take 30 times as long: 126 ms for 4 ms, two processes with 1000 x 700 pixels to 224.
MAX_PRODUCT = 1 << 18


@dataclass(frozen=True)
class Resize:
    """How images come to their stored size. The rules and filters are listed in `mlpdata.choices`.

    squash:  exactly res x res, aspect ratio given up (as Downsampled-ImageNet and the paper do).
    crop:    shorter side to res, centre res x res kept.
    longest: longer side to res, aspect ratio kept; sizes differ. Smaller images stay as they are.
    """

    res: int
    rule: str = "squash"
    filter: str = "box"

    def box_and_size(self, width: int, height: int) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
        """The box of a (width, height) source that is resized, and the (width, height) it is resized to.

        >>> Resize(64, "crop").box_and_size(500, 300)
        ((100.0, 0.0, 400.0, 300.0), (64, 64))
        >>> Resize(64, "longest").box_and_size(500, 300)
        ((0.0, 0.0, 500.0, 300.0), (64, 38))
        """
        whole = (0.0, 0.0, float(width), float(height))
        if self.rule == "squash":
            return whole, (self.res, self.res)
        if self.rule == "crop":
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return (left, top, left + side, top + side), (self.res, self.res)
        scale = min(1.0, self.res / max(width, height))
        return whole, (max(1, round(width * scale)), max(1, round(height * scale)))

    def keeps(self, width: int, height: int) -> bool:
        """Whether an image of this size is stored at its own size."""
        if self.rule == "longest":  # what box_and_size says, without its arithmetic: it is asked for every image
            return max(width, height) <= self.res
        return width == height == self.res

    def pillow(self, image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
        """A box of an image resized to (width, height) by Pillow's filter."""
        return image.resize(size, Image.Resampling[self.filter.upper()], box=box)


def resized(pixels: np.ndarray, resize: Resize, width: int, height: int) -> np.ndarray:
    """Resize decoded pixels, which may be a scaled-down version of a (width, height) source.

    pixels: (H, W, 3) uint8. Returns the stored size, uint8, C-contiguous; `pixels` itself if it has that size.
    """
    box, size = resize.box_and_size(width, height)
    h, w = pixels.shape[:2]
    if (w, h) == size:
        return pixels
    sx, sy = w / width, h / height
    box = (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
    if resize.filter == "box" and (w, h) != (width, height):
        return area_mean(pixels, box, size)
    return np.asarray(resize.pillow(Image.fromarray(pixels), size, box))


def area_mean(pixels: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """Every target pixel is the mean of the source area it covers; pixels at the edges count by their covered share.

    Pillow's box weighs a source pixel fully or not at all. That is nearly the same for a full decode, where a target
    pixel averages dozens of pixels. Of a scaled decode it averages two or three by turns, and edges jump.

    pixels: (H, W, 3) uint8, C-contiguous. box: (left, top, right, bottom) in its pixels. size: (width, height), no more
    than the box has. Returns (height, width, 3) uint8.

    Two matrix products, first down, then across, each by bands of the weights that are not zero. Weights are whole
    256ths, so every sum is a whole number below 2^24: exact in float32 whatever the order of the additions, and the
    bytes are the same on every processor.
    """
    (h, w), (left, top, right, bottom), (width, height) = pixels.shape[:2], box, size
    source = pixels.reshape(h, 3 * w).astype(np.float32)
    rows = np.empty((height, 3 * w), np.float32)
    for target, start, stop, weights in _bands(h, round(top, 6), round(bottom, 6), height, 1):
        step = max(1, MAX_PRODUCT // weights.size)
        for first in range(0, 3 * w, step):
            columns = slice(first, first + step)
            np.matmul(weights, source[start:stop, columns], out=rows[target : target + BAND, columns])
    out = np.empty((height, 3 * width), np.float32)
    for target, start, stop, weights in _bands(w, round(left, 6), round(right, 6), width, 3):
        step = max(1, MAX_PRODUCT // weights.size)
        for first in range(0, height, step):
            some = slice(first, first + step)
            np.matmul(rows[some, start:stop], weights, out=out[some, target : target + 3 * BAND])
    out += 1 << 15
    out *= 1 / (1 << 16)
    return out.astype(np.uint8).reshape(height, width, 3)


@functools.lru_cache(256)  # 80 kB each for photographs of 500 pixels, which come to few sizes once they are scaled
def _bands(n: int, start: float, stop: float, m: int, channels: int) -> list[tuple[int, int, int, np.ndarray]]:
    """Weights, in 256ths, of the means of m equal intervals from `start` to `stop` of n pixels, in bands of BAND means.

    Returns (first mean, first value, value behind the last, float32 weights) of each band. Weights of one channel are
    (means, values) and multiply from the left; those of several interleaved channels (values, means), from the right.
    """
    step = (stop - start) / m
    edges = start + np.arange(m) * step
    covered = np.clip(np.arange(n + 1) - edges[:, None], 0, step)  # of each interval, by the pixels before each
    whole = np.diff(np.rint(covered * (256 / step)), axis=1).astype(np.float32)
    bands = []
    for first in range(0, m, BAND):
        weights = whole[first : first + BAND]
        used = np.flatnonzero(weights.any(axis=0))
        a, b = int(used[0]), int(used[-1]) + 1
        weights = weights[:, a:b]
        if channels > 1:
            weights = np.kron(weights.T, np.eye(channels, dtype=np.float32))  # each channel by itself
        bands.append((first * channels, a * channels, b * channels, np.ascontiguousarray(weights)))
    return bands
