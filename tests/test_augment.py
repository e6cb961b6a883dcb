import math

import pytest
import torch
import torch.nn.functional as F

from mlpdata import Augment, Batch, draws
from mlpdata.draws import FLIP, MIXUP, Draws, uniform


def batch(n=64, height=32, width=32, first=0):
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.arange(n) % 10, torch.arange(first, first + n))


def crops(ids, height, width, scale, ratio, epoch, seed):
    table = draws.ratio_table(*ratio, ids.device)
    return draws.crop_boxes(Draws.of(ids, seed, epoch, draws.CROP), height, width, scale, table, ratio).unbind(1)


def part(whole, start, stop):
    return Batch(whole.images[start:stop], whole.labels[start:stop], whole.ids[start:stop])


@pytest.mark.parametrize("res", [None, 16, 48])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_crop_flip_and_resize_equal_torchs_interpolate_image_by_image(res, size):
    height, width = size
    if res is None and height != width:
        res = 20
    whole = batch(64, height, width)
    out = Augment(res=res).apply(whole, epoch=3, seed=7).images * 255
    boxes = crops(whole.ids, height, width, (0.08, 1.0), (3 / 4, 4 / 3), 3, 7)
    flips = uniform(whole.ids, 7, 3, FLIP) < 0.5
    assert 10 < flips.sum() < 54
    for i in range(64):
        top, left, high, wide = (int(b[i]) for b in boxes)
        assert 0 <= top <= height - high and 0 <= left <= width - wide
        cut = whole.images[i, top : top + high, left : left + wide].permute(2, 0, 1)[None].float()
        expected = F.interpolate(cut, (res or 32,) * 2, mode="bilinear", align_corners=False)[0]
        expected = expected.flip(2) if flips[i] else expected
        assert (out[i] - expected).abs().max() < 1


def test_without_random_parts_it_only_normalises():
    whole = batch()
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    out = Augment(crop_scale=None, flip=False, mean=mean, std=std).apply(whole, 0, 0).images
    expected = (whole.images.permute(0, 3, 1, 2).double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    assert out.dtype == torch.float32 and torch.allclose(out.double(), expected, atol=1e-5)


def test_results_do_not_depend_on_how_batches_are_cut():
    whole = batch(96)
    augment = Augment(mixup=0.8)
    together = augment.apply(whole, 2, 5)
    for cuts in ([(0, 96)], [(0, 2), (2, 50), (50, 96)], [(k, k + 32) for k in (0, 32, 64)]):
        pieces = [augment.apply(part(whole, a, b), 2, 5) for a, b in cuts]
        assert torch.equal(torch.cat([p.images for p in pieces]), together.images)
        assert torch.equal(torch.cat([p.mix_lam for p in pieces]), together.mix_lam)
        assert torch.equal(torch.cat([p.mix_labels for p in pieces]), together.mix_labels)


def test_mixup_mixes_with_the_neighbour_by_the_samples_own_weight():
    whole = batch(5)
    plain = Augment(crop_scale=None, flip=False).apply(whole, 0, 0).images
    mixed = Augment(crop_scale=None, flip=False, mixup=0.5).apply(whole, 0, 0)
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2), (4, 4)):
        lam = mixed.mix_lam[i]
        assert torch.allclose(mixed.images[i], lam * plain[i] + (1 - lam) * plain[j], atol=1e-6)
        assert mixed.mix_labels[i] == whole.labels[j]
    assert torch.equal(mixed.labels, whole.labels)


def test_epochs_and_seeds_differ():
    whole = batch()
    augment = Augment()
    first = augment.apply(whole, 0, 0).images
    assert torch.equal(first, augment.apply(whole, 0, 0).images)
    assert not torch.equal(first, augment.apply(whole, 1, 0).images)
    assert not torch.equal(first, augment.apply(whole, 0, 1).images)


def test_uniform_is_uniform_and_independent():
    ids = torch.arange(200_000)
    found = {(s, e, p): uniform(ids, s, e, p) for s in (0, 1) for e in (0, 1) for p in (0, 5)}
    for u in found.values():
        assert u.min() >= 0 and u.max() < 1
        counts = torch.histc(u, 100, 0, 1)
        chi2 = ((counts - 2000) ** 2 / 2000).sum()
        assert chi2 < 160  # 99 degrees of freedom: beyond with probability 1e-4
        assert abs(torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1]) < 0.01
    correlation = torch.corrcoef(torch.stack(list(found.values())))
    assert (correlation - torch.eye(len(found))).abs().max() < 0.012


def test_known_hash():
    """The same numbers on any machine and in any version: they are part of a run's identity."""
    values = uniform(torch.tensor([0, 1, 2**40]), seed=1, epoch=2, purpose=3)
    assert [round(v, 6) for v in values.tolist()] == KNOWN


def mix(x):
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % 2**64
    return x ^ (x >> 31)


KNOWN = [round((mix(i ^ mix(mix(mix(1) ^ 2) ^ 3)) >> 40) / 2**24, 6) for i in (0, 1, 2**40)]


def test_crop_boxes_have_torchvisions_distribution():
    ids = torch.arange(100_000)
    _, _, high, wide = crops(ids, 1000, 1000, (0.1, 0.49), (0.5, 2.0), 0, 0)  # every box fits
    area, ratio = high * wide / 1e6, (wide / high).log()
    assert abs(area.mean() - 0.295) < 0.005 and abs(area.std() - 0.39 / math.sqrt(12)) < 0.005
    assert abs(ratio.mean()) < 0.01 and abs(ratio.std() - 2 * math.log(2) / math.sqrt(12)) < 0.01
    assert area.min() > 0.099 and area.max() < 0.491


def test_crop_falls_back_to_the_centre_where_nothing_fits():
    top, left, high, wide = crops(torch.arange(10), 10, 100, (0.9, 1.0), (1.0, 1.0), 0, 0)
    assert high.tolist() == wide.tolist() == [10] * 10
    assert top.tolist() == [0] * 10 and left.tolist() == [45] * 10


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0])
def test_beta_moments_and_symmetry(alpha):
    table = draws.beta_table(alpha, torch.device("cpu"))
    lam = draws.look_up(table, uniform(torch.arange(200_000), 0, 0, MIXUP))
    assert lam.min() >= 0 and lam.max() <= 1
    assert abs(lam.mean() - 0.5) < 0.005
    assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.003
    assert abs(((lam - 0.5) ** 3).mean()) < 0.002


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "flat"])
def test_dtype_and_layout(dtype, kind, layout):
    whole = batch(8)
    reference = Augment().apply(whole, 0, 0).images
    out = Augment(dtype=dtype, layout=layout).apply(whole, 0, 0).images
    assert out.dtype == kind
    assert out.shape == ((8, 3072) if layout == "flat" else (8, 3, 32, 32))
    assert torch.allclose(out.float().reshape(8, -1), reference.reshape(8, -1), atol=0.01)
    if layout == "channels_last":
        assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options",
    [
        {"res": 0},
        {"crop_scale": (0, 1)},
        {"crop_scale": (0.5, 0.2)},
        {"crop_ratio": (2, 1)},
        {"mixup": -1},
        {"mean": (0.5,) * 3},
        {"mean": (0.5,) * 3, "std": (0, 1, 1)},
        {"dtype": "int8"},
        {"layout": "nhwc"},
    ],
)
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError):
        Augment(**options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_draws_the_same():
    whole = batch()
    there = Batch(*(t.cuda() for t in (whole.images, whole.labels, whole.ids)))
    here, over = (Augment(mixup=0.8).apply(b, 1, 2) for b in (whole, there))
    assert torch.allclose(here.images, over.images.cpu(), atol=1 / 255)
    assert torch.allclose(here.mix_lam, over.mix_lam.cpu())
