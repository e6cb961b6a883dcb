"""Epochs of a loader: every iteration is the next one, and a state goes on behind the batch it was taken at."""

import copy
import io
import itertools
import json

import numpy as np
import pytest
import torch
from conftest import convert_quietly
from hypothesis import given
from hypothesis import strategies as st

import mlpdata
from mlpdata import Augment, Error
from mlpdata.loader import state as state_module
from mlpdata.loader import stream

TIERS = ("resident", "pinned", "stream")


def load(root, tier="resident", **options):
    return mlpdata.load(root, "train", **{"batch_size": 400, "tier": tier} | options)  # four batches an epoch


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


@pytest.fixture(params=TIERS)
def tier(request, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 50 * 768)
    monkeypatch.setattr(stream, "WINDOW_BYTES", 500 * 768)
    return request.param


@pytest.fixture
def epochs(shapes_dir, tier):
    """The ids of the first epochs, batch by batch."""
    loader = load(shapes_dir, tier)
    return [[part.tolist() for part in np.split(loader.order(epoch), [400, 800, 1200])] for epoch in range(8)]


def test_every_iteration_is_a_new_epoch(shapes_dir, tier, epochs):
    loader = load(shapes_dir, tier)
    assert [ids(loader), ids(loader)] == epochs[:2]
    batches = iter(loader)
    assert [next(batches).ids.tolist() for _ in range(len(loader))] == epochs[2]  # and not one more
    assert loader.epoch == 3
    for batch in loader:
        assert batch.ids.tolist() == epochs[3][0] and loader.epoch == 3
        break
    assert ids(itertools.islice(loader, 2)) == epochs[4][:2]
    with pytest.raises(ZeroDivisionError):
        for batch in loader:
            assert batch.ids.tolist() == epochs[5][0]
            1 / 0  # noqa: B018
    assert [batch.ids.tolist() for _, batch in zip(range(4), loader, strict=False)] == epochs[6]
    assert ids(loader) == epochs[7]


def test_iterations_side_by_side_do_not_disturb_each_other(shapes_dir, tier, epochs):
    loader, seen = load(shapes_dir, tier), []
    for outer in loader:
        inner = ids(loader) if len(seen) in (0, 2) else []
        seen.append((outer.ids.tolist(), inner))
    assert [outer for outer, _ in seen] == epochs[0]
    assert [inner for _, inner in seen] == [epochs[1], [], epochs[2], []]
    assert loader.epoch == 3  # that of the iteration begun last
    pairs = [(a.ids.tolist(), b.ids.tolist()) for a, b in zip(loader, loader, strict=True)]
    assert pairs == list(zip(epochs[3], epochs[4], strict=True))
    images = load(shapes_dir).arrays()[0]
    both = list(zip(loader, loader, strict=True))
    assert all(np.array_equal(b.images.numpy(), images[b.ids]) for pair in both for b in pair)


def test_epochs_of_one_batch_and_without_end(shapes_dir, tier):
    loader = load(shapes_dir, tier, batch_size=2000)
    seen = [next(iter(loader)).ids.tolist() for _ in range(3)]
    assert seen == [loader.order(epoch).tolist() for epoch in range(3)] and loader.epoch == 3
    loader = load(shapes_dir, tier, batch_size=2000, infinite=True)
    batches = iter(loader)
    assert ids([next(batches), next(batches)]) == seen[:2] and loader.epoch == 2
    assert next(iter(loader)).ids.tolist() == seen[2]


def test_a_loop_of_exactly_len_batches_sees_new_augmentation(shapes_dir):
    loader = load(shapes_dir, shuffle=False, augment=Augment(res=8))
    first, second = (next(batches) for batches in (iter(loader), iter(loader)))
    assert torch.equal(first.ids, second.ids) and not torch.equal(first.images, second.images)


def test_a_state_goes_on_behind_the_batch_it_was_taken_at(shapes_dir, tier, epochs):
    loader = load(shapes_dir, tier)
    states = [loader.state_dict()]
    batches = iter(loader)
    states.append(loader.state_dict())  # begun, and nothing taken
    for _ in range(4):
        next(batches)
        states.append(loader.state_dict())
    flat = list(itertools.chain(*epochs))
    for state, first in zip(states, (0, 0, 1, 2, 3, 4), strict=True):
        again = load(shapes_dir, tier)
        again.load_state_dict(json.loads(json.dumps(state)))
        assert (again.epoch, again.state_dict()) == (first // 4, state)
        rest = 4 - first % 4
        assert ids(again) == flat[first : first + rest]
        assert ids(again) == flat[first + rest : first + rest + 4]
    buffer = io.BytesIO()
    torch.save(states, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == states
    batches = iter(loader)
    loader.load_state_dict(states[3])  # an open iteration does not move it
    next(batches)
    assert loader.state_dict() == states[3] and ids(loader) == epochs[0][2:]


@pytest.fixture(scope="module")
def saved(shapes_dir):
    loader = load(shapes_dir)
    next(iter(loader))
    return loader.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "data"),
        ({"subset": 1000}, "subset"),
        ({"subset": np.arange(1500)[::-1]}, "subset"),
        ({"classes": [1, 2]}, "classes"),
        ({"classes": [2, 1], "relabel": True}, "classes"),
        ({"res": 8}, "size '16x16x3'; this loader has '8x8x3'"),
        ({"seed": 1}, "seed 0; this loader has 1"),
        ({"shuffle": False}, "shuffle True; this loader has False"),
        ({"batch_size": 300}, "batch_size 400; this loader has 300"),
        ({"drop_last": True}, "drop_last False; this loader has True"),
    ],
)
def test_a_state_of_other_batches_is_refused(shapes_dir, saved, options, message):
    loader = mlpdata.load(shapes_dir, **{"batch_size": 400} | options)
    with pytest.raises(Error, match=rf"the loader state was saved with {message}") as caught:
        loader.load_state_dict(saved)
    assert "\n" not in str(caught.value)


def test_what_a_state_does_not_depend_on(shapes_dir, tmp_path, saved):
    (tmp_path / "moved").symlink_to(shapes_dir)
    for options in ({"format": "tar"}, {"tier": "pinned"}, {"rank": 1, "world_size": 4}, {"subset": 1.0}):
        load(tmp_path / "moved", **options).load_state_dict(saved)
    at_start = saved | {"step": 0}
    load(shapes_dir, batch_size=300, drop_last=True).load_state_dict(at_start)
    for a, b in (([1, 2], [2, 1]), ([1, 2], np.array([1, 2]))):
        load(shapes_dir, classes=a, batch_size=9).load_state_dict(
            load(shapes_dir, classes=b, batch_size=9).state_dict()
        )


def test_other_files_without_a_manifest_are_other_data(shapes_dir, tmp_path):
    state = mlpdata.load(shapes_dir / "train.beton", batch_size=400).state_dict()
    mlpdata.load(shapes_dir / "train.beton", batch_size=400).load_state_dict(state)
    for other in (shapes_dir / "val.beton", shapes_dir / "train-*.tar"):
        with pytest.raises(Error, match="saved with data"):
            mlpdata.load(other, batch_size=400).load_state_dict(state)
    convert_quietly(dataset="shapes", res=16, out=tmp_path / "other", workers=2, limit=1500, seed=1, format="beton")
    state = load(tmp_path / "other").state_dict()
    with pytest.raises(Error, match="saved with data"):
        load(shapes_dir).load_state_dict(state)


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-2, 5), st.floats(), st.text(max_size=5), st.binary(),
    st.lists(st.one_of(st.integers(-1, 1600), st.integers(), st.floats(), st.none()), max_size=3),
    st.builds(torch.zeros, st.integers(0, 3)), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)  # fmt: skip


@given(st.data())
def test_malformed_states_are_errors_of_one_line(shapes_dir, saved, data):
    loader, state = LOADERS.setdefault(shapes_dir, load(shapes_dir)), copy.copy(saved)
    if not data.draw(st.booleans()):
        state.pop(data.draw(st.sampled_from(sorted(state))))
    else:
        state[data.draw(st.sampled_from(sorted(state)))] = data.draw(values)
    try:
        loader.load_state_dict(state)
    except Error as e:
        assert "\n" not in str(e) and len(str(e)) < 250
    else:
        assert {k: v for k, v in state.items() if k not in ("epoch", "step", "blocks", "batch_size", "drop_last")} == {
            k: v for k, v in saved.items() if k not in ("epoch", "step", "blocks", "batch_size", "drop_last")
        }
        assert type(state["epoch"]) is type(state["step"]) is int
        assert 0 <= state["epoch"] <= state_module.MAX_EPOCH and 0 <= state["step"] <= 4
        assert sum(map(len, ids(loader))) <= 1500


LOADERS: dict = {}  # hypothesis draws many states for one loader


@pytest.mark.parametrize("state", [None, 5, "state", [], [("epoch", 0)], torch.zeros(2), {}, {"epoch": 1}])
def test_what_is_no_state(shapes_dir, state):
    with pytest.raises(Error, match="no state of a loader") as caught:
        load(shapes_dir).load_state_dict(state)
    assert "\n" not in str(caught.value)
