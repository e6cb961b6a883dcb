import errno
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import torch
from archives import make_folder
from conftest import HANG_S, convert_quietly, until

import mlpdata
from mlpdata import Augment, Error
from mlpdata.loader import reader as reader_module
from mlpdata.loader import stream as stream_module
from mlpdata.loader import tiers
from mlpdata.loader.buffers import BufferPool
from mlpdata.system import memory, progress
from mlpdata.system.threads import prefetch


def test_lack_of_memory_is_no_damage_of_a_file(shapes_dir, monkeypatch):
    def fail(*_):
        raise MemoryError

    loader = mlpdata.load(shapes_dir, "train", 100, format="tar", tier="stream")
    monkeypatch.setattr(reader_module.image, "decode_exact", fail)
    with pytest.raises(MemoryError):
        loader.read([0])
    with pytest.raises(MemoryError):
        next(iter(loader))
    with pytest.raises(
        Error, match=r"^the memory is not enough for the pixels \(MemoryError\); load with tier='stream'"
    ):
        mlpdata.load(shapes_dir, "train", 100, format="tar", tier="resident")


@pytest.mark.parametrize("tier", ["resident", "pinned"])
def test_a_load_that_takes_its_time_shows_its_progress(shapes_dir, tier, monkeypatch, capsys):
    """Every look at the clock is as many seconds later."""

    def load(seconds, **options):
        clock = itertools.count(0, seconds)
        monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
        mlpdata.load(shapes_dir, "train", 100, format="tar", tier=tier, **options)
        return capsys.readouterr().err

    assert load(0.5) == ""
    assert load(4, rank=1, world_size=2) == ""
    lines = load(4).splitlines()
    assert lines and lines[-1].startswith("loading: 1,500 of 1,500 images (100%), after ")


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_an_epoch_is_every_sample_once_with_its_own_pixels(shapes_dir, tier, format_):
    images, labels = mlpdata.load(shapes_dir, "train", 100).arrays()
    loader = mlpdata.load(shapes_dir, "train", batch_size=128, tier=tier, format=format_, seed=3)
    assert len(loader) == 12 and loader.tier == tier and tier in loader.tier_reason
    seen = []
    for batch in loader:
        ids = batch.ids.numpy()
        assert batch.images.dtype == torch.uint8 and batch.labels.dtype == batch.ids.dtype == torch.int64
        assert np.array_equal(batch.images.numpy(), images[ids])
        assert np.array_equal(batch.labels.numpy(), labels[ids])
        seen.append(ids)
    assert [len(s) for s in seen] == [128] * 11 + [92]
    seen = np.concatenate(seen)
    assert np.array_equal(np.sort(seen), np.arange(1500))
    assert not np.array_equal(seen, np.arange(1500))


def test_formats_agree_for_every_codec(photos_dir, tmp_path):
    """Raw beton against JPEG tars: the tars hold those pixels at quality 90."""
    raw, labels = mlpdata.load(photos_dir, "train", 8, format="beton").arrays()
    jpg, same = mlpdata.load(photos_dir, "train", 8, format="tar").arrays()
    assert np.array_equal(labels, same)
    assert 0 < np.abs(raw.astype(int) - jpg).mean() < 15  # noise is hard on JPEG; another image would be 60 off
    make_folder(tmp_path / "in")
    for codec in ("raw", "png", "jpg"):
        out = tmp_path / codec
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=24, codec=codec, out=out, shard_size=5)
        ours = [mlpdata.load(out, "train", 8, format=f).arrays()[0] for f in ("beton", "tar")]
        assert np.array_equal(*ours)


def test_order_follows_from_seed_and_epoch(shapes_dir):
    def epochs(seed, n, **options):
        loader = mlpdata.load(shapes_dir, "train", 100, seed=seed, **options)
        return [torch.cat([b.ids for b in loader]).tolist() for _ in range(n)]

    first, again, other = epochs(0, 2), epochs(0, 2), epochs(1, 2)
    assert first == again and first[0] != first[1] and first[0] != other[0]
    assert epochs(0, 1, shuffle=False)[0] == list(range(1500))


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
def test_resume_in_the_middle_of_an_epoch(shapes_dir, tier):
    def ids(loader):
        return [b.ids.tolist() for b in loader]

    whole = mlpdata.load(shapes_dir, "train", 100, tier=tier)
    expected = [*ids(whole), *ids(whole)]
    loader, seen = mlpdata.load(shapes_dir, "train", 100, tier=tier), []
    for batch in loader:
        seen.append(batch.ids.tolist())
        if len(seen) == 6:
            break
    state = loader.state_dict()
    assert (state["seed"], state["epoch"], state["step"]) == (0, 0, 6)
    resumed = mlpdata.load(shapes_dir, "train", 100, tier=tier)
    resumed.load_state_dict(state)
    assert seen + ids(resumed) + ids(resumed) == expected
    with pytest.raises(Error, match="seed"):
        mlpdata.load(shapes_dir, "train", 100, seed=1).load_state_dict(state)


@pytest.mark.parametrize("world_size", [2, 5])
def test_ranks_share_each_global_batch(shapes_dir, world_size):
    alone = [b.ids for b in mlpdata.load(shapes_dir, "train", 100)]
    ranks = [
        [b.ids for b in mlpdata.load(shapes_dir, "train", 100, rank=r, world_size=world_size)]
        for r in range(world_size)
    ]
    assert {len(r) for r in ranks} == {15}
    for step, batch in enumerate(alone):
        assert torch.equal(torch.cat([r[step] for r in ranks]), batch)


def test_drop_last_and_aliases(shapes_dir):
    loader = mlpdata.load(shapes_dir, "test", 400, drop_last=True)
    assert loader.split == "val" and [len(b.ids) for b in loader] == [400] * 3
    with pytest.raises(Error, match="fewer than one batch"):
        mlpdata.load(shapes_dir, "val", 2000, drop_last=True)


def test_augmented_batches_come_out_ready(shapes_dir):
    augment = Augment(res=12, mean=(0.5,) * 3, std=(0.25,) * 3, mixup=0.8)
    batch = next(iter(mlpdata.load(shapes_dir, "train", 64, augment=augment)))
    assert batch.images.shape == (64, 3, 12, 12) and batch.images.dtype == torch.float32
    assert batch.mix_labels.shape == batch.mix_lam.shape == (64,)


def test_leaving_a_stream_early_stops_its_thread(shapes_dir):
    before = threading.active_count()
    for _ in mlpdata.load(shapes_dir, "train", 16, tier="stream", num_threads=1):
        break
    until(lambda: threading.active_count() <= before)


def test_a_broken_payload_names_its_sample(photos_dir, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(photos_dir, root)
    index = mlpdata.load(root, "train", 8, format="tar", tier="stream").index
    with open(index.files[int(index.file[5])], "r+b") as f:
        f.seek(int(index.offset[5]))
        f.write(b"garbage!" * 10)
    for tier in ("stream", "resident"):
        with pytest.raises(Error, match=r"sample 5 at byte .* cannot be decoded"):
            list(mlpdata.load(root, "train", 8, format="tar", tier=tier))


def test_directories_that_cannot_be_loaded(shapes_dir, photos_dir, tmp_path):
    with pytest.raises(Error, match="no shard directory"):
        mlpdata.load(tmp_path / "none", "train", 8)
    with pytest.raises(Error, match="not a shard directory"):
        mlpdata.load(tmp_path, "train", 8)
    with pytest.raises(Error, match="no split 'other'"):
        mlpdata.load(shapes_dir, "other", 8)
    assert mlpdata.load(shapes_dir, "dev", 8).split == "val"
    with pytest.raises(Error, match="format 'zip'"):
        mlpdata.load(shapes_dir, "train", 8, format="zip")
    with pytest.raises(Error, match="tier"):
        mlpdata.load(shapes_dir, "train", 8, tier="floppy")
    root = tmp_path / "copy"
    shutil.copytree(photos_dir, root)
    with open(root / "train-000001.tar", "r+b") as f:
        f.truncate(2000)
    with pytest.raises(Error, match=r"train-000001.tar has 2,000 bytes, the manifest says"):
        mlpdata.load(root, "train", 8, format="tar")
    with pytest.raises(Error, match=r"train-000001.tar is (cut short|damaged)"):
        mlpdata.load(root / "train-*.tar", batch_size=8)
    (root / "manifest.json").write_text('{"format_version": 1, "splits"')
    with pytest.raises(Error, match="damaged"):
        mlpdata.load(root, "train", 8)


def test_tier_is_chosen_by_size(shapes_dir, monkeypatch):
    monkeypatch.setattr(tiers, "free_memory", lambda: 100_000)
    loader = mlpdata.load(shapes_dir, "train", 8)
    assert loader.tier == "stream" and "free" in loader.tier_reason


def test_stream_order_reads_blocks_and_still_mixes(shapes_dir, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 10 * 16 * 16 * 3)
    monkeypatch.setattr(stream_module, "WINDOW_BYTES", 50 * 16 * 16 * 3)
    order = mlpdata.load(shapes_dir, "train", 8, tier="stream").order(0)
    assert np.array_equal(np.sort(order), np.arange(1500))
    windows = order.reshape(-1, 50)
    assert all(len(set((w // 10).tolist())) == 5 for w in windows)
    assert any((np.diff(w // 10) != 0).sum() > 20 for w in windows)


# --------------------------------------------------------------------------------------------- state, ranks, choices


def test_states_hold_as_torchdata_expects(shapes_dir):
    """Taken while batch k is in use a state goes on with k + 1; a fresh iteration without a state begins an epoch."""
    plain = mlpdata.load(shapes_dir, "train", 100)
    whole, following = ([b.ids.tolist() for b in plain] for _ in range(2))
    loader = mlpdata.load(shapes_dir, "train", 100)
    old = iter(loader)
    assert [next(old).ids.tolist() for _ in range(3)] == whole[:3]
    state = loader.state_dict()
    assert [b.ids.tolist() for b in loader] == following and loader.epoch == 2
    assert [b.ids.tolist() for b in old] == whole[3:] and loader.epoch == 2  # the open one is not disturbed
    loader.load_state_dict(state)
    assert loader.state_dict() == state  # also before it is used
    assert [b.ids.tolist() for b in loader] == whole[3:]
    loader.load_state_dict(state)
    first = next(iter(loader)).ids.tolist()
    assert first == whole[3] and loader.state_dict()["step"] == 4
    at_end = state | {"step": 15}
    loader.load_state_dict(at_end)
    assert loader.epoch == 1 and [b.ids.tolist() for b in loader] == following


def test_unshuffled_states_cross_tiers_both_ways(shapes_dir):
    expected = [b.ids.tolist() for b in mlpdata.load(shapes_dir, "train", 100, shuffle=False)][4:]
    for saver, taker in itertools.permutations(["resident", "pinned", "stream"], 2):
        loader = mlpdata.load(shapes_dir, "train", 100, shuffle=False, tier=saver)
        batches = iter(loader)
        for _ in range(4):
            next(batches)
        again = mlpdata.load(shapes_dir, "train", 100, shuffle=False, tier=taker)
        again.load_state_dict(loader.state_dict())
        assert [b.ids.tolist() for b in again] == expected, (saver, taker)


def test_an_unshuffled_stream_goes_by_the_split_where_files_do_not(shapes_dir, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 7 * 768)
    monkeypatch.setattr(stream_module, "WINDOW_BYTES", 5 * 7 * 768)
    images = mlpdata.load(shapes_dir, "train", 100).arrays()[0]
    loader = mlpdata.load(shapes_dir, "train", 100, tier="stream", shuffle=False)
    turned = np.arange(1500)[::-1]
    monkeypatch.setattr(loader._reader, "storage_order", lambda ids: turned if ids is None else np.argsort(-ids))
    seen = list(loader)
    assert torch.cat([b.ids for b in seen]).tolist() == list(range(1500))
    assert np.array_equal(torch.cat([b.images for b in seen]).numpy(), images)


def test_a_stream_reads_the_next_epochs_first_window_once(shapes_dir, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 50 * 768)
    monkeypatch.setattr(stream_module, "WINDOW_BYTES", 500 * 768)  # three windows
    resident = mlpdata.load(shapes_dir, "train", 100)
    images, loader = resident.arrays()[0], mlpdata.load(shapes_dir, "train", 100, tier="stream")
    fetched, fetch = [], loader._reader.fetch
    monkeypatch.setattr(loader._reader, "fetch", lambda *a, **k: fetched.append(1) or fetch(*a, **k))
    expected = [loader.order(e) for e in range(6)]

    def epoch(number):
        seen = list(loader)
        ids = torch.cat([b.ids for b in seen]).numpy()
        assert np.array_equal(ids, expected[number])
        assert np.array_equal(torch.cat([b.images for b in seen]).numpy(), images[ids])

    epoch(0)
    assert len(fetched) == 4  # its three and the next one's first
    epoch(1)
    assert len(fetched) == 7
    for _ in loader:  # left early: that was epoch 2
        break
    epoch(3)
    state = loader.state_dict()
    loader.load_state_dict({**state, "epoch": 5})  # not the one that was read for
    epoch(5)
    loader.load_state_dict({**state, "epoch": 4, "step": 3})  # in its middle
    assert torch.cat([b.ids for b in loader]).tolist() == expected[4][300:].tolist()


@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_a_process_that_ends_in_the_middle_of_an_epoch_ends_its_threads_first(photos_dir, format_):
    """Python unwinds a daemon thread wherever it is, which inside torch aborts the process, now and then."""
    program = f"""if True:
        import atexit, sys, threading
        atexit.register(lambda: print(*sorted(t.name for t in threading.enumerate())))  # the last to be called
        import mlpdata
        options = dict(tier="stream", format={format_!r}, infinite=True)
        batches = iter(mlpdata.load({str(photos_dir)!r}, "train", 4, **options))
        for _ in range(30):
            next(batches)
        sys.exit(3)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert "MainThread" in done.stdout and "mlpdata" not in done.stdout


def test_states_cross_tiers_where_they_can_and_say_where_they_cannot(shapes_dir, monkeypatch):
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 7 * 768)
    monkeypatch.setattr(stream_module, "WINDOW_BYTES", 5 * 7 * 768)

    def epochs(loader, n=2):
        return [b.ids.tolist() for _ in range(n) for b in loader]

    expected = epochs(mlpdata.load(shapes_dir, "train", 100, tier="stream"))
    stream = mlpdata.load(shapes_dir, "train", 100, tier="stream")
    it = iter(stream)
    for _ in range(4):
        next(it)
    state = stream.state_dict()
    for tier in ("resident", "pinned", "stream"):
        other = mlpdata.load(shapes_dir, "train", 100, tier=tier)
        other.load_state_dict(state)
        assert epochs(other, 1) == expected[4:15]
        # From the next epoch on each tier has its own order again; resident and pinned share theirs.
        plain = mlpdata.load(shapes_dir, "train", 100, tier="stream" if tier == "stream" else None).order(1)
        assert np.array_equal(np.concatenate(epochs(other, 1)), plain)
    resident = mlpdata.load(shapes_dir, "train", 100, tier="resident")
    next(iter(resident))
    with pytest.raises(Error, match="stream tier cannot continue it"):
        stream.load_state_dict(resident.state_dict())
    stream.load_state_dict(resident.state_dict() | {"step": 0, "epoch": 1})
    assert epochs(stream, 1) == expected[15:]
    with pytest.raises(Error, match="batch_size 100; this loader has 50"):
        mlpdata.load(shapes_dir, "train", 50).load_state_dict(resident.state_dict())
    with pytest.raises(Error, match="no state of a loader"):
        resident.load_state_dict({"epoch": 1})


@pytest.mark.parametrize("tier", ["resident", "stream"])
def test_ranks_end_together_on_a_ragged_last_batch(shapes_dir, tier):
    options = {"subset": 1403, "tier": tier, "seed": 4}
    alone = [b.ids.tolist() for b in mlpdata.load(shapes_dir, "train", 100, **options)]
    assert len(alone[-1]) == 3
    ranks = [[b for b in mlpdata.load(shapes_dir, "train", 100, rank=r, world_size=5, **options)] for r in range(5)]
    assert [len(r) for r in ranks] == [15] * 5
    assert [len(r[-1].ids) for r in ranks] == [1, 1, 1, 0, 0]
    assert ranks[4][-1].images.shape == (0, 16, 16, 3)
    for step, ids in enumerate(alone):
        assert torch.cat([r[step].ids for r in ranks]).tolist() == ids
    with pytest.raises(Error, match="rank 5 is not one of 5"):
        mlpdata.load(shapes_dir, "train", 100, rank=5, world_size=5)


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
def test_subsets_and_classes_keep_ids_and_pixels(shapes_dir, tier):
    images, labels = mlpdata.load(shapes_dir, "train", 100).arrays()
    for subset, n in ((200, 200), (0.1, 150), ([5, 3, 900, 5], 4), (np.arange(40, 60), 20)):
        loader = mlpdata.load(shapes_dir, "train", 64, tier=tier, subset=subset)
        assert loader.num_samples == len(loader.ids) == n
        assert np.array_equal(loader.labels, labels[loader.ids]) and np.array_equal(
            loader.arrays()[0], images[loader.ids]
        )
        seen = list(loader)
        assert all(np.array_equal(b.images.numpy(), images[b.ids.numpy()]) for b in seen)
        assert all(np.array_equal(b.labels.numpy(), labels[b.ids.numpy()]) for b in seen)
        assert np.array_equal(np.sort(torch.cat([b.ids for b in seen]).numpy()), np.sort(loader.ids))
        assert np.array_equal(np.sort(loader.order(3)), np.sort(loader.ids))
    kept = mlpdata.load(shapes_dir, "train", 64, tier=tier, classes=[3, 1])
    assert set(kept.labels.tolist()) == {1, 3} and kept.num_classes == mlpdata.load(shapes_dir).num_classes
    name = mlpdata.shards.classes.read_classes(shapes_dir)[3][0]
    renamed = mlpdata.load(shapes_dir, "train", 64, tier=tier, classes=[name, 1], relabel=True)
    assert renamed.num_classes == 2 and np.array_equal(renamed.labels, np.where(kept.labels == 3, 0, 1))
    assert torch.cat([b.labels for b in renamed]).sum() == (kept.labels == 1).sum()
    both = mlpdata.load(shapes_dir, "train", 64, classes=[3, 1], subset=0.5)
    assert both.num_samples == round(kept.num_samples / 2) and set(both.labels.tolist()) <= {1, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subset": 0}, "subset 0"),
        ({"subset": 1501}, "subset 1501"),
        ({"subset": 1.5}, "subset 1.5"),
        ({"subset": [1500]}, "beyond the 1500"),
        ({"subset": []}, "leave no samples"),
        ({"classes": ["dog"]}, "no class 'dog'"),
        ({"classes": [1, 1]}, "twice"),
        ({"pixels": "yuv"}, "pixels 'yuv'"),
        ({"batch_size": 10, "world_size": 3}, "divisible by the 3"),
    ],
)
def test_choices_that_cannot_be_met(shapes_dir, options, message):
    with pytest.raises(Error, match=message):
        mlpdata.load(shapes_dir, "train", **{"batch_size": 8} | options)


def test_infinite_goes_on_into_the_next_epoch(shapes_dir):
    plain = mlpdata.load(shapes_dir, "train", 700)
    expected = [b.ids.tolist() for _ in range(3) for b in plain]
    for tier in ("resident", "stream"):
        batches = iter(mlpdata.load(shapes_dir, "train", 700, infinite=True, tier=tier))
        seen = [next(batches).ids.tolist() for _ in range(9)]
        assert tier == "stream" or seen == expected
        assert all(sorted(itertools.chain(*seen[k : k + 3])) == list(range(1500)) for k in (0, 3, 6))


# -------------------------------------------------------------------------------------------- files that change


@pytest.fixture
def own_copy(shapes_dir, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(shapes_dir, root)
    return root


@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_a_file_cut_short_while_in_use_is_an_error_and_no_crash(own_copy, monkeypatch, format_):
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 16 * 768)
    monkeypatch.setattr(stream_module, "WINDOW_BYTES", 4 * 16 * 768)
    loader = mlpdata.load(own_copy, "train", 32, tier="stream", format=format_)
    batches = iter(loader)
    next(batches)
    path = loader.index.files[0]
    with open(path, "r+b") as f:
        f.truncate(int(loader.index.offset[100]) + 5)
    with pytest.raises(Error, match=rf"{path.name} changed while it was in use"):
        list(batches)
    with pytest.raises(Error, match=rf"{path.name} changed while it was in use"):
        loader.read([100])


def test_a_file_that_ends_early_names_the_sample(own_copy):
    """The size seems right, the bytes are not there: as with a file system that is full or a network that is gone."""
    reader = mlpdata.load(own_copy, "train", 32, tier="stream")._reader
    path, stop = reader.index.files[0], int(reader.index.offset[100]) + 5
    with open(path, "r+b") as f:
        f.truncate(stop)
    reader.stamps = [reader_module._stamp(path.stat())]
    with pytest.raises(Error, match=rf"{path.name} is cut short: it ends at byte {stop}, in or before sample 100"):
        reader.read(np.arange(90, 110), np.empty((20, 16, 16, 3), np.uint8))


def test_a_file_written_to_while_in_use_is_an_error(own_copy):
    loader = mlpdata.load(own_copy, "train", 32, tier="stream")
    with open(loader.index.files[0], "r+b") as f:
        f.seek(int(loader.index.offset[7]))
        f.write(b"other pixels")
    with pytest.raises(Error, match="changed while it was in use"):
        list(loader)
    loader.index.files[0].unlink()
    with pytest.raises(Error, match="No such file"):
        list(loader)


@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_checksums_find_what_sizes_do_not(own_copy, photos_dir, tmp_path, format_):
    assert mlpdata.load(own_copy, "train", 32, format=format_, check=True).num_samples == 1500
    index = mlpdata.load(own_copy, "train", 32, format=format_, tier="stream").index
    path, raw = index.files[int(index.file[700])], format_ == "beton"
    with open(path, "r+b") as f:
        f.seek(int(index.offset[700]) + 50)
        f.write(b"other")
    where = "sample 700 at byte" if raw else "get it again"
    with pytest.raises(Error, match=rf"{path.name} has sha256 .* the manifest lists .*{where}"):
        mlpdata.load(own_copy, "train", 32, format=format_, check=True)
    with pytest.raises(Error, match="no manifest, so there are no checksums to compare"):
        mlpdata.load(path if raw else photos_dir / "train-*1.tar", check=True)
    with open(path, "ab") as f:
        f.write(b"more")
    with pytest.raises(Error, match=rf"{path.name} has [\d,]+ bytes, the manifest says [\d,]+"):
        mlpdata.load(own_copy, "train", 32, format=format_)


def test_reading_past_the_page_cache_gives_the_same_pixels(shapes_dir, photos_dir, monkeypatch):
    for root, format_ in ((shapes_dir, "beton"), (shapes_dir, "tar"), (photos_dir, "tar")):
        images = mlpdata.load(root, "train", 64, format=format_).arrays()[0]
        with monkeypatch.context() as patch:
            patch.setattr(tiers, "free_memory", lambda: 1000)
            loader = mlpdata.load(root, "train", 64, format=format_)
        assert loader.tier == "stream" and "past the page cache" in loader.tier_reason
        for batch in loader:
            assert np.array_equal(batch.images.numpy(), images[batch.ids.numpy()])


# ------------------------------------------------------------------------------------------------- other consumers


def test_arrays_copy_nothing_where_the_layout_allows(shapes_dir, tmp_path):
    resident = mlpdata.load(shapes_dir, "train", 8)
    assert np.shares_memory(resident.arrays()[0], resident.arrays()[0])
    make_folder(tmp_path / "in", per_class=20)
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=24, codec="raw", out=tmp_path / "raw")
    expected, labels = mlpdata.load(tmp_path / "raw", "train", 8).arrays()
    for format_ in ("beton", "tar"):
        images, same = mlpdata.load(tmp_path / "raw", "train", 8, format=format_, tier="stream").arrays()
        assert np.array_equal(images, expected) and np.array_equal(labels, same)
        assert not images.flags.owndata and not images.flags.writeable
    some = mlpdata.load(tmp_path / "raw", "train", 8, tier="stream", subset=[1, 5]).arrays()[0]
    assert np.array_equal(some, expected[[1, 5]])


def test_dataset_for_a_dataloader_of_your_own(photos_dir):
    loader = mlpdata.load(photos_dir, "train", 8, format="tar", subset=0.5)
    images, labels = loader.arrays()
    samples = loader.dataset()
    assert len(samples) == len(labels) and samples[-1][1] == labels[-1]
    with pytest.raises(IndexError):
        samples[len(labels)]
    assert len(pickle.dumps(samples)) < 4000  # the files, not what is in them
    opened = pickle.loads(pickle.dumps(samples))
    assert np.array_equal(opened[3][0].numpy(), images[3].transpose(2, 0, 1))
    flat = loader.dataset(lambda image: torch.from_numpy(np.array(image)).flatten())
    flat = torch.utils.data.DataLoader(flat, 7, num_workers=1)
    seen = [(x, y) for x, y in flat]
    assert np.array_equal(torch.cat([x for x, _ in seen]).numpy(), images.reshape(len(images), -1))
    assert np.array_equal(torch.cat([y for _, y in seen]).numpy(), labels)


def test_batches_that_are_kept_stay_as_they_are(shapes_dir):
    """Buffers are used again only when nothing refers to them: not the batch, not a view, not an array of it."""
    images = mlpdata.load(shapes_dir, "train", 100).arrays()[0]
    for tier in ("resident", "stream"):
        kept = [
            (b.images[3:5].numpy()[:, 2], b.ids[3:5].numpy()) for b in mlpdata.load(shapes_dir, "train", 20, tier=tier)
        ]
        assert all(np.array_equal(rows, images[ids][:, 2]) for rows, ids in kept)
    pool = BufferPool()
    first = pool.take((4, 4))
    place = first.data_ptr()
    assert pool.take((4, 4)).data_ptr() != place  # still held
    del first
    assert place in {pool.take((4, 4)).data_ptr() for _ in range(3)}


def test_errors_and_ends_of_a_thread_that_reads_ahead():
    closed = []

    def numbers(n, fail=False):
        try:
            yield from range(n)
            if fail:
                raise ValueError("no more")
        finally:
            closed.append(n)

    assert list(prefetch(numbers(50), 3)) == list(range(50))
    items = prefetch(numbers(10**9), 2)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    items.close()
    assert closed == [50, 10**9]
    items = prefetch(numbers(5, fail=True), 2)
    with pytest.raises(ValueError, match="no more"):
        list(items)


def test_luma_and_chroma_in_the_resident_tier(photos_dir):
    images = mlpdata.load(photos_dir, "train", 16).arrays()[0]
    loader = mlpdata.load(photos_dir, "train", 16, pixels="ycc420")
    assert sum(s.numel() for s in loader._tier.stores) * 2 == images.size
    psnr = float(loader.tier_reason.rpartition(": ")[2].split(" dB")[0])
    error = 0.0
    for batch in loader:
        assert batch.images.shape[1:] == (32, 32, 3) and batch.images.dtype == torch.uint8
        error += ((batch.images.numpy().astype(float) - images[batch.ids.numpy()]) ** 2).sum()
    assert abs(10 * np.log10(255**2 / (error / images.size)) - psnr) < 0.1 and psnr > 20
    augmented = mlpdata.load(
        photos_dir, "train", 16, pixels="ycc420", augment=Augment(res=16, crop_scale=None, flip=False)
    )
    assert next(iter(augmented)).images.shape == (16, 3, 16, 16)
    assert "stay RGB" in mlpdata.load(photos_dir, "train", 16, pixels="ycc420", tier="stream").tier_reason


def test_free_memory_respects_the_limits_of_containers(tmp_path, monkeypatch):
    assert memory.free_memory() > 0
    monkeypatch.setattr(memory, "_available", lambda: 10**15)  # else other processes change it meanwhile
    group = tmp_path / "memory" / "box" / "inner"
    group.mkdir(parents=True)
    (tmp_path / "own").write_text("5:memory:/box/inner\n1:cpu:/\n")
    for folder, limit in ((group, "9223372036854771712"), (group.parent, "1000000")):
        (folder / "memory.limit_in_bytes").write_text(limit)
        (folder / "memory.usage_in_bytes").write_text("600000\n")
        (folder / "memory.stat").write_text("cache 1\ninactive_file 100000\nactive_file 50000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "own")
    assert memory.free_memory() == 550_000
    (tmp_path / "box").mkdir()
    (tmp_path / "own").write_text("0::/box\n")
    for name, text in (("memory.max", "700000"), ("memory.current", "800000"), ("memory.stat", "anon 5\n")):
        (tmp_path / "box" / name).write_text(text)
    assert memory.free_memory() == 0
    (tmp_path / "box" / "memory.max").write_text("max\n")
    assert memory.free_memory() == 10**15


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("tier", [pytest.param(t, marks=gpu) for t in ("resident", "pinned", "stream")])
def test_on_the_gpu(shapes_dir, tier):
    images, labels = mlpdata.load(shapes_dir, "train", 100).arrays()
    for batch in mlpdata.load(shapes_dir, "train", 128, device="cuda", tier=tier):
        assert batch.images.is_cuda
        assert np.array_equal(batch.images.cpu().numpy(), images[batch.ids.cpu().numpy()])
        assert np.array_equal(batch.labels.cpu().numpy(), labels[batch.ids.cpu().numpy()])


@pytest.mark.parametrize("tier", [pytest.param(t, marks=gpu) for t in ("resident", "pinned", "stream")])
def test_pinned_buffers_are_not_filled_while_they_are_copied(shapes_dir, tier):
    """A device that lags behind: copies and gathers queue up, and every batch must still be its own."""
    images = torch.tensor(mlpdata.load(shapes_dir, "train", 100).arrays()[0]).cuda()
    loader = mlpdata.load(shapes_dir, "train", 64, device="cuda", tier=tier)
    heavy, wrong = torch.rand(4096, 4096, device="cuda"), torch.zeros((), dtype=torch.int64, device="cuda")
    for _ in range(3):
        for batch in loader:
            heavy = (heavy @ heavy).clamp_(0, 1)
            wrong += (batch.images != images[batch.ids]).sum()
    assert int(wrong) == 0


@pytest.mark.parametrize("tier", [pytest.param("resident", marks=gpu)])
def test_luma_and_chroma_on_the_gpu(photos_dir, tier):
    options = {"pixels": "ycc420", "tier": tier, "shuffle": False}
    there = [b.images.cpu() for b in mlpdata.load(photos_dir, "train", 16, device="cuda", **options)]
    here = [b.images for b in mlpdata.load(photos_dir, "train", 16, **options)]
    assert all((a.int() - b.int()).abs().max() <= 1 for a, b in zip(there, here, strict=True))


# -------------------------------------------------------------------------------------------------------- any path


STRANGE = [
    "[D] data",
    "a*b",
    "q?",
    "two  spaces ",
    "quote's \"",
    "line\nbreak",
    "é\u2028",
    "\udcff",
    "-dash",
    "~",
    "#%20",
]


@pytest.mark.parametrize("name", STRANGE)
def test_directories_of_any_name_and_patterns_inside_them(photos_dir, tmp_path, name):
    root, decoy = tmp_path / name, tmp_path / "D"  # what a pattern made of the first name would find
    for folder in (root, decoy):
        folder.mkdir()
    (decoy / "train-000000.tar").write_bytes(b"")
    for file in photos_dir.iterdir():
        (root / file.name).symlink_to(file)
    images, labels = mlpdata.load(photos_dir, batch_size=8, format="tar").arrays()
    for path in (root / "train-*.tar", root / "train-00000[012].tar", os.fsencode(root), str(root)):
        loader = mlpdata.load(path, batch_size=8, format="tar", tier="stream")
        assert np.array_equal(loader.arrays()[0], images) and np.array_equal(loader.labels, labels)
    samples = pickle.loads(pickle.dumps(loader.dataset()))
    assert np.array_equal(samples[3][0], images[3].transpose(2, 0, 1))


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
def test_a_file_written_to_during_its_last_read_is_noticed(own_copy, monkeypatch, tier):
    """The bytes may be those from before or from after: nobody can tell."""
    read, path = reader_module.preadv, own_copy / "train.beton"

    def write_and_read(fd, buffers, offset):
        done = read(fd, buffers, offset)
        with open(path, "r+b") as f:
            f.seek(-1, 2)
            f.write(b"x")
        os.utime(path, ns=(0, 10**18))  # a clock of coarse ticks would not show it
        return done

    monkeypatch.setattr(reader_module, "preadv", write_and_read)
    with pytest.raises(Error, match=r"train.beton changed while it was in use: it was written to"):
        next(iter(mlpdata.load(own_copy, batch_size=1500, tier=tier)))


def test_what_became_a_pipe_is_not_waited_for(own_copy):
    loader = mlpdata.load(own_copy, batch_size=32, tier="stream")
    (own_copy / "train.beton").unlink()
    os.mkfifo(own_copy / "train.beton")
    for read in (lambda: list(loader), lambda: loader.read([1]), loader.arrays, lambda: loader.dataset()[0]):
        with pytest.raises(Error, match=r"train.beton") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_disk_that_fails(own_copy, monkeypatch):
    def fails(fd, buffers, offset):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    loader = mlpdata.load(own_copy, batch_size=32, tier="stream")
    monkeypatch.setattr(reader_module, "preadv", fails)
    for read in (lambda: list(loader), lambda: loader.read([1]), lambda: mlpdata.load(own_copy, tier="resident")):
        with pytest.raises(Error, match=r"^cannot read .*train.beton: Input/output error$"):
            read()
