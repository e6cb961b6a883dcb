"""Shapes: a procedural data set, made on the spot for the demo and the tests.

Ten classes of outlines with random position, size, rotation, colours, textures and background. Neither a pixel nor a
colour predicts the class: a linear model stays well below an MLP. (seed, split, number) determines an image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlpdata.errors import Error
from mlpdata.sources.base import Sample, Source, Unit

NAMES = ["disc", "square", "triangle", "ring", "cross", "star", "bar", "crescent", "two discs", "frame"]
IMAGES_A_UNIT = 500


class Shapes(Source):
    """num_train and num_val images of res x res pixels, at least 8, with random classes."""

    codec = "array"

    def __init__(self, res: int = 32, seed: int = 0, num_train: int = 20_000, num_val: int = 2_000):
        if res < 8:
            raise Error(f"shapes need at least 8 pixels a side, not {res}")
        self.res, self.seed, self.counts = res, seed, {"train": num_train, "val": num_val}
        self.classes = [(n, n) for n in NAMES]
        self.release = f"shapes 1, seed {seed}"
        self.files = []

    def units(self) -> list[Unit]:
        return [
            Unit(f"{split}-{k:06d}", split, min(IMAGES_A_UNIT, n - k), 0, (k, min(n, k + IMAGES_A_UNIT)))
            for split, n in self.counts.items()
            for k in range(0, n, IMAGES_A_UNIT)
        ]

    def samples(self, unit: Unit) -> Iterator[Sample]:
        start, stop = unit.content
        # Units start at multiples of IMAGES_A_UNIT, so each has a random stream of its own for any num_train.
        rng = np.random.default_rng([self.seed, sum(unit.split.encode()), start])
        labels = rng.integers(0, len(NAMES), IMAGES_A_UNIT)
        images = draw(labels, self.res, rng)
        for i in range(stop - start):
            key = f"{unit.split}_{start + i:06d}"
            yield Sample(key, images[i], int(labels[i]), key)


def draw(labels: np.ndarray, res: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one image a label: (N,) int -> (N, res, res, 3) uint8."""
    n = len(labels)

    def uniform(low, high):
        return rng.uniform(low, high, (n, 1, 1)).astype(np.float32)

    axis = (np.arange(res, dtype=np.float32) + 0.5) / res * 2 - 1
    angle, size = uniform(-0.5, 0.5), uniform(0.5, 0.8)
    x0, y0 = axis[None, None, :] - uniform(-0.2, 0.2), axis[None, :, None] - uniform(-0.2, 0.2)
    x = (np.cos(angle) * x0 + np.sin(angle) * y0) / size
    y = (np.cos(angle) * y0 - np.sin(angle) * x0) / size
    inside = np.empty((n, res, res), np.float32)
    for k in range(len(NAMES)):
        chosen = labels == k
        inside[chosen] = _coverage(k, x[chosen], y[chosen], 2 / (res * size[chosen]))

    def texture():
        """(N, res, res, 1) in -1..1: stripes of random direction, width and phase."""
        direction, pitch, phase = uniform(0, np.pi), uniform(4, 14), uniform(0, 2 * np.pi)
        wave = np.sin(
            (np.cos(direction) * axis[None, None, :] + np.sin(direction) * axis[None, :, None]) * pitch + phase
        )
        return (wave * uniform(0, 0.25))[..., None]

    ground = rng.uniform(0.1, 0.9, (n, 1, 1, 3)).astype(np.float32)
    # The figure's colour is far from the ground's, in a random direction, so that it does not predict the class.
    shift = rng.normal(size=(n, 1, 1, 3)).astype(np.float32)
    figure = ground + shift / np.linalg.norm(shift, axis=-1, keepdims=True) * rng.uniform(0.4, 0.8, (n, 1, 1, 1))
    cover = inside[..., None]
    image = (ground + texture()) * (1 - cover) + (figure.astype(np.float32) + texture()) * cover
    image += rng.standard_normal(image.shape, dtype=np.float32) * 0.06
    return (image.clip(0, 1) * 255).astype(np.uint8)


def _coverage(kind: int, x: np.ndarray, y: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """The share of each pixel that the outline covers, from its signed distance d (negative inside); edges are soft."""
    r, ax, ay = np.hypot(x, y), np.abs(x), np.abs(y)
    turn = np.arctan2(y, x)
    d = {
        "disc": lambda: r - 0.8,
        "square": lambda: np.maximum(ax, ay) - 0.72,
        "triangle": lambda: np.maximum(0.87 * ax + 0.5 * y, -y) - 0.45,
        "ring": lambda: np.abs(r - 0.65) - 0.2,
        "cross": lambda: np.minimum(np.maximum(ax - 0.9, ay - 0.25), np.maximum(ay - 0.9, ax - 0.25)),
        "star": lambda: r - (0.65 + 0.3 * np.cos(5 * turn)),
        "bar": lambda: np.maximum(ax - 0.95, ay - 0.3),
        "crescent": lambda: np.maximum(r - 0.85, 0.6 - np.hypot(x - 0.45, y)),
        "two discs": lambda: np.hypot(ax - 0.52, y) - 0.4,
        "frame": lambda: np.abs(np.maximum(ax, ay) - 0.65) - 0.17,
    }[NAMES[kind]]()
    return (0.5 - d / pixel).clip(0, 1)
