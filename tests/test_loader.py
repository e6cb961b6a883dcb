import threading
import time

import numpy as np
import pytest
import torch
from conftest import convert_quietly, make_folder

import mlpdata
from mlpdata import Augment, Error
from mlpdata import loader as loader_module


@pytest.mark.parametrize("tier", ["resident", "stream"])
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


@pytest.mark.parametrize("tier", ["resident", "stream"])
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
    assert state == {"seed": 0, "epoch": 0, "step": 6}
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
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_a_broken_payload_names_its_sample(photos_dir, tmp_path):
    import shutil

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
    import shutil

    with pytest.raises(Error, match="no shard directory"):
        mlpdata.load(tmp_path / "none", "train", 8)
    with pytest.raises(Error, match="not a shard directory"):
        mlpdata.load(tmp_path, "train", 8)
    with pytest.raises(Error, match="no split 'dev'"):
        mlpdata.load(shapes_dir, "dev", 8)
    with pytest.raises(Error, match="format 'zip'"):
        mlpdata.load(shapes_dir, "train", 8, format="zip")
    with pytest.raises(Error, match="tier"):
        mlpdata.load(shapes_dir, "train", 8, tier="floppy")
    root = tmp_path / "copy"
    shutil.copytree(photos_dir, root)
    with open(root / "train-000001.tar", "r+b") as f:
        f.truncate(2000)
    with pytest.raises(Error, match=r"train-000001.tar is cut short"):
        mlpdata.load(root, "train", 8, format="tar")
    (root / "manifest.json").write_text('{"format_version": 1, "splits"')
    with pytest.raises(Error, match="damaged"):
        mlpdata.load(root, "train", 8)


def test_tier_is_chosen_by_size(shapes_dir, monkeypatch):
    monkeypatch.setattr(loader_module, "_free_memory", lambda: 100_000)
    loader = mlpdata.load(shapes_dir, "train", 8)
    assert loader.tier == "stream" and "free" in loader.tier_reason


def test_stream_order_reads_blocks_and_still_mixes(shapes_dir, monkeypatch):
    monkeypatch.setattr(loader_module, "BLOCK_SAMPLES", 10)
    monkeypatch.setattr(loader_module, "WINDOW_BLOCKS", 5)
    order = mlpdata.load(shapes_dir, "train", 8, tier="stream").order(0)
    assert np.array_equal(np.sort(order), np.arange(1500))
    windows = order.reshape(-1, 50)
    assert all(len(set((w // 10).tolist())) == 5 for w in windows)
    assert any((np.diff(w // 10) != 0).sum() > 20 for w in windows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("tier", ["resident", "stream"])
def test_on_the_gpu(shapes_dir, tier):
    images, labels = mlpdata.load(shapes_dir, "train", 100).arrays()
    for batch in mlpdata.load(shapes_dir, "train", 128, device="cuda", tier=tier):
        assert batch.images.is_cuda
        assert np.array_equal(batch.images.cpu().numpy(), images[batch.ids.cpu().numpy()])
        assert np.array_equal(batch.labels.cpu().numpy(), labels[batch.ids.cpu().numpy()])
