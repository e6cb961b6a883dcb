"""What parquet files of the Hub and saved `datasets` have in common: columns, features, names of splits and files.

The columns are `image`, a struct of encoded bytes and a file name, and `label`, an int64. The features, with the names
of the classes, are in the metadata of the schema, where the `datasets` library writes and reads them.
"""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa

from mlpdata.export.samples import Block
from mlpdata.export.writer import Exported, Piece
from mlpdata.shards.card import distinct_names
from mlpdata.shards.tar import EXTENSIONS
from mlpdata.splits import on_hub

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def features(exported: Exported) -> dict[str, Any]:
    """The features of the columns, as `datasets` keeps them in JSON."""
    return {"image": {"_type": "Image"}, "label": {"names": distinct_names(exported.classes), "_type": "ClassLabel"}}


def schema(exported: Exported) -> pa.Schema:
    metadata = {"huggingface": json.dumps({"info": {"features": features(exported)}})}
    return pa.schema([("image", IMAGE), ("label", pa.int64())], metadata)


def record_batch(block: Block, schema: pa.Schema) -> pa.RecordBatch:
    """A block as rows. The path of an image is its key with `/` as `_`: a name that a user may save it under."""
    names = [
        f"{key.replace('/', '_')}.{EXTENSIONS[codec]}" for key, codec in zip(block.keys, block.codecs, strict=True)
    ]
    columns = [pa.array(block.images, pa.binary()), pa.array(names, pa.string())]
    images = pa.StructArray.from_arrays(columns, fields=list(IMAGE))
    return pa.record_batch([images, pa.array(block.labels, pa.int64())], schema=schema)


def file_name(stem: str, piece: Piece, suffix: str = "") -> str:
    return f"{stem}-{piece.number:05d}-of-{piece.count:05d}{suffix}"


def hub_split(piece: Piece) -> str:
    return on_hub(piece.rows.split)
