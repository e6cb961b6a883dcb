"""The split tier: some samples on the device, the others in host memory; the batches are those of the other tiers."""

import numpy as np
import pytest
import torch

import mlpdata
from mlpdata import Augment
from mlpdata.loader import tiers
from mlpdata.loader.memory_plan import Needs

IMAGE = 16 * 16 * 3


@pytest.fixture(params=[0, 1, 700, 1499, 1500])
def num_resident(request, monkeypatch):
    monkeypatch.setattr(tiers, "free_memory", lambda: request.param * IMAGE)
    return request.param


def split(root, **options):
    return mlpdata.load(root, batch_size=200, tier="split", needs=Needs(), **options)


def tensors(batches):
    return [[b.ids.tolist(), b.labels.tolist(), b.images.clone()] for b in batches]


def assert_equal(ours, theirs):
    for (ids, labels, images), (other_ids, other_labels, other_images) in zip(ours, theirs, strict=True):
        assert ids == other_ids and labels == other_labels and torch.equal(images, other_images)


@pytest.mark.parametrize("options", [{}, {"subset": 1001, "seed": 5}, {"shuffle": False}, {"rank": 1, "world_size": 4}])
def test_batches_are_those_of_the_resident_tier(shapes_dir, num_resident, options):
    loader = split(shapes_dir, **options)
    expected = num_resident // options.get("world_size", 1)
    assert loader.tier == "split" and loader._tier.num_resident == min(loader.num_samples, expected)
    resident = mlpdata.load(shapes_dir, batch_size=200, tier="resident", **options)
    for _ in range(2):
        assert_equal(tensors(loader), tensors(resident))


def test_planes_augmentation_and_arrays(shapes_dir, num_resident):
    for options in ({"pixels": "ycc420"}, {"augment": Augment(res=8, mixup=0.8)}):
        ours, theirs = (
            split(shapes_dir, **options),
            mlpdata.load(shapes_dir, batch_size=200, tier="resident", **options),
        )
        assert ours.pixels == theirs.pixels
        assert_equal(tensors(ours), tensors(theirs))
        assert np.array_equal(ours.arrays()[1], theirs.arrays()[1])


@pytest.mark.parametrize("other", ["resident", "split", "pinned"])
def test_a_resume_crosses_tiers(shapes_dir, num_resident, other):
    loader = split(shapes_dir)
    whole, following = tensors(loader), tensors(loader)
    loader = split(shapes_dir)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    again = mlpdata.load(shapes_dir, batch_size=200, tier=other, needs=Needs())
    again.load_state_dict(loader.state_dict())
    assert_equal(tensors(again), whole[3:])
    assert_equal(tensors(again), following)


gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("pixels", [pytest.param(p, marks=gpu) for p in ("rgb", "ycc420")])
def test_on_the_gpu(shapes_dir, monkeypatch, pixels):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700 * IMAGE, 1 << 34))
    loader = mlpdata.load(shapes_dir, batch_size=200, device="cuda", tier="split", pixels=pixels, needs=Needs())
    resident = mlpdata.load(shapes_dir, batch_size=200, device="cuda", tier="resident", pixels=pixels)
    for _ in range(3):
        assert_equal(tensors(loader), tensors(resident))
