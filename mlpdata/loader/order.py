"""The order of an epoch: a permutation computed piece by piece, so that it costs neither memory nor a wait.

It follows from (seed, epoch) alone and is the same on every machine and with every version of every library. A `place`
is a position in the order, a `row` one of the loaded samples, an `id` a position in the split.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass

import numpy as np

from mlpdata.errors import Error

ROUNDS = 6
MIN_BITS = 6  # a Feistel network on fewer bits shuffles badly
PIECE = 1 << 16  # places computed at a time: their arrays stay in the processor's cache


def permute(positions: np.ndarray, n: int, key: str) -> np.ndarray:
    """What a permutation of 0..n-1 maps some positions to: integers (m,) -> int64 (m,). key: any text.

    A Feistel network on the next power of two; a number outside 0..n-1 is sent through it again until it is inside
    ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).

    >>> permute(np.arange(5), 5, "key").tolist()
    [3, 2, 4, 0, 1]
    """
    if n <= 1:
        return np.zeros(len(positions), np.int64)
    bits = max(MIN_BITS, (n - 1).bit_length())
    keys = np.frombuffer(hashlib.blake2b(key.encode(), digest_size=4 * ROUNDS).digest(), "<u4")
    x = _feistel(positions.astype(np.uint32), bits, keys)
    outside = np.flatnonzero(x >= n)
    while len(outside):
        walked = _feistel(x[outside], bits, keys)
        x[outside] = walked
        outside = outside[walked >= n]
    return x.astype(np.int64)


def _feistel(x: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of 0..2**bits-1: uint32 (m,) -> uint32 (m,)."""
    low = bits // 2
    high = bits - low
    left, right = x >> np.uint32(low), x & np.uint32((1 << low) - 1)
    for key in keys:
        # `left` has `high` bits. The halves and their widths swap every round; an even number of rounds restores them.
        mixed = (right ^ key) * np.uint32(0x9E3779B1)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x85EBCA77)
        mixed >>= np.uint32(32 - high)
        mixed ^= left
        left, right, high, low = right, mixed, low, high
    return (left << np.uint32(low)) | right


class EpochOrder:
    """The numbers 0..n-1 in the order of one epoch.

    shuffle: False gives them as they are.
    blocks:  None for a permutation of all; (samples a block, blocks a window) where neighbours are read together: the
             blocks are in random order, and the samples of each window of blocks are shuffled among each other.
    edges:   for blocks of 0 samples: int64 (blocks + 1,), ascending from 0 to n, where each block begins and ends.
    windows: window k has the places windows[k] to windows[k + 1] - 1; empty without blocks.
    key:     equal keys, equal orders.

    >>> EpochOrder(5, seed=0, epoch=0, shuffle=False).take(1, 4).tolist()
    [1, 2, 3]
    """

    def __init__(
        self,
        n: int,
        seed: int,
        epoch: int,
        shuffle: bool = True,
        blocks: tuple[int, int] | None = None,
        edges: np.ndarray | None = None,
    ):
        if n >= 1 << 32:
            raise Error(f"{n} samples are too many for one order")
        self.n, self.shuffle = n, shuffle
        self.key = (n, seed, epoch, shuffle, blocks)
        self._permutation = f"mlpdata order {seed} {epoch}"
        self._piece, self._piece_start = np.empty(0, np.int64), 0
        self.windows = np.empty(0, np.int64)
        if blocks is not None:
            per_block, self._per_window = blocks
            if per_block:
                edges = np.append(np.arange(0, n, per_block), n)
            assert edges is not None
            self._edges, num_blocks = edges, len(edges) - 1
            numbers = np.arange(num_blocks)
            self._blocks = permute(numbers, num_blocks, self._permutation) if shuffle else numbers
            starts = np.concatenate([[0], np.diff(edges)[self._blocks].cumsum()])
            self.windows = np.append(starts[: -1 : self._per_window], n)

    def window(self, k: int) -> np.ndarray:
        """The numbers of window k, int64, in their order."""
        blocks = self._blocks[k * self._per_window : (k + 1) * self._per_window]
        edges = self._edges
        ranges = [np.arange(a, b) for a, b in zip(edges[blocks], edges[blocks + 1], strict=True)]
        numbers = np.concatenate(ranges) if ranges else np.empty(0, np.int64)
        if not self.shuffle:
            return numbers
        return numbers[permute(np.arange(len(numbers)), len(numbers), f"{self._permutation} window {k}")]

    def take(self, start: int, stop: int) -> np.ndarray:
        """The numbers at places start..stop-1, int64. Cheap where calls move forward by less than PIECE."""
        offset = start - self._piece_start
        if offset < 0 or offset + stop - start > len(self._piece):
            self._piece, self._piece_start = self._compute(start, max(stop, min(self.n, start + PIECE))), start
            offset = 0
        return self._piece[offset : offset + stop - start]

    def _compute(self, start: int, stop: int) -> np.ndarray:
        if len(self.windows):
            first, last = np.searchsorted(self.windows, [start, max(start, stop - 1)], side="right") - 1
            numbers = np.concatenate([self.window(k) for k in range(first, last + 1)])
            return numbers[start - self.windows[first] :][: stop - start]
        if not self.shuffle:
            return np.arange(start, stop)
        return np.concatenate([
            permute(np.arange(a, min(stop, a + PIECE), dtype=np.uint32), self.n, self._permutation)
            for a in range(start, max(stop, start + 1), PIECE)
        ])  # fmt: skip


def rank_share(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """The places of start..stop-1 that one process takes: equal shares, the first ones a sample longer.

    >>> [rank_share(0, 7, rank, 3) for rank in range(3)]
    [(0, 3), (3, 5), (5, 7)]
    """
    each, more = divmod(stop - start, world_size)
    begin = start + rank * each + min(rank, more)
    return begin, begin + each + (rank < more)


def warn_of_others() -> None:
    """Warn where several processes train together, and a loader that knows nothing of them gives each all samples."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        count = torch.distributed.get_world_size()
        if count > 1:
            warnings.warn(
                f"{count} processes train together, and this loader gives each of them every sample: load with rank= "
                f"and world_size={count}, or with world_size=1 if that is meant",
                RuntimeWarning,
                stacklevel=3,
            )


@dataclass(frozen=True, kw_only=True)
class EpochSteps:
    """Which samples this process takes in which step of an epoch.

    order, following: the orders of this epoch and of the next. row_at: None, or int64 (N,): the row of each number that
    the order gives, where the order is one of samples as they lie in the files. range: the steps that are wanted.
    """

    order: EpochOrder
    following: EpochOrder
    row_at: np.ndarray | None
    batch_size: int
    rank: int
    world_size: int
    range: range

    @property
    def local_batch_size(self) -> int:
        """Samples of a full batch that this process takes."""
        return max(1, self.batch_size // self.world_size)

    def span(self, step: int) -> tuple[int, int]:
        """The places (first, stop) of a step that are this process's."""
        start = step * self.batch_size
        return rank_share(start, min(self.order.n, start + self.batch_size), self.rank, self.world_size)

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step, int64."""
        return self.to_rows(self.order.take(*self.span(step)))

    def to_rows(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of numbers that the order gives."""
        return numbers if self.row_at is None else self.row_at[numbers]
