"""The Triton kernels under Triton's interpreter, on the CPU: the torch form's bits, whatever is asked for."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from mlpdata import Augment, Batch
from mlpdata.augment.chroma import to_ycc420
from mlpdata.augment.draws import Draws
from mlpdata.augment.geometry import geometry_of, purposes_of, tables_of
from mlpdata.augment.runner import Runner

pytest.importorskip("triton", reason="triton is not installed")
from mlpdata.augment import geometry_kernel

EVERYTHING = {
    "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "cutout": 6, "erase": 0.5, "mixup": 0.8, "cutmix": 1.0,
    "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3),
}  # fmt: skip
OPTIONS = {
    "crop, flip": {},
    "resized": {"res": 11},
    "as stored": {"crop_scale": None, "flip": False},
    "pad": {"crop_scale": None, "pad": 3},
    "mixup": {"mixup": 0.8, "res": 33},  # more than one block of pixels
    "cutmix": {"cutmix": 1.0},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.4, "res": 33},
    "saturation": {"saturation": 0.4},
    "cutout": {"cutout": 6},
    "erase": {"erase": 0.7},
    "everything": EVERYTHING,
    "everything, padded": EVERYTHING | {"crop_scale": None, "pad": 4, "res": 33},
    "channels last": {"layout": "channels_last", "mixup": 0.8},
    "flat": {"layout": "flat"},
}


@pytest.fixture(scope="module", autouse=True)
def interpreted():
    """The modules, their kernels compiled for Triton's interpreter; afterwards for GPUs again."""
    modules = [importlib.import_module(f"mlpdata.augment.{name}_kernel") for name in ("geometry", "pixels")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for module in modules:
            importlib.reload(module)
        yield
    for module in modules:
        importlib.reload(module)


def batch(n=7, height=12, width=14):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.arange(n), torch.arange(100, 100 + n))


def in_ycc(batch):
    luma, chroma = to_ycc420(batch.images)
    return Batch(luma, batch.labels, batch.ids, chroma=chroma)


def run_as_on_a_gpu(a, batch):
    """What `apply` does on a GPU, on the draws of epoch 1 and seed 2: (images, weights)."""
    runner = Runner(a, *batch.images.shape[1:3], batch.chroma is not None, batch.images.device)
    runner._on_cpu = False
    return runner(batch, 1, 2)


@pytest.mark.parametrize("is_ycc", [False, True], ids=["rgb", "ycc420"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_kernels_have_the_torch_forms_bits(name, is_ycc):
    a, b = Augment(**OPTIONS[name]), in_ycc(batch()) if is_ycc else batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # that it runs uncompiled
        images, lam = run_as_on_a_gpu(a, b)
    expected = a.apply(b, epoch=1, seed=2)
    assert images.shape == expected.images.shape and images.stride() == expected.images.stride()
    assert torch.equal(images, expected.images)
    assert lam is expected.mix_lam is None or torch.equal(lam, expected.mix_lam)


@pytest.mark.parametrize("stored", [(32, 32), (20, 64), (9, 7), (1, 1)])
@pytest.mark.parametrize("options", [EVERYTHING, {"pad": 5, "crop_scale": None}, {"crop_scale": (0.9, 1.0), "res": 40}])
def test_the_geometry_kernel_draws_the_same(options, stored):
    a, ids = Augment(**options), torch.arange(101) * 2**33 + 5
    tables = tables_of(a, ids.device)
    geometry, lam = geometry_kernel.geometry_of(a, ids, -3, 7, tables, stored, True)
    expected, expected_lam = geometry_of(a, Draws.of(ids, -3, 7, purposes_of(a)), tables, stored, True)
    for name, tensor in [*expected._asdict().items(), ("lam", expected_lam)]:
        own = lam if name == "lam" else getattr(geometry, name)
        assert own is tensor is None or torch.equal(own, tensor.to(own.dtype)), name


@pytest.mark.parametrize("make", [lambda b: b, in_ycc], ids=["rgb", "ycc420"])
@pytest.mark.parametrize("options", [{}, EVERYTHING, {"crop_scale": None, "flip": False}])
def test_batches_are_gathered_from_a_store_on_the_way(make, options):
    a, store = Augment(**options), make(batch(20))
    rows = torch.tensor([19, 3, 3, 0, 11])
    ids = torch.arange(5)
    from_store = Batch(store.images, ids, ids, chroma=store.chroma, rows=rows)
    own = Batch(store.images[rows], ids, ids, chroma=None if store.chroma is None else store.chroma[rows])
    expected = a.apply(own, 1, 2).images
    assert torch.equal(expected, a.apply(from_store, 1, 2).images)
    assert torch.equal(expected, run_as_on_a_gpu(a, from_store)[0])


def test_a_kernel_that_does_not_compile_is_said_once_and_torch_does_the_work(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("no such chip")

    monkeypatch.setattr("mlpdata.augment.pixels_kernel.fill", fails)
    a, b = Augment(res=7, mixup=0.8), batch()
    with pytest.warns(RuntimeWarning, match="augmentation runs uncompiled, which is slower: no such chip"):
        images, _ = run_as_on_a_gpu(a, b)
    assert torch.equal(images, a.apply(b, epoch=1, seed=2).images)


def test_gpus_get_code_without_spills_that_moves_each_pixel_once():
    """Compiled for an H100, which needs none: what the interpreter takes, the compiler may not."""
    script = Path(__file__).parents[1] / "bench" / "kernels.py"
    command = [sys.executable, script, "--chip", "sm_90", "--set", "pad+flip+cutout", "everything", "--classes"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 8 and all(row["spill_bytes"] == 0 for row in rows)
    for geometry, pixels in zip(rows[::2], rows[1::2], strict=True):
        assert geometry["bytes_ratio"] + pixels["bytes_ratio"] < 1.05


def test_no_images_and_one_image():
    for n in (0, 1):
        images, lam = run_as_on_a_gpu(Augment(mixup=0.8), batch(n))
        assert images.shape == (n, 3, 12, 14) and len(lam) == n
