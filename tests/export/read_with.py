"""Read splits of an export with the library that it is for, and save what was seen: images, labels, class names.

Usage: read_with.py FORMAT EXPORT SPLIT OUT.npz [SPLIT OUT.npz]... It runs where the library is, and knows no mlpdata.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np


def pixels(image):
    return np.asarray(image.convert("RGB"))


def decoded(data):
    from PIL import Image

    return pixels(Image.open(io.BytesIO(data)))


def folder(root, split):
    from torchvision.datasets import ImageFolder

    data = ImageFolder(root / split, allow_empty=True)
    return [(pixels(image), label) for image, label in data], data.classes


def parquet(root, split):
    from datasets import load_dataset

    data = load_dataset(str(root), split=split)
    return [(pixels(row["image"]), row["label"]) for row in data], data.features["label"].names


def arrow(root, split):
    from datasets import load_from_disk

    data = load_from_disk(str(root))[split]
    return [(pixels(row["image"]), row["label"]) for row in data], data.features["label"].names


def npz(root, split):
    data = np.load(root / f"{split}.npz")
    assert len(set(data["keys"].tolist())) == len(data["labels"])
    return list(zip(data["images"], data["labels"].tolist(), strict=True)), data["class_names"].tolist()


def mds(root, split):
    from streaming import StreamingDataset

    data = StreamingDataset(local=str(root), split=split, shuffle=False, batch_size=1)
    return [(pixels(row["image"]), row["label"]) for row in data], None


def litdata(root, split):
    from litdata import StreamingDataset

    data = StreamingDataset(str(root / split))
    rows = [data[i] for i in range(len(data))]
    return [(row["image"].permute(1, 2, 0).numpy(), row["label"]) for row in rows], None


def tfrecord(root, split):
    import tensorflow as tf

    files = sorted(map(str, root.glob(f"*-{split}.tfrecord-*")))
    fields = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    data = tf.data.TFRecordDataset(files).map(lambda record: tf.io.parse_single_example(record, fields))
    rows = [(tf.io.decode_image(row["image"], 3).numpy(), int(row["label"])) for row in data]
    return rows, (root / "label.labels.txt").read_text().splitlines()


def tfds(root, split):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(root)
    config = tfds.ReadConfig(shuffle_seed=None, interleave_cycle_length=1)
    data = builder.as_dataset(split=split, as_supervised=True, read_config=config)
    assert builder.info.splits[split].num_examples == len(data)
    rows = [(image.numpy(), int(label)) for image, label in data]
    return rows, builder.info.features["label"].names


def main(form, root, *splits):
    for split, out in zip(splits[::2], splits[1::2], strict=True):
        rows, names = globals()[form](Path(root), split)
        sizes = np.array([image.shape[:2] for image, _ in rows])
        images = np.stack([image for image, _ in rows]) if len(np.unique(sizes, axis=0)) == 1 else np.zeros(0)
        labels = np.array([label for _, label in rows])
        np.savez(out, images=images, sizes=sizes, labels=labels, names=json.dumps(names))


if __name__ == "__main__":
    main(*sys.argv[1:])
