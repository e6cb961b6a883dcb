"""The Triton kernel under Triton's interpreter, on the CPU: the torch form's bits, whatever is asked for."""

import importlib

import pytest
import torch

from mlpdata import Augment, Batch
from mlpdata.augment.batch import DTYPES
from mlpdata.augment.chroma import to_ycc420
from mlpdata.augment.draws import Draws
from mlpdata.augment.geometry import geometry_of, purposes_of, tables_of

pytest.importorskip("triton", reason="triton is not installed")

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


@pytest.fixture(scope="module")
def kernel():
    """The module, compiled for Triton's interpreter; afterwards for GPUs again."""
    from mlpdata.augment import kernel

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield importlib.reload(kernel)
    importlib.reload(kernel)


def batch(n=7, height=12, width=14):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.arange(n), torch.arange(100, 100 + n))


def by_kernel(kernel, a, batch, which=None):
    """What the kernel makes of a batch, on the draws of epoch 1 and seed 2."""
    draws = Draws.of(batch.ids, 2, 1, purposes_of(a))
    stored = tuple(batch.images.shape[1:3])
    geometry, _ = geometry_of(a, draws, tables_of(a, batch.ids.device), stored, batch.chroma is not None)
    order = torch.channels_last if a.layout == "channels_last" else torch.contiguous_format
    out = torch.full((len(batch.ids), 3, *a.output_size(stored)), 99.0, dtype=DTYPES[a.dtype])
    out = out.contiguous(memory_format=order)
    out = out.flatten(1) if a.layout == "flat" else out
    kernel.fill(a, out, batch.images, batch.chroma, which, geometry)
    return out


@pytest.mark.parametrize("is_ycc", [False, True], ids=["rgb", "ycc420"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_kernel_has_the_torch_forms_bits(name, is_ycc, kernel):
    a, b = Augment(**OPTIONS[name], compile=False), batch()
    if is_ycc:
        luma, chroma = to_ycc420(b.images)
        b = Batch(luma, b.labels, b.ids, chroma=chroma)
    out, expected = by_kernel(kernel, a, b), a.apply(b, epoch=1, seed=2).images
    assert out.shape == expected.shape and out.stride() == expected.stride()
    assert torch.equal(out, expected)
