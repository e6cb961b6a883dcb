"""Read shard directories with another project's own library, unmodified, and save what it saw.

Usage: read_with.py LIBRARY < JOBS.json      where JOBS is a list of {root, split, out, options}

Runs in the interop environment, where mlpdata is not installed: nothing of ours can help the reader along. Each job's
`out` (.npz) gets `images` (N, H, W, 3) uint8, `labels` (N,) and, where the library knows them, `keys` (N,); a job that
fails gets its traceback in `error` instead.
"""

import json
import sys
import traceback
from pathlib import Path

import numpy as np


def save(out, samples):
    images, labels, keys = zip(*samples, strict=True)
    np.savez(out, images=np.stack([np.asarray(i) for i in images]), labels=np.array(labels), keys=np.array(keys))


def read_ffcv(root, split, order="SEQUENTIAL", os_cache=True):
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption

    loader = Loader(str(root / f"{split}.beton"), batch_size=32, num_workers=1, order=OrderOption[order], seed=1,
                    os_cache=os_cache, drop_last=False,
                    pipelines={"image": [SimpleRGBImageDecoder()], "label": [IntDecoder()]})  # fmt: skip
    for images, labels in loader:
        for image, label in zip(np.array(images), np.array(labels).reshape(-1), strict=True):
            yield image, int(label), ""


def read_webdataset(root, split):
    import webdataset as wds

    urls = sorted(str(p) for p in root.glob(f"{split}-*.tar"))
    dataset = wds.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
    for sample in dataset:
        image = next(sample[k] for k in ("jpg", "png", "ppm") if k in sample)
        yield image, int(sample["cls"]), sample["__key__"]


def read_datasets(root, split, streaming=False):
    from datasets import load_dataset

    dataset = load_dataset(str(root), streaming=streaming)[split]
    for row in dataset:
        image = next(row[k] for k in ("jpg", "png", "ppm") if k in row)
        yield np.asarray(image.convert("RGB")), int(row["cls"]), row["__key__"]


def read_timm(root, split, **options):
    from timm.data import create_dataset

    length = json.loads((root / "_info.json").read_text())["splits"][split]["num_samples"]
    dataset = create_dataset("wds/", root=str(root), split=split, batch_size=8, **options)
    assert len(dataset) == length, (len(dataset), length)
    for image, label in dataset:
        yield np.asarray(image.convert("RGB")), int(label), ""


if __name__ == "__main__":
    for job in json.load(sys.stdin):
        try:
            save(job["out"], globals()[f"read_{sys.argv[1]}"](Path(job["root"]), job["split"], **job["options"]))
        except Exception:
            np.savez(job["out"], error=traceback.format_exc())
