"""A parquet export put on the Hugging Face Hub, where the viewer shows it and `load_dataset` reads it."""

from __future__ import annotations

from pathlib import Path

from mlpdata.errors import Error
from mlpdata.export.record import load_record, record_path
from mlpdata.shards import upload
from mlpdata.shards.remote import Say

PARQUET_FILES = ("data/*.parquet", record_path(Path()).name)  # of an earlier push: they would be read beside these


def push_export(root: Path, name: str, private: bool = False, say: Say = print) -> str:
    """Upload a finished parquet export to the data set repository OWNER/NAME, `export.json` last.

    What an earlier push has left there of another export, or of shards, is removed. Returns the page of the repository.
    Raises Error for what is unfinished, or no such export.
    """
    record = load_record(root)
    if record.format != "parquet":
        raise Error(f"{root} is an export as {record.format}; push takes exports made with --to parquet")
    if wrong := record.damage(root):
        raise Error(f"{wrong}; delete {root} and export again")
    title = f"{record.origin.dataset} at {record.origin.res} px"
    replaced = (*PARQUET_FILES, *upload.SHARD_FILES)
    return upload.push_files(root, record.files, record_path(root), replaced, title, name, private, say)
