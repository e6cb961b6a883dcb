"""The order of an epoch: a permutation that is computed by the piece, so that it costs no memory and no wait.

It follows from (seed, epoch) alone and is the same on every machine and with every version of every library.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mlpdata.errors import Error

ROUNDS = 6
MIN_BITS = 6  # a Feistel network on fewer bits is no good shuffle
PIECE = 1 << 16  # numbers computed at a time: their arrays stay in the processor's cache


def permute(positions: np.ndarray, n: int, key: str) -> np.ndarray:
    """Where a permutation of 0..n-1 puts some positions: integers (m,) -> int64 (m,).

    A Feistel network on the next power of two; a number that falls outside 0..n-1 is sent through again until it is
    inside ("cycle walking": Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). key: any text.
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
        # `left` has `high` bits; halves and their widths change places every round, and come back after an even number.
        mixed = (right ^ key) * np.uint32(0x9E3779B1)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(0x85EBCA77)
        mixed >>= np.uint32(32 - high)
        mixed ^= left
        left, right, high, low = right, mixed, low, high
    return (left << np.uint32(low)) | right


class EpochOrder:
    """The numbers 0..n-1 in the order of one epoch.

    shuffle: else they come as they are.
    blocks:  None for a permutation of all; (samples a block, blocks a window) where neighbours are to be read
             together: blocks come in random order, and the samples of a window of blocks are shuffled among each other.
    """

    def __init__(self, n: int, seed: int, epoch: int, shuffle: bool = True, blocks: tuple[int, int] | None = None):
        if n >= 1 << 32:
            raise Error(f"{n} samples are more than an order can hold")
        self.n, self.shuffle, self.blocks = n, shuffle, blocks
        self.key = (n, seed, epoch, shuffle, blocks)  # equal keys, equal orders
        self._key = f"mlpdata order {seed} {epoch}"
        self._piece, self._piece_start = np.empty(0, np.int64), 0
        if blocks is not None:
            per_block, per_window = blocks
            num_blocks = -(-n // per_block)
            numbers = np.arange(num_blocks)
            self._blocks = permute(numbers, num_blocks, self._key) if shuffle else numbers
            sizes = np.full(num_blocks, per_block)
            if num_blocks:
                sizes[self._blocks == num_blocks - 1] = n - (num_blocks - 1) * per_block
            edges = np.concatenate([[0], sizes.cumsum()])
            self.windows = np.append(edges[:-1:per_window], n)  # window k takes places windows[k]..windows[k + 1] - 1

    def window(self, k: int) -> np.ndarray:
        """The numbers of window k, int64, in their order."""
        per_block, per_window = self.blocks
        blocks = self._blocks[k * per_window : (k + 1) * per_window]
        numbers = (blocks[:, None] * per_block + np.arange(per_block)).reshape(-1)
        numbers = numbers[numbers < self.n]
        if not self.shuffle:
            return numbers
        return numbers[permute(np.arange(len(numbers)), len(numbers), f"{self._key} window {k}")]

    def take(self, start: int, stop: int) -> np.ndarray:
        """Places start..stop-1 of the order, int64. Cheap where calls move forward by less than a piece."""
        at = start - self._piece_start
        if at < 0 or at + stop - start > len(self._piece):
            self._piece, self._piece_start, at = self._make(start, max(stop, min(self.n, start + PIECE))), start, 0
        return self._piece[at : at + stop - start]

    def _make(self, start: int, stop: int) -> np.ndarray:
        if self.blocks is not None:
            first, last = np.searchsorted(self.windows, [start, max(start, stop - 1)], side="right") - 1
            made = np.concatenate([self.window(k) for k in range(first, last + 1)])
            return made[start - self.windows[first] :][: stop - start]
        if not self.shuffle:
            return np.arange(start, stop)
        return np.concatenate([
            permute(np.arange(a, min(stop, a + PIECE), dtype=np.uint32), self.n, self._key)
            for a in range(start, max(stop, start + 1), PIECE)
        ])  # fmt: skip


def rank_share(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of places start..stop-1 that is one process's: equal parts, the first ones a sample longer."""
    each, more = divmod(stop - start, world_size)
    begin = start + rank * each + min(rank, more)
    return begin, begin + each + (rank < more)


@dataclass(frozen=True)
class EpochSteps:
    """Which samples this process takes in which step of an epoch. following: the order of the epoch after it."""

    order: EpochOrder
    following: EpochOrder
    place_ids: np.ndarray | None  # (N,) row at each place in the files, where the order is one of places
    batch_size: int
    rank: int
    world_size: int
    steps: range

    def span(self, step: int) -> tuple[int, int]:
        """Places in the order that are this process's in a step."""
        start = step * self.batch_size
        return rank_share(start, min(self.order.n, start + self.batch_size), self.rank, self.world_size)

    def rows(self, step: int) -> np.ndarray:
        """The rows of a step, int64."""
        return self.to_rows(self.order.take(*self.span(step)))

    def to_rows(self, numbers: np.ndarray) -> np.ndarray:
        return numbers if self.place_ids is None else self.place_ids[numbers]
