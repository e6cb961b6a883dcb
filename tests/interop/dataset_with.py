"""A loader's data set under the transforms of torchvision and timm: prints whether each result is right, as JSON.

Runs in the interop environment with the repository on PYTHONPATH; torchvision and timm are unmodified. The pixels come
from an array in the place of files, as what decodes JPEGs is not installed there.
"""

import json
import os

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.transforms import v2

from mlpdata.loader.dataset import TorchDataset

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 20, 24, 3), dtype=np.uint8)  # no side equals another


class Reader:
    shape = IMAGES.shape[1:]

    def read(self, ids, out):
        out[...] = IMAGES[ids]


def samples(transform=None):
    made = TorchDataset((), None, (), None, np.arange(6), [], transform)
    made._reader, made._pid = Reader(), os.getpid()
    return made


def images(transform):
    return [image for image, _ in samples(transform)]


def equal(found, expected):
    pairs = [(np.asarray(f), e) for f, e in zip(found, expected, strict=True)]
    return all(f.shape == e.shape and np.allclose(f, e, rtol=0, atol=1e-6) for f, e in pairs)


def main():
    first, turned = IMAGES.transpose(0, 3, 1, 2), IMAGES.transpose(0, 3, 1, 2)[..., ::-1]
    floats = (first / np.float32(255)).astype(np.float32)
    to_floats = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(1), v2.ToDtype(torch.float32, scale=True)])
    normalize = v1.Compose([v1.ToTensor(), v1.Normalize((0.5,) * 3, (0.5,) * 3)])
    batch = next(iter(DataLoader(samples(), 6)))[0]
    crops = {
        "v1 crop of PIL": v1.Compose([v1.RandomResizedCrop(16), v1.ToTensor()]),
        "v2 crop of PIL": v2.Compose([v2.RandomResizedCrop(16), v2.ToImage()]),
        "timm training": create_transform(16, is_training=True, auto_augment="rand-m9-mstd0.5", re_prob=0.25),
        "timm evaluation": create_transform(16, is_training=False),
    }
    found = {
        "tensor": equal([image for image, _ in samples()], first),
        "batch": equal(batch, first) and batch.is_contiguous() and batch.dtype == torch.uint8,
        "v1 ToTensor": equal(images(v1.ToTensor()), floats),
        "v1 flip of PIL": equal(images(v1.RandomHorizontalFlip(1)), IMAGES[:, :, ::-1]),
        "v1 flip of a batch": equal(v1.RandomHorizontalFlip(1)(batch), turned),
        "v1 normalize": all(x.shape == (3, 20, 24) and x.min() < -0.9 and x.max() > 0.9 for x in images(normalize)),
        "v2 floats": equal(images(to_floats), floats[..., ::-1]),
        "v2 flip of a batch": equal(v2.RandomHorizontalFlip(1)(batch), turned),
        "v2 crop of a batch": v2.RandomResizedCrop(16)(batch).shape == (6, 3, 16, 16),
        "v2 grey": equal(v2.Grayscale()(batch), v1.Grayscale()(torch.from_numpy(np.array(first)))),
    }
    found |= {name: all(x.shape == (3, 16, 16) for x in images(t)) for name, t in crops.items()}
    print(json.dumps({name: bool(right) for name, right in found.items()}))


if __name__ == "__main__":
    main()
