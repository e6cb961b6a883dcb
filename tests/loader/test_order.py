from itertools import pairwise

import numpy as np
import pytest

from mlpdata import Error
from mlpdata.loader import order as epoch_module
from mlpdata.loader.order import EpochOrder, permute, rank_share


@pytest.mark.parametrize("n", [1, 2, 3, 5, 64, 65, 1000, 65_537])
def test_permute_is_a_permutation_of_its_own_for_every_key(n):
    first, other = (permute(np.arange(n), n, key) for key in ("a", "b"))
    assert np.array_equal(np.sort(first), np.arange(n)) and first.dtype == np.int64
    assert n < 5 or not np.array_equal(first, other)
    some = np.random.default_rng(0).integers(0, n, 20)
    assert np.array_equal(permute(some, n, "a"), first[some])  # any place on its own


def test_every_permutation_is_as_likely():
    """Chi-square of 6,000 keys over the 24 permutations of four, and of where each of 50 numbers goes."""
    codes = [int("".join(map(str, permute(np.arange(4), 4, f"k{k}")))) for k in range(6000)]
    counts = np.unique(codes, return_counts=True)[1]
    assert len(counts) == 24 and ((counts - 250) ** 2 / 250).sum() < 23 + 4 * np.sqrt(46)
    places = np.array([permute(np.arange(50), 50, f"k{k}") for k in range(2000)])
    chi = [((np.bincount(column, minlength=50) - 40) ** 2 / 40).sum() / 49 for column in places.T]
    assert 0.9 < np.mean(chi) < 1.1 and max(chi) < 2


def test_neighbours_come_from_everywhere():
    p = permute(np.arange(200_000), 200_000, "x")
    assert abs(np.corrcoef(p[:-1], p[1:])[0, 1]) < 0.01 and abs(np.corrcoef(p, np.arange(len(p)))[0, 1]) < 0.01
    assert abs((np.abs(np.diff(p)) < 1000).mean() - 0.01) < 0.001
    tenths = (p[:199_680].reshape(-1, 1024) // 20_000).T  # batches take from each tenth what chance gives them
    counts = np.stack([(tenths == k).sum(0) for k in range(10)])
    assert abs(((counts - 102.4) ** 2 / 102.4).sum(0).mean() - 9) < 1


def test_order_stays_what_it_was():
    """A saved state must mean the same batches with the next version of anything."""
    assert EpochOrder(10, seed=0, epoch=0).take(0, 10).tolist() == GOLDEN
    assert EpochOrder(10, seed=0, epoch=0, blocks=(2, 3)).take(0, 10).tolist() == GOLDEN_BLOCKS


GOLDEN = [9, 0, 2, 1, 3, 5, 8, 7, 4, 6]
GOLDEN_BLOCKS = [8, 4, 5, 1, 9, 0, 7, 3, 2, 6]


@pytest.mark.parametrize("blocks", [None, (7, 4), (64, 2), (5000, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_pieces_make_up_the_whole(monkeypatch, blocks, shuffle):
    monkeypatch.setattr(epoch_module, "PIECE", 100)
    whole = EpochOrder(1503, 1, 2, shuffle, blocks).take(0, 1503)
    assert np.array_equal(np.sort(whole), np.arange(1503))
    order = EpochOrder(1503, 1, 2, shuffle, blocks)
    forward = [order.take(a, min(1503, a + 37)) for a in range(0, 1503, 37)]
    assert np.array_equal(np.concatenate(forward), whole)
    assert np.array_equal(order.take(20, 950), whole[20:950])  # and backward
    assert len(order.take(1503, 1503)) == 0
    assert shuffle != np.array_equal(whole, np.arange(1503))


def test_windows_hold_whole_blocks():
    order = EpochOrder(1503, 0, 0, blocks=(10, 5))
    windows = [order.window(k) for k in range(len(order.windows) - 1)]
    assert [len(w) for w in windows] == np.diff(order.windows).tolist()
    for w in windows[:-1]:
        blocks = set((w // 10).tolist())
        assert len(blocks) == 5 and len(w) in (50, 43)
        assert (np.diff(w // 10) != 0).sum() > 20


def test_ranks_share_without_gap_or_overlap():
    for size in (0, 1, 3, 7, 8, 100):
        shares = [rank_share(50, 50 + size, rank, 4) for rank in range(4)]
        assert shares[0][0] == 50 and shares[-1][1] == 50 + size
        assert all(a[1] == b[0] for a, b in pairwise(shares))
        assert max(b - a for a, b in shares) - min(b - a for a, b in shares) <= 1


def test_more_samples_than_an_order_holds():
    with pytest.raises(Error, match="4294967296 samples"):
        EpochOrder(1 << 32, 0, 0)


def test_blocks_of_given_edges():
    """Equal edges are blocks of that size; any others are taken whole, in random order, window by window."""
    args = {"seed": 3, "epoch": 1}
    edges = np.array([0, 10, 20, 30, 35])
    assert np.array_equal(
        EpochOrder(35, **args, blocks=(0, 2), edges=edges).take(0, 35),
        EpochOrder(35, **args, blocks=(10, 2)).take(0, 35),
    )
    edges = np.array([0, 1, 13, 14, 30, 35])
    order = EpochOrder(35, **args, blocks=(0, 2), edges=edges)
    assert sorted(order.take(0, 35).tolist()) == list(range(35))
    seen = [set(np.searchsorted(edges, order.window(k), side="right")) for k in range(3)]
    assert [len(blocks) for blocks in seen] == [2, 2, 1] and len(set.union(*seen)) == 5
    assert np.array_equal(np.concatenate([order.window(k) for k in range(3)]), order.take(0, 35))
    plain = EpochOrder(35, **args, shuffle=False, blocks=(0, 2), edges=edges)
    assert plain.take(0, 35).tolist() == list(range(35)) and plain.windows.tolist() == [0, 13, 30, 35]
