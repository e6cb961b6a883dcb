"""Parquet files as the Hugging Face Hub lays out image data sets: data/SPLIT-00000-of-000NN.parquet and a card.

The viewer of the Hub reads row groups whole, of at most 300 MB, and finds pages by the page index. A block of samples
is a row group here, 16 MiB at most as it was stored. `mlpdata push` uploads such an export.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from mlpdata import datasets
from mlpdata.errors import printable
from mlpdata.export import hub
from mlpdata.export.samples import Block
from mlpdata.export.writer import Piece, Say, Writer, Written, entry, one_file
from mlpdata.shards.card import MAX_CARD_CLASSES, distinct_names
from mlpdata.shards.classes import classes_text
from mlpdata.shards.files import FileEntry
from mlpdata.shards.manifest import card_path, classes_path
from mlpdata.sources.credits import credits_of
from mlpdata.splits import on_hub
from mlpdata.system.files import replacing, write_atomic
from mlpdata.system.format import plural

# Images are compressed already.
COLUMN_OPTIONS: dict[str, Any] = {
    "compression": {"image.bytes": "none", "image.path": "snappy", "label": "snappy"},
    "use_dictionary": ["label"],
    "write_statistics": ["image.path", "label"],
}
SIZE_CATEGORIES = (  # the Hub's own, by the number of samples below which each ends
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
)


class ParquetWriter(Writer):
    file_bytes = 400 << 20  # the Hub asks for files of 500 MB at most

    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        path = folder / "data" / hub.file_name(hub.hub_split(piece), piece, ".parquet")
        path.parent.mkdir(exist_ok=True)
        schema, num_bytes = hub.schema(self.exported), 0
        with (
            replacing(path, sync=False) as f,
            pq.ParquetWriter(
                f,
                schema,
                write_page_index=True,
                **COLUMN_OPTIONS,
            ) as writer,
        ):
            for block in blocks:
                batch = hub.record_batch(block, schema)
                writer.write_batch(batch, row_group_size=len(block))
                num_bytes += batch.nbytes
        return one_file(folder, path, piece, num_bytes=num_bytes)

    def finish(self, folder: Path, written: dict[str, list[Written]], say: Say) -> dict[str, FileEntry]:
        classes = classes_path(folder)
        write_atomic(classes, classes_text(self.exported.classes).encode())
        write_atomic(card_path(folder), card_text(self, written).encode())
        return entry(folder, card_path(folder)) | entry(folder, classes)


def card_text(writer: ParquetWriter, written: dict[str, list[Written]]) -> str:
    """The card: a YAML header with what the Hub and its libraries read, then the same for people."""
    exported, manifest = writer.exported, writer.exported.manifest
    spec = datasets.SPECS.get(manifest.dataset)
    title, total = spec.title if spec else manifest.dataset, sum(exported.splits.values())
    known = credits_of(title)
    sizes = {split: sum(piece.num_bytes for piece in pieces) for split, pieces in written.items()}
    in_memory = {split: sum(piece.facts["num_bytes"] for piece in pieces) for split, pieces in written.items()}
    header: dict[str, Any] = dict(known.license)
    header |= {
        "pretty_name": f"{title}, {manifest.res} px",
        "task_categories": ["image-classification"],
        "size_categories": [next((name for end, name in SIZE_CATEGORIES if total < end), "100M<n<1B")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": on_hub(s), "path": f"data/{on_hub(s)}-*"} for s in exported.splits],
            }
        ],
    }
    info: dict[str, Any] = {}
    if len(exported.classes) <= MAX_CARD_CLASSES:  # the files name the classes in any case
        names = {str(i): name for i, name in enumerate(distinct_names(exported.classes))}
        columns = [{"name": "image", "dtype": "image"}, {"name": "label", "dtype": {"class_label": {"names": names}}}]
        info["features"] = columns
        info["splits"] = [
            {"name": on_hub(split), "num_bytes": in_memory[split], "num_examples": n}
            for split, n in exported.splits.items()
        ]
        info |= {"download_size": sum(sizes.values()), "dataset_size": sum(in_memory.values())}
        header["dataset_info"] = info
    rows = "\n".join(f"| {on_hub(split)} | {n:,} | {len(written[split])} |" for split, n in exported.splits.items())
    made = "".join(f"    {printable(line)}\n" for line in (manifest.made_by, *manifest.lineage))
    citation = f"\n## Citation\n\n```bibtex\n{known.citation.strip()}\n```\n" if known.citation else ""
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=120).strip()}
---

# {title}, {manifest.res} px

{plural(total, "image")} of {plural(manifest.num_classes, "class")}, at most {manifest.res} pixels a side, from
{printable(manifest.release)}. They were resized by `{manifest.resize}` with the `{manifest.filter}` filter. `label`
numbers the classes in the order of `classes.txt`, which has their names in the source, too. Samples are shuffled over
each split.

| split | samples | files |
|---|---|---|
{rows}

`export.json` says of which shard directory these files were made, with the SHA-256 of its manifest and of every file
here. Made by mlpdata {exported.manifest.tool_version}:

{made}    {printable(exported.options.command)}
{citation}"""
