import dataclasses
import itertools
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mlpdata import Augment, Batch
from mlpdata.augment import draws, geometry
from mlpdata.augment.chroma import from_ycc420, to_ycc420
from mlpdata.augment.draws import FLIP, MIXUP, Draws


def batch(n=64, height=32, width=32, first=0):
    generator = torch.Generator().manual_seed(first)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.arange(n) % 10, torch.arange(first, first + n))


def uniform(ids, seed, epoch, purpose):
    return Draws.of(ids, seed, epoch, (purpose,)).uniform(purpose)


def crops(ids, height, width, scale, ratio, epoch, seed):
    table = draws.ratio_table(*ratio, ids.device)
    return geometry.crop_boxes(Draws.of(ids, seed, epoch, draws.CROP), (height, width), scale, table, ratio).unbind(1)


def cut(whole, start, stop):
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
        pieces = [augment.apply(cut(whole, a, b), 2, 5) for a, b in cuts]
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
    values = {(s, e, p): uniform(ids, s, e, p) for s in (0, 1) for e in (0, 1) for p in (0, 5)}
    for u in values.values():
        assert u.min() >= 0 and u.max() < 1
        counts = torch.histc(u, 100, 0, 1)
        chi2 = ((counts - 2000) ** 2 / 2000).sum()
        assert chi2 < 160  # 99 degrees of freedom: beyond with probability 1e-4
        assert abs(torch.corrcoef(torch.stack((u[:-1], u[1:])))[0, 1]) < 0.01
    correlation = torch.corrcoef(torch.stack(list(values.values())))
    assert (correlation - torch.eye(len(values))).abs().max() < 0.012


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


EVERYTHING = {
    "flip": True, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "cutout": 6, "erase": 0.5, "mixup": 0.8,
    "cutmix": 1.0, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
}  # fmt: skip


def in_ycc(b):
    luma, chroma = to_ycc420(b.images)
    return Batch(luma, b.labels, b.ids, chroma=chroma)


def same(a, b):
    def equal(x, y):
        return (x is None and y is None) or torch.equal(x, y)

    return equal(a.images, b.images) and equal(a.mix_lam, b.mix_lam) and equal(a.mix_labels, b.mix_labels)


@pytest.mark.parametrize("options", [{}, {"crop_scale": None, "pad": 4}, {"layout": "channels_last", "res": 9}])
@pytest.mark.parametrize("ycc", [False, True])
def test_everything_is_equal_to_the_bit_however_batches_are_cut(options, ycc):
    whole = batch(76, 21, 24)
    augment = Augment(**(EVERYTHING | options), compile=False)
    make = in_ycc if ycc else lambda b: b
    together = augment.apply(make(whole), 2, 5)
    for cuts in ([0, 2, 36, 70, 76], [0, 76], list(range(0, 77, 4))):
        pieces = [augment.apply(make(cut(whole, a, b)), 2, 5) for a, b in itertools.pairwise(cuts)]
        joined = Batch(torch.cat([p.images for p in pieces]), whole.labels, whole.ids)
        joined.mix_lam, joined.mix_labels = (
            torch.cat([getattr(p, k) for p in pieces]) for k in ("mix_lam", "mix_labels")
        )
        assert same(joined, together)


def test_neither_autocast_nor_lists_change_anything():
    plain = Augment(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)).apply(batch(), 0, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert same(
            Augment(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], crop_scale=[0.08, 1]).apply(batch(), 0, 0), plain
        )


def check_compiled(options, make):
    """One compilation serves every batch, seed and epoch, and gives the eager pass's bits."""
    compiled, eager = (Augment(**options, compile=c) for c in (True, False))
    whole = batch(64, 20, 20)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "augmentation runs")  # a failure to compile is only warned of
        compiled.apply(make(whole), 0, 0)
        with torch.compiler.set_stance("fail_on_recompile"), torch.inference_mode(False):
            for start, stop, epoch, seed in (
                (0, 64, 1, 0),
                (0, 63, 0, 9),
                (2, 35, 5, 2**40),
                (60, 64, 0, 0),
                (0, 3, 1, 1),
                (0, 1, 0, 0),
            ):
                some = make(cut(whole, start, stop))
                assert same(compiled.apply(some, epoch, seed), eager.apply(some, epoch, seed)), (start, stop)


def test_compiled_or_not_the_bits_are_the_same_and_a_last_batch_compiles_nothing():
    check_compiled({"res": 18, "mixup": 0.8, "dtype": "bfloat16", "layout": "flat"}, lambda b: b)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda b: b, in_ycc])
@pytest.mark.parametrize("options", [{}, {"crop_scale": None, "pad": 4}, {"layout": "channels_last", "res": 9}])
def test_compiled_or_not_everything_has_the_same_bits(options, make):
    check_compiled(EVERYTHING | options, make)


def test_on_the_cpu_it_compiles_only_after_a_while_and_says_so_once(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: lambda *args: calls.append(f) or f(*args))
    whole, augment = batch(8, 11, 13), Augment(res=5)  # sizes that no other test has a runner of
    first = augment.apply(whole, 0, 0)
    assert not calls and not capsys.readouterr().err
    monkeypatch.setattr("mlpdata.augment.runner.COMPILE_PAYS_S", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it runs uncompiled
        assert same(augment.apply(whole, 0, 0), first) and len(calls) == 2
    augment.apply(whole, 1, 0)
    assert capsys.readouterr().err.count("compiling the augmentation") == 1


def test_without_a_compiler_it_says_so_once_and_runs(tmp_path):
    script = """if True:
        import torch
        from mlpdata import Augment, Batch
        batch = Batch(torch.full((8, 16, 16, 3), 255, dtype=torch.uint8), torch.arange(8), torch.arange(8))
        for res in (16, 8):
            for epoch in range(2):
                x = Augment(res=res, compile=True).apply(batch, epoch, 0).images
                assert x.shape == (8, 3, res, res) and (x - 1).abs().max() < 1e-6
    """
    environment = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning: augmentation runs uncompiled") == 1 and "C++ compiler" in done.stderr


# ------------------------------------------------------------------------------------------- the single operations

PLAIN = {"crop_scale": None, "flip": False}


def test_pad_takes_a_window_of_the_padded_image():
    whole = batch(200, 12, 16)
    for ycc, limit in ((False, 1e-4), (True, 1.01)):
        source = in_ycc(whole) if ycc else whole
        stored = from_ycc420(source.images, source.chroma) if ycc else whole.images
        out = Augment(crop_scale=None, flip=False, pad=3).apply(source, 0, 0).images * 255
        u = Draws.of(whole.ids, 0, 0, (draws.PAD_TOP, draws.PAD_LEFT))
        top, left = u.integer(draws.PAD_TOP, 7), u.integer(draws.PAD_LEFT, 7)
        assert set(top.tolist()) == set(left.tolist()) == set(range(7))
        padded = F.pad(stored.permute(0, 3, 1, 2).float(), (3, 3, 3, 3))
        for i in range(200):
            expected = padded[i, :, top[i] : top[i] + 12, left[i] : left[i] + 16]
            assert (out[i] - expected).abs().max() < limit


def test_pad_may_come_with_another_size():
    white = Batch(torch.full((50, 16, 16, 3), 255, dtype=torch.uint8), torch.zeros(50).long(), torch.arange(50))
    out = Augment(crop_scale=None, pad=4, res=40).apply(white, 0, 0).images
    border = 1 - out.mean((1, 2, 3))  # of black, which fills up to (4 + 16 + ...) / 20 of a side
    assert border.min() >= -1e-6 and 0.2 < border.max() <= 1 - (12 / 16) ** 2 + 0.01


@pytest.mark.parametrize("name", ["cutout", "erase"])
def test_holes_are_boxes_of_the_mean(name):
    white = Batch(torch.full((2000, 20, 24, 3), 255, dtype=torch.uint8), torch.zeros(2000).long(), torch.arange(2000))
    options = {"cutout": {"cutout": 6}, "erase": {"erase": 0.6}}[name]
    out = Augment(**PLAIN, **options, mean=(0.5,) * 3, std=(0.25,) * 3).apply(white, 0, 0).images
    hole = out == 0
    assert torch.equal(hole, hole[:, :1].expand_as(hole)) and ((out == 2) | hole).all()
    down, across = hole[:, 0].any(2), hole[:, 0].any(1)
    area = hole[:, 0].sum((1, 2))
    assert torch.equal(area, down.sum(1) * across.sum(1))  # a box
    if name == "cutout":
        assert (area.max() == 36) and area.min() == 9 and (down.sum(1) >= 3).all()
        assert abs(down.float().mean(0)[6:14].mean() - 6 / 20) < 0.02
    else:
        assert abs((area > 0).float().mean() - 0.6) < 0.04
        shares = area[area > 0] / 480
        assert shares.min() > 0.01 and shares.max() < 0.4 and abs(shares.mean() - 0.175) < 0.015


def test_jitter_by_hand():
    whole = batch(40)
    pixels = whole.images.permute(0, 3, 1, 2).double()
    u = Draws.of(whole.ids, 0, 0, draws.JITTER)
    factors = {n: (0.5 + u.uniform(p)).double().view(-1, 1, 1, 1) for n, p in zip(NAMES, draws.JITTER, strict=True)}
    grey = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1).double()
    for name in (*NAMES, "all"):
        out = Augment(**PLAIN, **{n: 0.5 for n in NAMES if name in (n, "all")}).apply(whole, 0, 0).images * 255
        expected = pixels
        if name in ("brightness", "all"):
            expected = (expected * factors["brightness"]).clamp(0, 255)
        if name in ("contrast", "all"):
            mean = (expected * grey).sum(1, keepdim=True).mean((2, 3), keepdim=True)
            expected = (factors["contrast"] * expected + (1 - factors["contrast"]) * mean).clamp(0, 255)
        if name in ("saturation", "all"):
            level = (expected * grey).sum(1, keepdim=True)
            expected = (factors["saturation"] * expected + (1 - factors["saturation"]) * level).clamp(0, 255)
        assert (out - expected).abs().max() < 0.02, name


NAMES = ("brightness", "contrast", "saturation")


def test_cutmix_pastes_a_box_of_the_neighbour_and_weighs_the_labels_by_area():
    n = 4001
    images = torch.zeros(n, 16, 16, 3, dtype=torch.uint8)
    images[1::2] = 255
    whole = Batch(images, torch.arange(n), torch.arange(n))
    out = Augment(**PLAIN, cutmix=1.0).apply(whole, 0, 0)
    own = whole.images[:, 0, 0, 0].float().view(-1, 1, 1) / 255
    pasted = (out.images[:, 0] - own).abs() > 0.5
    assert torch.equal(pasted.sum((1, 2)), pasted.any(2).sum(1) * pasted.any(1).sum(1))  # a box
    assert torch.allclose(out.mix_lam[:-1], 1 - pasted[:-1].float().mean((1, 2)), atol=1e-6)
    assert torch.equal(out.mix_labels[:-1], whole.labels[:-1] ^ 1) and out.mix_labels[-1] == n - 1
    assert 0.45 < out.mix_lam.mean() < 0.75  # half the area, less what hangs over the edge


def test_of_mixup_and_cutmix_each_pair_takes_one():
    n = 4000
    images = torch.zeros(n, 16, 16, 3, dtype=torch.uint8)
    images[1::2] = 255
    out = Augment(**PLAIN, mixup=1.0, cutmix=1.0).apply(Batch(images, torch.arange(n), torch.arange(n)), 0, 0)
    first = out.images[:, :1, :1, :1]
    mixed = ((out.images - first).abs().amax((1, 2, 3)) < 1e-6) & ((first > 0) & (first < 1)).view(-1)
    clear = ((out.mix_lam > 0.01) & (out.mix_lam < 0.99)).view(-1, 2).all(1)  # else one looks like the other
    pairs = mixed.view(-1, 2)[clear]
    assert torch.equal(pairs[:, 0], pairs[:, 1]) and abs(pairs[:, 0].float().mean() - 0.5) < 0.06
    share = (out.images[:, 0] - (torch.arange(n) % 2 == 0).view(-1, 1, 1).float()).abs().mean((1, 2))
    assert torch.allclose(share, out.mix_lam, atol=1e-5)  # what is left of the own image is its label's weight


def test_every_purpose_draws_on_its_own():
    purposes = (*draws.CROP, draws.FLIP, draws.MIXUP, draws.PAD_TOP, draws.PAD_LEFT, *draws.JITTER, *draws.ERASING,
                draws.CUTOUT_TOP, draws.CUTOUT_LEFT, draws.CUTMIX, draws.CUTMIX_TOP, draws.CUTMIX_LEFT,
                draws.WHICH_MIX)  # fmt: skip
    assert len(set(purposes)) == len(purposes)
    values = Draws.of(torch.arange(100_000), 3, 4, purposes).values
    assert (torch.corrcoef(values.T) - torch.eye(len(purposes))).abs().max() < 0.016
    assert ((values.mean(0) - 0.5).abs() < 0.005).all() and ((values.var(0) - 1 / 12).abs() < 0.002).all()


def test_no_images_and_one_image():
    for n in (0, 1):
        out = Augment(**EVERYTHING).apply(batch(n), 0, 0)
        assert out.images.shape == (n, 3, 32, 32) and len(out.mix_lam) == len(out.mix_labels) == n


# ------------------------------------------------------------------------------------------------ half the chroma


def scenes(n, height, width):
    """Smooth colours with noise in the light: what photographs look like at a few pixels."""
    generator = torch.Generator().manual_seed(1)
    colours = 60 + 135 * torch.rand((n, 3, 4, 4), generator=generator)
    x = F.interpolate(colours, (height, width), mode="bicubic")
    x += torch.randn((n, 1, height, width), generator=generator) * 20
    return x.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous()


def psnr(a, b):
    return 10 * math.log10(255**2 / (a.double() - b.double()).square().mean())


@pytest.mark.parametrize("size", [(32, 32), (31, 32), (32, 33), (1, 1), (7, 5), (2, 3)])
def test_chroma_at_half_resolution_and_back(size):
    images = scenes(20, *size)
    luma, chroma = to_ycc420(images)
    assert luma.shape == (20, *size, 1) and chroma.shape == (20, -(-size[0] // 2), -(-size[1] // 2), 2)
    assert luma.dtype == chroma.dtype == torch.uint8
    back = from_ycc420(luma, chroma)
    assert back.shape == images.shape and back.dtype == torch.uint8
    if min(size) > 6:
        assert psnr(back, images) > 33
    grey = images[..., :1].expand_as(images)
    assert torch.equal(from_ycc420(*to_ycc420(grey)), grey)
    flat = images[:, :1, :1].expand(-1, *size, 3)
    assert (from_ycc420(*to_ycc420(flat)).int() - flat.int()).abs().max() <= 2


def test_luma_and_chroma_are_those_of_jpeg():
    images = scenes(1, 16, 16)
    luma, chroma = to_ycc420(images)
    ycc = np.asarray(Image.fromarray(images[0].numpy()).convert("YCbCr")).astype(int)
    assert np.abs(luma[0, ..., 0].numpy() - ycc[..., 0]).max() <= 1
    small = ycc[..., 1:].reshape(8, 2, 8, 2, 2).mean((1, 3))
    assert np.abs(chroma[0].numpy() - small).max() <= 1.5


@pytest.mark.parametrize("options", [PLAIN, {"res": 20}, {"res": 50, "flip": False}, {"crop_scale": None, "pad": 4}])
@pytest.mark.parametrize("size", [(32, 32), (31, 37)])
def test_the_pass_makes_rgb_of_luma_and_chroma(options, size):
    if size[0] != size[1] and options.get("res") is None:
        options = {**options, "res": 33}
    whole = Batch(scenes(16, *size), torch.zeros(16).long(), torch.arange(16))
    half = in_ycc(whole)
    back = Batch(from_ycc420(half.images, half.chroma), whole.labels, whole.ids)
    direct, before = (Augment(**options).apply(b, 0, 0).images * 255 for b in (half, back))
    # Colours out of range are cut off before sampling in one, after it in the other.
    apart = (direct - before).abs()
    assert apart.max() <= 0.5 if options == PLAIN else apart.mean() < 0.5 and apart.quantile(0.99) < 3


@pytest.mark.parametrize(
    "options",
    [
        {"res": 0},
        {"crop_scale": (0, 1)},
        {"crop_scale": (0.5, 0.2)},
        {"crop_ratio": (2, 1)},
        {"mixup": -1},
        {"pad": 2},
        {"pad": -1, "crop_scale": None},
        {"erase": 1.5},
        {"brightness": -0.1},
        {"cutmix": float("nan")},
        {"mean": (0.5,) * 3},
        {"mean": (0.5,) * 3, "std": (0, 1, 1)},
        {"dtype": "int8"},
        {"layout": "nhwc"},
    ],
)
def test_nonsense_is_refused(options):
    with pytest.raises(ValueError):
        Augment(**options)


def moved(b, device):
    tensors = (getattr(b, field.name) for field in dataclasses.fields(b))
    return Batch(*(None if t is None else t.to(device) for t in tensors))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("make", [lambda b: b, in_ycc], ids=["rgb", "ycc420"])
@pytest.mark.parametrize("compiled", [None, False], ids=["kernel", "torch"])
def test_a_gpu_gives_the_same_bits(make, compiled):
    b = make(batch())
    for options in ({"mixup": 0.8}, EVERYTHING, {"crop_scale": None, "pad": 4}, {"res": 50, "layout": "channels_last"}):
        augment = Augment(**options, compile=compiled)
        assert same(moved(augment.apply(moved(b, "cuda"), 1, 2), "cpu"), augment.apply(b, 1, 2)), options
