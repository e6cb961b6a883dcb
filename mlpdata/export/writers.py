"""Which module writes which format."""

from __future__ import annotations

from importlib import import_module

from mlpdata.export.writer import Writer

MODULES = {
    "folder": "folder:FolderWriter",
    "parquet": "parquet:ParquetWriter",
    "npz": "npz:NpzWriter",
    "arrow": "arrow:ArrowWriter",
    "mds": "streaming:MdsWriter",
    "litdata": "streaming:LitdataWriter",
    "tfrecord": "tfrecord:TfrecordWriter",
}


def writer_of(to: str) -> type[Writer]:
    """The Writer of a format. Its module is imported when it is asked for: some need a library that takes a second."""
    module, _, name = MODULES[to].partition(":")
    return getattr(import_module(f"mlpdata.export.{module}"), name)
