"""TFRecord files of tf.train.Example, laid out so that `tfds.builder_from_directory` opens them.

An example has `image`, an encoded image, `label`, an int, and `key`. These names are those of TensorFlow Datasets,
which cannot be told others; whoever parses examples by hand gives names in any case.

Records are written here, in the wire format of protocol buffers: TensorFlow takes 600 MB, and protobuf's own writer
does not promise equal bytes for equal maps. Only the checksums, CRC-32C, come from a library, `google-crc32c`.
"""

from __future__ import annotations

import functools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlpdata.export.hub import file_name, hub_split
from mlpdata.export.samples import Block
from mlpdata.export.writer import Exported, Piece, Say, Writer, Written, entry, one_file
from mlpdata.shards.card import distinct_names
from mlpdata.shards.classes import classes_text
from mlpdata.shards.files import FileEntry
from mlpdata.shards.manifest import classes_path
from mlpdata.splits import on_hub
from mlpdata.system.files import replacing, write_atomic
from mlpdata.system.optional import missing

MASK = 0xA282EAD8  # TFRecord's, which is added to rotated checksums
TAG_1, TAG_2, TAG_3 = b"\x0a", b"\x12", b"\x1a"  # of fields 1 to 3 that have a length
FEATURE = "tensorflow_datasets.core.features"


class TfrecordWriter(Writer):
    file_bytes = 200 << 20  # TensorFlow's guide: from 100 to 200 MB

    def __init__(self, exported: Exported):
        super().__init__(exported)
        _crc32c()  # before anything is written

    @property
    def name(self) -> str:
        """The name of the data set: lower case, digits and underscores."""
        name = "".join(c if c.isascii() and c.isalnum() else "_" for c in self.exported.manifest.dataset.lower())
        return name if name[:1].isalpha() else f"d_{name}"

    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        path = folder / file_name(f"{self.name}-{hub_split(piece)}.tfrecord", piece)
        crc32c, num_bytes = _crc32c(), 0

        def masked(data: bytes) -> bytes:
            crc = crc32c(data)
            return struct.pack("<I", ((crc >> 15 | crc << 17) + MASK) & 0xFFFFFFFF)

        with replacing(path, sync=False) as f:
            for block in blocks:
                for key, label, image in zip(block.keys, block.labels.tolist(), block.images, strict=True):
                    record = example(image, label, key.encode())
                    length = struct.pack("<Q", len(record))
                    f.write(b"".join((length, masked(length), record, masked(record))))
                    num_bytes += len(record)
        return one_file(folder, path, piece, num_bytes=num_bytes)

    def finish(self, folder: Path, written: dict[str, list[Written]], say: Say) -> dict[str, FileEntry]:
        exported = self.exported
        splits = [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": on_hub(split),
                "numBytes": str(sum(piece.facts["num_bytes"] for piece in pieces)),
                "shardLengths": [str(piece.num_samples) for piece in pieces],
            }
            for split, pieces in written.items()
        ]
        info = {
            "name": self.name,
            "version": "1.0.0",
            "fileFormat": "tfrecord",
            "description": f"Made by: {exported.options.command}, of: {exported.manifest.command}",
            "releaseNotes": {},
            "splits": splits,
            "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
        }
        names = distinct_names(exported.classes)
        texts = {
            "dataset_info.json": json.dumps(info, indent=1),
            "features.json": json.dumps(self._features(), indent=1),
            "label.labels.txt": "".join(f"{name}\n" for name in names),
            classes_path(folder).name: classes_text(exported.classes),
        }
        listings: dict[str, FileEntry] = {}
        for name, text in texts.items():
            write_atomic(folder / name, text.encode())
            listings |= entry(folder, folder / name)
        return listings

    def _features(self) -> dict[str, Any]:
        exported = self.exported
        side = -1 if exported.manifest.resize == "longest" else exported.manifest.res
        shape = {"dimensions": [str(side), str(side), "3"]}
        encoding = {"jpg": "jpeg", "png": "png"}[exported.codec]
        content = {
            "image": {
                "pythonClassName": f"{FEATURE}.image_feature.Image",
                "image": {"shape": shape, "dtype": "uint8", "encodingFormat": encoding},
            },
            "label": {
                "pythonClassName": f"{FEATURE}.class_label_feature.ClassLabel",
                "classLabel": {"numClasses": str(len(exported.classes))},
            },
            "key": {"pythonClassName": f"{FEATURE}.text_feature.Text", "text": {}},
        }
        name = f"{FEATURE}.features_dict.FeaturesDict"
        return {"pythonClassName": name, "featuresDict": {"features": dict(sorted(content.items()))}}


def _crc32c():
    """bytes -> CRC-32C. Raises Error where the library is missing."""
    try:
        import google_crc32c
    except ImportError:
        raise missing("google-crc32c", "--to tfrecord") from None
    return google_crc32c.value


def example(image: bytes, label: int, key: bytes) -> bytes:
    """A tf.train.Example of an encoded image, its label and its key, in the wire format of protocol buffers.

    >>> example(b"i", 3, b"k").hex()
    '0a2e0a0c0a036b657912050a030a016b0a0e0a05696d61676512050a030a01690a0e0a056c6162656c12051a030a0103'
    """
    entries = b"".join((_bytes_entry(b"key", key), _bytes_entry(b"image", image), _label_entry(label)))
    return b"".join((TAG_1, _varint(len(entries)), entries))  # Example.features


def _bytes_entry(name: bytes, value: bytes) -> bytes:
    """An entry of the map Features.feature: the name, and a Feature with one value in its bytes_list."""
    head = TAG_1 + _varint(len(value))  # BytesList.value
    head = TAG_1 + _varint(len(head) + len(value)) + head  # Feature.bytes_list
    head = b"".join((TAG_1, _varint(len(name)), name, TAG_2, _varint(len(head) + len(value)), head))
    return b"".join((TAG_1, _varint(len(head) + len(value)), head, value))


@functools.lru_cache(1 << 16)
def _label_entry(label: int) -> bytes:
    """The same for the label, in an int64_list."""
    number = _varint(label)
    feature = TAG_3 + _varint(len(number) + 2) + TAG_1 + _varint(len(number)) + number  # Int64List.value is packed
    entry = TAG_1 + b"\x05label" + TAG_2 + _varint(len(feature)) + feature
    return TAG_1 + _varint(len(entry)) + entry


def _varint(value: int) -> bytes:
    """An integer from 0 on, seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
