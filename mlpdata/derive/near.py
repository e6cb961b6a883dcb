"""Images that look alike: perceptual hashes of stored images, and pairs of them that differ in few bits.

The hash is pHash (Zauner, 2010; as in the library ImageHash): the image in grey at 32 x 32, its cosine transform, and a
bit for each of the 8 x 8 lowest frequencies: whether it is above their median. Rescaling, recompression and small
changes of contrast leave nearly all bits. All of this but the median is linear, so two small matrices take the pixels
to the frequencies, a block of images at a time. The hash knows no colour: that has to be nearly the same, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from mlpdata import image
from mlpdata.derive.parents import Parent
from mlpdata.derive.read import Payloads
from mlpdata.errors import Error
from mlpdata.shards import index
from mlpdata.system.progress import Progress

SIDE, FREQUENCIES, BITS = 32, 8, 64
NEAR_COLOUR = 16  # levels of 255 by which the mean of a channel may differ
FLAT = 1.0  # a frequency below is rounding; a level of 255 at one pixel of 32 x 32 makes up to 4
BLOCK_BYTES = 16 << 20  # of pixels that are held at a time
CACHE_BYTES = 1 << 20  # of pixels that are hashed at a time: 64 images of 64 px go at 17,000/s, 1,024 at 9,000/s
MAX_PAIRS = 5_000_000
CANDIDATES = 1 << 20  # pairs that are compared at a time
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
COUNTS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(1, dtype=np.uint8)


@dataclass(frozen=True)
class Looks:
    """How images look, in 11 bytes each."""

    hashes: np.ndarray  # (N,) uint64
    colours: np.ndarray  # (N, 3) uint8, the mean of each channel

    def __getitem__(self, rows: np.ndarray) -> Looks:
        return Looks(self.hashes[rows], self.colours[rows])


def looks_of(images: np.ndarray) -> Looks:
    """How images look. images: uint8 (N, H, W, 3).

    >>> grey = np.linspace(0, 255, 64).astype(np.uint8)[:, None, None]
    >>> wide = np.broadcast_to(grey, (64, 48, 3))
    >>> hashes = looks_of(np.stack([wide, wide // 2])).hashes
    >>> bool(num_bits(hashes ^ hashes[::-1]).max() <= 2)
    True
    """
    n, height, width, _ = images.shape
    columns = images.reshape(n * height, width * 3).astype(np.float32) @ _of_a_row(width)  # one large product
    columns = columns.reshape(n, height, FREQUENCIES + 3)
    low = (_to_frequencies(height) @ columns[..., :FREQUENCIES]).reshape(n, BITS)
    low[np.abs(low) < FLAT] = 0
    bits = low > np.median(low, axis=1, keepdims=True)
    colours = columns[..., FREQUENCIES:].mean(1)
    return Looks(np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64), np.rint(colours).astype(np.uint8))


@cache
def _to_frequencies(size: int) -> np.ndarray:
    """(8, size) float32: from a row of pixels to its lowest frequencies at 32 pixels, resized by Pillow's Lanczos."""
    from scipy.fft import dct

    resize = np.asarray(Image.fromarray(np.eye(size, dtype=np.float32)).resize((size, SIDE), Image.Resampling.LANCZOS))
    return np.asarray(dct(resize.astype(np.float64), axis=0), np.float32)[:FREQUENCIES]


@cache
def _of_a_row(width: int) -> np.ndarray:
    """(3 * width, 11) float32: from a row of RGB pixels to the lowest frequencies of its grey, and its mean colour."""
    grey = np.kron(_to_frequencies(width).T, LUMA[:, None])
    return np.concatenate([grey, np.tile(np.eye(3, dtype=np.float32), (width, 1)) / width], axis=1)


def num_bits(values: np.ndarray) -> np.ndarray:
    """(N,) uint8, how many bits are set in each of (N,) uint64 values."""
    if hasattr(np, "bitwise_count"):  # from NumPy 2 on
        return np.bitwise_count(values)
    return COUNTS[values[:, None].view(np.uint16)].sum(1, dtype=np.uint8)


def split_looks(parent: Parent, split: str, progress: Progress | None = None) -> Looks:
    """How every image of a split looks, read in blocks. Raises Error for damage."""
    manifest = parent.manifest
    total, block = manifest.splits[split].num_samples, max(1, BLOCK_BYTES // (3 * manifest.res**2))
    looks = Looks(np.empty(total, np.uint64), np.empty((total, 3), np.uint8))
    for first in range(0, total, block):
        n = min(block, total - first)
        rows = index.rows(parent.root, manifest, split, first, n)
        payloads, chosen = Payloads(parent, split, first, rows), np.arange(n)
        pixels = list(payloads.pixels(chosen) if parent.raw else _decoded(parent, split, payloads, rows, chosen))
        of_shape: dict[tuple[int, ...], list[int]] = {}
        for i, array in enumerate(pixels):
            of_shape.setdefault(array.shape, []).append(i)
        for shape, members in of_shape.items():
            for part in np.array_split(members, -(-len(members) * shape[0] * shape[1] * 3 // CACHE_BYTES)):
                some = looks_of(np.stack([pixels[i] for i in part.tolist()]))
                looks.hashes[first + part], looks.colours[first + part] = some.hashes, some.colours
        if progress:
            progress.add(n)
    return looks


def _decoded(
    parent: Parent, split: str, payloads: Payloads, rows: index.IndexRows, chosen: np.ndarray
) -> Iterator[np.ndarray]:
    keep = image.Resize(parent.manifest.res, "longest")  # what has the size stays as it is
    for i, payload in enumerate(payloads.encoded(chosen)):
        try:
            yield image.decode(bytes(payload), keep, exact=True)[0]
        except image.ImageError as e:
            raise parent.damaged(parent.root, f"is damaged: {split}/{rows.key[i]} {e}") from None


def all_looks(parts: Iterable[tuple[Parent, str]]) -> Looks:
    """How the images of splits look, one split after the other. Raises Error for damage."""
    parts = list(parts)
    progress = Progress("looking at images", sum(p.manifest.splits[split].num_samples for p, split in parts))
    looks = [split_looks(parent, split, progress) for parent, split in parts]
    progress.finish()
    return Looks(np.concatenate([x.hashes for x in looks]), np.concatenate([x.colours for x in looks]))


# ------------------------------------------------------------------------------------------------------------ pairs


@dataclass(frozen=True)
class NearPairs:
    """Images that look alike, two by two."""

    rows: np.ndarray  # (P, 2) int64 positions, the lower first, sorted
    bits: np.ndarray  # (P,) uint8 by which the hashes differ

    def __len__(self) -> int:
        return len(self.bits)


def near_pairs(looks: Looks, most_bits: int) -> NearPairs:
    """Every pair whose hashes differ in at most so many bits, and whose colours are nearly the same.

    Two hashes that differ in few bits differ in fewer still in one of the bands that they are cut into: only hashes
    that meet so in a band are compared (Norouzi et al., Fast Search in Hamming Space, 2012). Bands have about as many
    bits as it takes to count the hashes, so that few meet by chance. Raises Error for more than MAX_PAIRS.
    """
    hashes, n = looks.hashes, len(looks.hashes)
    num_bands = max(3, round(BITS / max(8, n.bit_length())))
    found, num_found, shift = [np.empty(0, np.int64)], 0, 0
    for k in range(num_bands):
        width = BITS // num_bands + (k < BITS % num_bands)
        band = ((hashes >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)
        shift += width
        order = np.argsort(band, kind="stable")
        band, ordered = band[order], looks[order]  # what meets then lies side by side in memory
        starts = np.zeros((1 << width) + 1, np.int64)  # where each value begins in `band`
        np.cumsum(np.bincount(band, minlength=1 << width), out=starts[1:])
        for flips in _masks(width, most_bits // num_bands):
            other = band ^ flips
            rows = np.flatnonzero(other > band) if flips else np.arange(n)  # each pair from one side
            lows = starts[other[rows]] if flips else rows + 1
            for i, j in _meetings(rows, lows, starts[other[rows] + 1]):
                pairs = _alike(ordered, order, i, j, most_bits)
                found.append(pairs)
                num_found += len(pairs)
                if num_found > MAX_PAIRS:
                    wanted = f"at most {most_bits} bits" if most_bits else "nothing"
                    raise Error(
                        f"more than {MAX_PAIRS:,} pairs of images differ in {wanted}: there are too many to list"
                    )
    rows = np.unique(np.concatenate(found))
    first, second = np.divmod(rows, max(n, 1))
    return NearPairs(np.stack([first, second], 1), num_bits(hashes[first] ^ hashes[second]))


def _alike(ordered: Looks, order: np.ndarray, i: np.ndarray, j: np.ndarray, most_bits: int) -> np.ndarray:
    """Of the pairs (i[k], j[k]) of `ordered` those that are near, as a * N + b of their rows a < b. order: the rows."""
    is_near = num_bits(ordered.hashes[i] ^ ordered.hashes[j]) <= most_bits
    i, j = i[is_near], j[is_near]
    difference = np.abs(ordered.colours[i].astype(np.int16) - ordered.colours[j])
    is_alike = difference.max(1, initial=0) <= NEAR_COLOUR
    a, b = order[i[is_alike]], order[j[is_alike]]
    return np.minimum(a, b) * len(order) + np.maximum(a, b)


def _masks(width: int, radius: int) -> list[int]:
    """Every number of `width` bits of which at most `radius` are set."""
    masks = {0}
    for _ in range(radius):
        masks |= {mask | 1 << bit for mask in masks for bit in range(width)}
    return sorted(masks)


def _meetings(rows: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows[k], j) for every k and every j from lows[k] to highs[k], as pairs of arrays of about CANDIDATES each."""
    counts = highs - lows
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start] - counts[start])
        stop = max(start + 1, int(np.searchsorted(ends, before + CANDIDATES, side="right")))
        of = counts[start:stop]
        first = lows[start:stop] - (ends[start:stop] - of - before)
        yield np.repeat(rows[start:stop], of), np.arange(int(of.sum())) + np.repeat(first, of)
        start = stop


def redundant(pairs: NearPairs, priority: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which images can go so that no two are left that look alike: (rows that go, the row that each is kept for).

    priority: (N,) of every row; of a pair the lower one stays. A row goes only if it looks like one that stays: rows
    that are linked through others alone are kept.
    """
    both = np.concatenate([pairs.rows, pairs.rows[:, ::-1]])
    both = both[np.argsort(both[:, 0], kind="stable")]
    rows, starts = np.unique(both[:, 0], return_index=True)
    stops = np.append(starts[1:], len(both))
    kept_for: dict[int, int] = {}
    for k in np.argsort(priority[rows], kind="stable").tolist():
        row = int(rows[k])
        if row in kept_for:
            continue
        for other in both[starts[k] : stops[k], 1].tolist():
            if priority[other] > priority[row]:
                kept_for.setdefault(other, row)
    gone = sorted(kept_for)
    return np.array(gone, np.int64), np.array([kept_for[row] for row in gone], np.int64)
