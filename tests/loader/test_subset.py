"""What `subset`, `classes` and other options of `load` stand for, and what is refused."""

import collections
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mlpdata
from mlpdata import Error
from mlpdata.loader.options import LoadOptions
from mlpdata.loader.subset import choose, class_numbers, ids_of

N = 20
MASK = np.arange(N) % 3 == 0


@pytest.mark.parametrize(
    ("subset", "ids"),
    [
        (MASK, [0, 3, 6, 9, 12, 15, 18]),
        (MASK.tolist(), [0, 3, 6, 9, 12, 15, 18]),
        (list(MASK), [0, 3, 6, 9, 12, 15, 18]),
        (torch.from_numpy(MASK), [0, 3, 6, 9, 12, 15, 18]),
        ([5, 5, 5, 3], [5, 5, 5, 3]),
        ((7, 2), [7, 2]),
        (np.array([19, 0], np.uint8), [19, 0]),
        (torch.tensor([4, 1, 4]), [4, 1, 4]),
        ([torch.tensor(4), np.int16(1)], [4, 1]),
        (collections.deque([2, 1]), [2, 1]),
        (range(9, -1, -3), [9, 6, 3, 0]),
        (slice(-2, None), [18, 19]),
        (slice(None, None, -10), [19, 9]),
        ([0] * 30, [0] * 30),
        ([0, 1], [0, 1]),
    ],
)
def test_masks_are_masks_and_ids_keep_their_order_and_repetitions(subset, ids):
    found = ids_of(subset, N)
    assert found.tolist() == ids and found.dtype == np.int64
    allowed = np.array([0, 3, 5, 9])
    assert choose(N, subset, allowed, 0).tolist() == [i for i in ids if i in allowed]


@pytest.mark.parametrize(
    ("subset", "message"),
    [
        (True, "no count, share, mask"),
        (np.True_, "one dimension"),
        (MASK[:-1], "a mask of length 19; the split has 20"),
        ([True, False], "a mask of length 2"),
        (MASK.astype(np.uint8), "a mask must have booleans"),
        ([1] * N, "a mask must have booleans"),
        ([True, 2], "whole numbers or booleans"),
        ([0.0, 1.0], "not float64"),
        (torch.tensor([1.5]), "not float32"),
        ([-1], "sample -1; ids count from 0"),
        ([20], "sample 20, beyond the 20"),
        ([10**30], "beyond the 20"),
        (np.array([2**63 + 1], np.uint64), "beyond the 20"),
        (range(10**18), "beyond the 20"),
        (range(-2, 2), "sample -2"),
        (slice(0.5, 2), "no slice"),
        ([[1, 2]], "one dimension"),
        ([[1], [2, 3]], "no array of ids"),
        (torch.tensor(3), "one dimension"),
        ("12", "no count, share, mask"),
        (b"12", "no count, share, mask"),
        ({1, 2}, "no count, share, mask"),
        ({1: 2}, "no count, share, mask"),
        ((i for i in [1]), "no count, share, mask"),
        (itertools.count(), "no count, share, mask"),
        (["1"], "whole numbers or booleans"),
        ([None], "whole numbers or booleans"),
        (np.ma.array([1, 2], mask=[True, False]), "no count, share, mask"),
        (float("nan"), "not a share or count"),
        (1.5, "not a share or count"),
        (-0.5, "not a share or count"),
        (0.001, "not a share or count"),
        (0, "not a share or count"),
        (21, "not a share or count"),
    ],
)
def test_subsets_that_are_neither(subset, message):
    with pytest.raises(Error, match=message) as caught:
        choose(N, subset, None, 0)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


items = st.one_of(
    st.integers(-3, N + 3), st.booleans(), st.floats(), st.text(max_size=3), st.none(), st.integers(),
    st.builds(np.int8, st.integers(-3, 30)), st.builds(torch.tensor, st.integers(0, 5)),
)  # fmt: skip


@given(st.one_of(st.lists(items, max_size=6), st.lists(st.booleans(), min_size=N, max_size=N), items))
def test_a_subset_is_what_it_says_or_an_error_of_one_line(subset):
    try:
        ids = choose(N, subset, None, 0)
    except Error as e:
        assert "\n" not in str(e)
        return
    if isinstance(subset, list):
        if subset and all(isinstance(item, bool) for item in subset):
            assert ids.tolist() == [i for i, item in enumerate(subset) if item]
        else:
            assert ids.tolist() == [int(item) for item in subset]
            assert not any(isinstance(item, (bool, float, str)) for item in subset)
    elif subset is not None:
        assert len(set(ids.tolist())) == len(ids) == (round(subset * N) if isinstance(subset, float) else int(subset))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("dog", "no list of numbers or names"),
        (3, "no list of numbers or names"),
        ({1}, "no list of numbers or names"),
        ([], "no list of numbers or names"),
        ([1.0], "holds 1.0"),
        ([True], "holds True"),
        (np.array([True, False]), "holds True"),
        ([None], "holds None"),
        ([-1], "no class -1"),
        ([5], "no class 5; it has 5"),
        (["two\u2028lines"], r"no class 'two\\u2028lines'"),
        (["a", 0], "twice"),
        (["b"], "two classes of the name 'b'"),
    ],
)
def test_classes_that_there_are_not(classes, message):
    with pytest.raises(Error, match=message) as caught:
        class_numbers(classes, 5, lambda: ["a", "b", "b", "1", ""], "DIR")
    assert len(str(caught.value).splitlines()) == 1


def test_classes_by_name_and_number():
    names = ["a", "b", "b", "1", ""]
    assert class_numbers(["1", 1, "", "a"], 5, lambda: names, "DIR") == [3, 1, 4, 0]
    assert class_numbers(torch.tensor([2, 0]), 5, lambda: names, "DIR") == [2, 0]
    assert class_numbers(np.array(["1", "a"]), 5, lambda: names, "DIR") == [3, 0]
    assert class_numbers([2], 5, None, "DIR") == [2]  # the list of names is not read for numbers


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
def test_a_subset_unshuffled_comes_in_its_own_order(shapes_dir, tier):
    images = mlpdata.load(shapes_dir, batch_size=64).arrays()[0]
    ids = np.random.default_rng(0).integers(0, 1500, 400)
    loader = mlpdata.load(shapes_dir, batch_size=64, tier=tier, subset=ids, shuffle=False)
    assert loader.ids.tolist() == ids.tolist()
    seen = list(loader)
    assert torch.cat([b.ids for b in seen]).tolist() == ids.tolist()
    assert np.array_equal(torch.cat([b.images for b in seen]).numpy(), images[ids])
    assert np.array_equal(loader.arrays()[0], images[ids])
    shuffled = torch.cat([b.ids for b in mlpdata.load(shapes_dir, batch_size=64, tier=tier, subset=ids)])
    assert sorted(shuffled.tolist()) == sorted(ids.tolist())


def test_labels_follow_the_list_of_classes(shapes_dir):
    labels = mlpdata.load(shapes_dir, batch_size=64).labels
    loader = mlpdata.load(shapes_dir, batch_size=64, classes=[4, 1], relabel=True, subset=slice(None, None, -1))
    expected = [i for i in range(1499, -1, -1) if labels[i] in (1, 4)]
    assert loader.ids.tolist() == expected
    assert loader.labels.tolist() == [[4, 1].index(labels[i]) for i in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        *(
            ({"batch_size": value}, "batch_size must be a whole number of 1 or more")
            for value in (0, -1, True, 1.5, "8")
        ),
        *(({"seed": value}, "seed must be a whole number") for value in (-1, 1 << 64, 10**5000, 0.5, None)),
        *(({"device": value}, "there is no device") for value in ("gpu", "", None, "cuda:-1")),
        *(({"format": value}, "is neither 'beton' nor 'tar'") for value in ("zip", "", 1, ["tar"])),
        *(({"split": value}, "no name of a split") for value in (None, 1, b"train", ["train"])),
        *(({"num_threads": value}, "num_threads must be a whole number from 1") for value in (0, -2, 1 << 40)),
        *(({"res": value}, "res must be a whole number from 1") for value in (0, -2, 1 << 40, 16.0)),
        ({"split": "../train"}, "no split"),
        ({"tier": ["stream"]}, "tier"),
        ({"shuffle": "no"}, "shuffle is True or False"),
        ({"drop_last": 2}, "drop_last is True or False"),
        ({"augment": lambda image: image}, "augment must be an mlpdata.Augment"),
        ({"relabel": True}, "give classes too"),
        ({"needs": 5}, "needs is an"),
        ({"rank": -1}, "rank must be a whole number"),
        ({"world_size": 0}, "world_size must be"),
    ],
)
def test_options_that_cannot_be(shapes_dir, options, message):
    with pytest.raises(Error, match=message) as caught:
        mlpdata.load(shapes_dir, **{"batch_size": 8} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("root", [None, 5, "", "a\0b", [], "x" * 5000, "none", b"\xffnone"])
def test_paths_that_cannot_be(root):
    with pytest.raises(Error) as caught:
        mlpdata.load(root)
    assert "\n" not in str(caught.value)


def test_class_names_follow_the_labels(shapes_dir):
    loader = mlpdata.load(shapes_dir, batch_size=64)
    names = loader.classes
    assert len(names) == loader.num_classes and "1,500 samples of 'train'" in repr(loader)
    turned = mlpdata.load(shapes_dir, batch_size=64, classes=range(loader.num_classes)[::-1], relabel=True)
    assert turned.classes == names[::-1]
    assert mlpdata.load(shapes_dir, batch_size=64, classes=[2]).classes == names
    assert mlpdata.load(shapes_dir / "train.beton", batch_size=64).classes == [str(k) for k in range(10)]


def test_less_common_options_come_in_a_record_or_by_name(shapes_dir):
    record = LoadOptions(classes=[1, 2], tier="stream", num_threads=1)
    loader = mlpdata.load(shapes_dir, batch_size=8, options=record)
    by_name = mlpdata.load(shapes_dir, batch_size=8, classes=[1, 2], tier="stream", num_threads=1)
    assert loader.tier == by_name.tier == "stream" and loader.ids.tolist() == by_name.ids.tolist()
    assert mlpdata.load(shapes_dir, batch_size=8, options=record, tier=None).tier == "resident"
    with pytest.raises(Error, match=r"no option 'teir'; did you mean 'tier'\?"):
        mlpdata.load(shapes_dir, teir="stream")
    with pytest.raises(Error, match=r"no option 'drop_first'; did you mean 'drop_last'\?"):
        mlpdata.load(shapes_dir, drop_first=True)
    with pytest.raises(Error, match=r"no option 'zzz'; it has .*subset.*num_threads"):
        mlpdata.load(shapes_dir, zzz=1)
    with pytest.raises(Error, match=r"options is an .*LoadOptions"):
        mlpdata.load(shapes_dir, options={"tier": "stream"})
