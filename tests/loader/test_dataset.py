"""A loader's torch data set: items, transforms, processes; and what is handed out cannot be written to."""

import multiprocessing
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import mlpdata
from mlpdata import Error


@pytest.fixture(scope="module")
def loader(shapes_dir):
    return mlpdata.load(shapes_dir, batch_size=100, subset=[7, 7, 3, 900])


@pytest.fixture(scope="module")
def images(shapes_dir):
    return mlpdata.load(shapes_dir, batch_size=100).arrays()[0][[7, 7, 3, 900]]


def test_items_are_channels_first_and_transforms_get_pil_images(loader, images):
    plain, seen = loader.dataset(), []
    assert len(plain) == 4 and all(isinstance(label, int) for _, label in plain)
    for (image, label), pixels, right in zip(plain, images, loader.labels, strict=True):
        assert image.dtype == torch.uint8 and image.is_contiguous() and label == right
        assert np.array_equal(image.numpy(), pixels.transpose(2, 0, 1))
    turned = loader.dataset(lambda image: seen.append(image) or image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert np.array_equal([np.asarray(image) for image, _ in turned], images[:, :, ::-1])
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in seen)
    (batch, labels), *more = DataLoader(plain, 4)
    assert batch.shape == (4, 3, 16, 16) and labels.tolist() == loader.labels.tolist() and not more
    with pytest.raises(Error, match="cannot be called"):
        loader.dataset("flip")


@pytest.mark.parametrize("i", [2, -2, np.int64(2), np.uint8(2), torch.tensor(2), np.array(-2)])
def test_whole_numbers_are_items(loader, images, i):
    assert np.array_equal(loader.dataset()[i][0].numpy(), images[2].transpose(2, 0, 1))


@pytest.mark.parametrize("i", [2.0, 2.7, np.float32(2), True, np.True_, torch.tensor(True), torch.tensor(2.0), "2",
                               None, slice(2), [2], torch.tensor([1, 2]), np.array([1, 2])])  # fmt: skip
def test_what_is_no_item(loader, i):
    with pytest.raises(TypeError, match="is not the number of a sample"):
        loader.dataset()[i]
    with pytest.raises(TypeError, match="is not the number of a sample"):
        loader.dataset().__getitems__([0, i])


@pytest.mark.parametrize("i", [4, -5, 10**30, -(10**30), np.uint64(2**64 - 1)])
def test_items_beyond_the_end(loader, i):
    with pytest.raises(IndexError, match="there are 4 samples"):
        loader.dataset()[i]


def pil_to_sum(image):
    return int(np.asarray(image, np.int64).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_any_kind(loader, images, method):
    list(loader)  # the process has threads that a fork will not have
    loader.read([1, 2])
    batches = DataLoader(loader.dataset(pil_to_sum), 2, num_workers=1, multiprocessing_context=method)
    assert torch.cat([x for x, _ in batches]).tolist() == images.sum((1, 2, 3), dtype=np.int64).tolist()


def test_a_fork_of_a_loader_that_has_threads(photos_dir):
    """Its child has none of them: it must not wait for them."""
    loader = mlpdata.load(photos_dir, batch_size=8, tier="stream", format="tar", num_threads=4, shuffle=False)
    expected = [batch.images for batch in loader]

    def child(pipe):
        torch.set_num_threads(1)
        pipe.send(all(torch.equal(b.images, e) for b, e in zip(loader, expected, strict=True)))

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    try:
        assert ours.poll(60) and ours.recv()
    finally:
        process.kill()
        process.join()


def test_a_pickled_data_set_stays_read_only_and_goes_by_its_whole_path(shapes_dir, loader, monkeypatch, tmp_path):
    monkeypatch.chdir(shapes_dir.parent)
    samples = mlpdata.load(shapes_dir.name, batch_size=8).dataset()
    monkeypatch.chdir(tmp_path)
    assert samples[5][0].shape == (3, 16, 16)
    again = pickle.loads(pickle.dumps(samples))
    assert again[5][1] == samples[5][1]
    for opened in (samples, again):
        with pytest.raises(ValueError, match="read-only"):
            opened.labels[0] = 1


def test_shards_that_change_before_a_worker_opens_them(shapes_dir, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(shapes_dir, root)
    samples = mlpdata.load(root, batch_size=8).dataset()
    stat = (root / "train.beton").stat()
    os.utime(root / "train.beton", ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    with pytest.raises(Error, match="changed since it was loaded"):
        samples[0]


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
@pytest.mark.parametrize("options", [{}, {"subset": [5, 2]}, {"pixels": "ycc420"}])
def test_what_is_handed_out_is_no_way_into_the_loader(shapes_dir, tier, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = mlpdata.load(shapes_dir, batch_size=100, tier=tier, shuffle=False, **options)
        before = [(b.images.clone(), b.labels.clone(), b.ids.clone()) for b in loader]
        arrays = [*loader.arrays(), loader.labels, loader.ids, loader.index.label, loader.index.offset]
        for array in arrays:
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 0
        for batch in loader:  # batches are the consumer's own
            batch.images.zero_()
            batch.labels.zero_()
            batch.ids.zero_()
        loader.order(0)[:] = 0
        after = [(b.images, b.labels, b.ids) for b in loader]
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
