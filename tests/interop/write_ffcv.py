"""Write betons with ffcv's own writer, unmodified.

Usage: write_ffcv.py IMAGES.npz OUT            IMAGES.npz: `images` (N, H, W, 3) uint8

Runs in the interop environment, where mlpdata is not installed. Makes raw.beton, jpg.beton, mixed.beton (JPEG and raw,
with JSON, float, bytes and array fields before, between and behind), sizes.beton (every image one row shorter) and
smart.beton (fields `row`, `photo` and `target`; a JPEG where raw pixels take more than 4,000 bytes, of sizes' images).
"""

import os
import sys
from pathlib import Path

import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter


class Rows:
    """An indexable data set of rows that a function makes."""

    def __init__(self, n, row):
        self.n, self.row = n, row

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.row(int(i))


if __name__ == "__main__":
    images, out = np.load(sys.argv[1])["images"], Path(sys.argv[2])
    n = len(images)

    def write(name, fields, row):
        DatasetWriter(str(out / name), fields, num_workers=2).from_indexed_dataset(Rows(n, row), chunksize=7)

    plain = lambda i: (images[i], i % 10)  # noqa: E731
    write("raw.beton", {"image": RGBImageField(write_mode="raw"), "label": IntField()}, plain)
    write("jpg.beton", {"image": RGBImageField(write_mode="jpg", jpeg_quality=95), "label": IntField()}, plain)
    write(
        "mixed.beton",
        {
            "note": JSONField(),
            "weight": FloatField(),
            "image": RGBImageField(write_mode="proportion", compress_probability=0.5, jpeg_quality=95),
            "bytes": BytesField(),
            "label": IntField(),
            "vector": NDArrayField(np.dtype("float32"), (3,)),
        },
        lambda i: ({"i": i}, i / 2, images[i], np.arange(i + 1, dtype=np.uint8), i % 10, np.zeros(3, np.float32)),
    )
    shorter = lambda i: np.ascontiguousarray(images[i][: images.shape[1] - i % 8])  # noqa: E731
    write(
        "sizes.beton", {"image": RGBImageField(write_mode="raw"), "label": IntField()}, lambda i: (shorter(i), i % 10)
    )
    write(
        "smart.beton",
        {"row": IntField(), "photo": RGBImageField(write_mode="smart", smart_threshold=4000), "target": IntField()},
        lambda i: (i, shorter(i), i % 10),
    )
    os._exit(0)  # all is written; on one core a thread that upstream leaves behind keeps Python from ending
