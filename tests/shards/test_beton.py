from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from mlpdata import Error
from mlpdata.shards import beton
from mlpdata.system import disk


def write_file(path, payloads, codec="raw", widths=None, heights=None, labels=None, page_size=1 << 21, cuts=()):
    n = len(payloads)
    sizes = np.array([len(p) for p in payloads])
    plan = beton.layout(sizes, page_size)
    widths = np.full(n, 8) if widths is None else widths
    heights = np.full(n, 8) if heights is None else heights
    labels = np.arange(n) if labels is None else labels
    beton.create(path, plan, codec, sizes, widths, heights, labels)
    edges = [0, *cuts, n]
    with open(path, "r+b") as f:
        # Written back to front: the order of writing must not matter.
        for start, stop in reversed(list(pairwise(edges))):
            beton.write(partial(disk.pwrite, f.fileno()), plan.ptrs[start:stop], payloads[start:stop])
    return plan


def test_layout_keeps_every_sample_inside_one_page_in_order():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 1 << 20, 500)
    plan = beton.layout(sizes, 1 << 21)
    ptrs = plan.ptrs.astype(np.int64)
    assert ((ptrs >> 21) == ((ptrs + sizes - 1) >> 21)).all()
    assert (ptrs[1:] >= ptrs[:-1] + sizes[:-1]).all()
    assert ptrs[0] >= beton.METADATA_START + 500 * beton.METADATA.itemsize
    # A page is left only for a sample that did not fit it any more.
    new_page = np.flatnonzero(np.diff(ptrs >> 21))
    free = (1 << 21) - ((ptrs + sizes)[new_page] - ((ptrs[new_page] >> 21) << 21))
    assert (sizes[new_page + 1] > free).all()
    assert plan.alloc_table_ptr % (1 << 21) == 0


def test_layout_refuses_a_sample_larger_than_a_page():
    with pytest.raises(Error, match="sample 1 has 3000000 bytes"):
        beton.layout([5, 3_000_000], 1 << 21)


@pytest.mark.parametrize("cuts", [(), (1, 7, 500), (333,)])
def test_raw_round_trip_in_any_order_of_writing(tmp_path, cuts):
    pixels = np.random.default_rng(1).integers(0, 256, (600, 8 * 8 * 3), dtype=np.uint8)
    whole, cut = tmp_path / "whole.beton", tmp_path / "cut.beton"
    write_file(whole, pixels)
    write_file(cut, pixels, cuts=cuts)
    assert cut.read_bytes() == whole.read_bytes()
    index = beton.open_index(cut)
    data = np.memmap(cut, np.uint8, "r")
    assert len(index) == 600
    assert index.label.tolist() == list(range(600))
    for i in (0, 1, 299, 599):
        start = int(index.offset[i])
        assert int(index.num_bytes[i]) == 192
        assert np.array_equal(data[start : start + 192], pixels[i])


def test_jpg_sizes_come_from_the_allocation_table(tmp_path):
    payloads = [bytes([i % 256]) * (i + 1) for i in range(300)]
    path = tmp_path / "x.beton"
    write_file(path, payloads, codec="jpg")
    index = beton.open_index(path)
    assert index.num_bytes.tolist() == [len(p) for p in payloads]
    assert set(index.codec.tolist()) == {1}
    data = path.read_bytes()
    assert all(
        data[o : o + n] == p for o, n, p in zip(index.offset.tolist(), index.num_bytes.tolist(), payloads, strict=True)
    )


def test_allocation_table_in_any_order_is_found(tmp_path):
    """ffcv's own writer leaves the allocations in the order its workers finished."""
    payloads = [bytes([i % 256]) * (i + 1) for i in range(300)]
    path = tmp_path / "x.beton"
    plan = write_file(path, payloads, codec="jpg")
    table = np.fromfile(path, beton.ALLOCATION, offset=plan.alloc_table_ptr)
    shuffled = table[np.random.default_rng(0).permutation(len(table))]
    with open(path, "r+b") as f:
        f.seek(plan.alloc_table_ptr)
        f.write(shuffled.tobytes())
    assert beton.open_index(path).num_bytes.tolist() == [len(p) for p in payloads]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b[:100], "cut short|damaged|not an FFCV"),
        (lambda b: b"", "not an FFCV"),
        (lambda b: b"PK" + b[2:], "not an FFCV"),
        (lambda b: b[: len(b) - 24], "cut short"),
        (lambda b: b[:8] + (10**15).to_bytes(8, "little") + b[16:], "cut short"),
        (lambda b: b[:24] + bytes([9]) + b[25:], "field of type 9"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, damage, message):
    path = tmp_path / "x.beton"
    write_file(path, np.zeros((10, 192), np.uint8))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(Error, match=message) as caught:
        beton.open_index(path)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(Error, match="No such file"):
        beton.open_index(tmp_path / "none.beton")
