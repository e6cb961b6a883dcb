"""Loops of other people: batches that unpack and move, epochs by number, names of classes, paths as others write."""

import gzip
import itertools
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.distributed
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

import mlpdata
from mlpdata import Augment, Batch, Error
from mlpdata.loader.options import MAX_SEED

# ------------------------------------------------------------------------------------------------------ batches


def test_a_batch_unpacks(shapes_dir):
    batch = next(iter(mlpdata.load(shapes_dir, batch_size=100)))
    images, labels = batch
    assert images is batch.images and labels is batch.labels
    assert [x.shape[0] for x, _ in itertools.zip_longest([*batch], ())] == [100, 100]


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixed_labels_are_not_lost(shapes_dir, mix):
    batch = next(iter(mlpdata.load(shapes_dir, batch_size=100, augment=Augment(**{mix: 1.0}))))
    with pytest.raises(ValueError, match="too many values"):
        _images, _labels = batch
    images, labels, mix_labels, mix_lam = batch
    assert images is batch.images and labels is batch.labels
    assert mix_labels is batch.mix_labels and mix_lam is batch.mix_lam


def test_a_batch_moves_whole():
    n = 4
    fields = {
        "images": torch.zeros(n, 8, 8, 1), "labels": torch.arange(n), "ids": torch.arange(n),
        "mix_labels": torch.arange(n), "mix_lam": torch.ones(n), "chroma": torch.zeros(n, 4, 4, 2),
    }  # fmt: skip
    moved = Batch(**fields).to("meta", non_blocking=True)
    assert all(getattr(moved, name).device.type == "meta" for name in fields) and moved.rows is None
    same = Batch(**fields)
    assert same.to("cpu").images is same.images


# ------------------------------------------------------------------------------------------------------- epochs


def ids(batches):
    return [batch.ids.tolist() for batch in batches]


@pytest.mark.parametrize("tier", ["resident", "pinned", "stream"])
def test_epochs_by_number(shapes_dir, tier):
    loader = mlpdata.load(shapes_dir, batch_size=500, tier=tier)
    first, second, third = ids(loader), ids(loader), ids(loader)
    loader.set_epoch(0)
    assert ids(loader) == first
    loader.set_epoch(2)
    assert loader.epoch == 2 and ids(loader) == third
    assert loader.epoch == 3
    batches = iter(loader)
    next(batches)
    loader.set_epoch(1)
    assert ids(loader) == second
    assert loader.epoch == 2 and len([*batches]) == 2  # which went on by itself


def test_an_epoch_that_is_broken_off_and_set_again_starts_anew(shapes_dir):
    loader = mlpdata.load(shapes_dir, batch_size=500)
    first = ids(loader)
    loader.set_epoch(0)
    next(iter(loader))
    loader.set_epoch(0)
    assert ids(loader) == first


def test_setting_the_epoch_of_a_loaded_state_goes_on_in_the_middle_of_it(shapes_dir):
    loader = mlpdata.load(shapes_dir, batch_size=500)
    whole = [ids(loader), ids(loader)]
    loader.set_epoch(1)
    next(iter(loader))
    again = mlpdata.load(shapes_dir, batch_size=500)
    again.load_state_dict(loader.state_dict())
    again.set_epoch(1)
    assert ids(again) == whole[1][1:]
    again.load_state_dict(loader.state_dict())
    again.set_epoch(0)  # another one: from its start
    assert ids(again) == whole[0]


@pytest.mark.parametrize("epoch", [-1, 1.0, True, "1", None, 1 << 40, MAX_SEED])
def test_what_is_no_epoch(shapes_dir, epoch):
    with pytest.raises(Error, match="epoch must be a whole number from 0"):
        mlpdata.load(shapes_dir, batch_size=500).set_epoch(epoch)


def test_an_iterator_that_gives_nothing_takes_no_epoch(shapes_dir):
    """Lightning makes one before the one that it uses."""
    loader = mlpdata.load(shapes_dir, batch_size=500)
    first = ids(loader)
    loader.set_epoch(0)
    iter(loader), iter(loader)
    assert ids(loader) == first
    second, third = ids(loader), ids(loader)
    loader.set_epoch(0)
    assert [*map(ids, zip(*zip(loader, loader, loader, strict=True), strict=True))] == [first, second, third]


# ------------------------------------------------------------------------------------------- several processes


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


def test_a_loader_that_knows_nothing_of_the_other_processes_says_so(shapes_dir, two_processes):
    with pytest.warns(RuntimeWarning, match=r"2 processes .* every sample: load with rank= and world_size=2") as found:
        list(mlpdata.load(shapes_dir, batch_size=500))
    assert found[0].filename == __file__


@pytest.mark.parametrize("options", [{"world_size": 1}, {"rank": 1, "world_size": 2}])
def test_a_loader_that_was_told_says_nothing(shapes_dir, two_processes, options):
    loader = mlpdata.load(shapes_dir, batch_size=500, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(len(batch.ids) for batch in loader) == 1500 // options["world_size"]


# ------------------------------------------------------------------------------------------------------ data set


@pytest.fixture(scope="module")
def samples(shapes_dir):
    return mlpdata.load(shapes_dir, batch_size=100).dataset()


def test_a_data_set_has_what_torchvisions_have(shapes_dir, photos_dir, samples):
    loader = mlpdata.load(shapes_dir, batch_size=100)
    assert samples.classes == loader.classes and len(samples.classes) == loader.num_classes == 10
    assert [samples.class_to_idx[name] for name in samples.classes] == [*range(10)]
    assert samples.targets is samples.labels and samples.targets.tolist() == [label for _, label in samples]
    assert mlpdata.load(photos_dir, batch_size=8).dataset().classes == ["cat", "dog", "émeu x"]
    assert mlpdata.load(shapes_dir / "train.beton", batch_size=8).dataset().classes == [str(k) for k in range(10)]
    picked = mlpdata.load(photos_dir, batch_size=8, classes=["dog", "cat"], relabel=True).dataset()
    assert picked.class_to_idx == {"dog": 0, "cat": 1}


def test_a_data_set_is_whole_whatever_the_rank(shapes_dir, samples):
    part = mlpdata.load(shapes_dir, batch_size=100, rank=1, world_size=4).dataset()
    assert len(part) == len(samples) == 1500


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_that_stay(samples, method):
    batches = DataLoader(
        samples, 500, shuffle=True, num_workers=1, multiprocessing_context=method, persistent_workers=True
    )
    for _ in range(2):
        found = torch.cat([labels for _, labels in batches])
        assert np.array_equal(np.bincount(found), np.bincount(samples.targets))


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")  # where there is no accelerator, torch says that it does nothing
def test_pinned_memory(samples):
    images, labels = next(iter(DataLoader(samples, 100, pin_memory=True)))
    assert images.shape == (100, 3, 16, 16) and labels.shape == (100,)


def test_samplers(samples):
    counts = np.bincount(samples.targets)
    weighted = WeightedRandomSampler((1 / counts)[samples.targets], 600)
    assert sum(len(labels) for _, labels in DataLoader(samples, 100, sampler=weighted)) == 600
    by_batch = BatchSampler(RandomSampler(samples), 400, drop_last=True)
    assert [len(labels) for _, labels in DataLoader(samples, batch_sampler=by_batch)] == [400] * 3
    shares = [DistributedSampler(samples, 4, rank) for rank in range(4)]
    assert sorted(itertools.chain(*shares)) == [*range(1500)]
    seen = [label for share in shares for _, labels in DataLoader(samples, 100, sampler=share) for label in labels]
    assert np.array_equal(np.bincount(seen), counts)


# --------------------------------------------------------------------------------------------- paths as others write


def test_patterns_with_braces_and_lists(shapes_dir):
    whole = mlpdata.load(shapes_dir, batch_size=100, format="tar")
    names = [f"train-{k:06d}.tar" for k in range(4)]
    for root in (
        shapes_dir / "train-{000000..000003}.tar",
        f"{shapes_dir}/train-00000{{0,1,2,3}}.tar",
        [shapes_dir / name for name in names],
        (f"{shapes_dir}/train-00000[01].tar", f"{shapes_dir}/train-{{000002..000003}}.tar"),
    ):
        loader = mlpdata.load(root, batch_size=100)
        assert np.array_equal(loader.arrays()[0], whole.arrays()[0]) and np.array_equal(loader.labels, whole.labels)
    backwards = mlpdata.load([shapes_dir / name for name in names[::-1]], batch_size=100)
    assert backwards.labels.tolist() != whole.labels.tolist()
    assert [file.name for file in backwards.index.files] == names[::-1]  # a list's own order
    counting = mlpdata.load(shapes_dir / "train-{000003..000002}.tar", batch_size=100)
    assert [file.name for file in counting.index.files] == names[:1:-1]
    samples = pickle.loads(pickle.dumps(backwards.dataset()))  # as a worker gets it
    assert samples[7][1] == backwards.labels[7] and samples[7][0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("train-{000000..000004}.tar", r"train-000004.tar is not there, which .*000004\}.tar lists"),
        ("{train,valid}-000000.tar", "valid-000000.tar is not there"),
        ("train-{0..1000000000}.tar", "stands for more than 100,000 files"),
        ("{0..999}{0..999}.tar", "stands for more than 100,000 files"),
        ("train-{a..c}.tar", "no shard directory at"),
        (["train-000000.tar", "train-000000.tar"], "train-000000.tar is listed twice"),
        (["train-000000.tar", "train-00000*.tar"], "train-000000.tar is listed twice"),
        (["train-000000.tar", "none.tar"], "none.tar is not a tar; a list takes"),
        (["."], "is not a tar; a list takes"),
        (["train.beton"], "train.beton"),
        (["train-000000.tar", 5], "5 is no path"),
        (["train-000000.tar", ["train-000001.tar"]], "is no path"),
        ("packed.tgz", r"packed.tgz is a packed tar, .*; unpack it to a .tar"),
        ("packed*", "packed.tar.gz is a packed tar"),
        (["train-000000.tar", "packed.tar.gz"], "packed.tar.gz is a packed tar"),
        ("only packed", "packed tars are not read, unpack them"),
    ],
)
def test_paths_that_are_refused(shapes_dir, tmp_path, monkeypatch, root, message):
    for file in shapes_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "only packed").mkdir()
    for name in ("packed.tgz", "packed.tar.gz", "only packed/train.tar.gz"):
        with gzip.open(tmp_path / name, "wb") as f:
            f.write((shapes_dir / "train-000000.tar").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Error, match=message) as caught:
        mlpdata.load(root, batch_size=8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["train[:10%]", "train[10:20]", "train+val", "train+validation[:5]"])
@pytest.mark.parametrize("root", [".", "train.beton", "train-000000.tar"])
def test_slices_of_the_hub_are_refused_and_what_to_do_is_said(shapes_dir, root, split):
    with pytest.raises(Error, match=r"is a slice or a sum .*; load one split: subset=slice\(0, 100\) takes"):
        mlpdata.load(shapes_dir / root, split, 8)


def test_the_hubs_names_of_splits(shapes_dir):
    assert mlpdata.load(shapes_dir, "validation", 8).split == "val"
    with pytest.raises(Error, match="no split 'all' in this directory; it has train, val"):
        mlpdata.load(shapes_dir, "all", 8)
