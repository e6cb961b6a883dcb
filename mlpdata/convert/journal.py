"""The journal of a shard: its rows of the index and what it takes to check the shard when a later run finds it.

`.convert/shards/SHARD.arrow` is renamed into place when the shard's bytes are written. It begins with a checksum, which
also covers the plan and the shard's name: Arrow may end the whole process on a damaged file, so nothing is parsed
before. `IndexWriter` copies the rows into `SPLIT.index.parquet`, in the order of the shards.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata.convert.part import checksum_of, keyed_check
from mlpdata.convert.sums import Summary
from mlpdata.convert.workdir import WorkDir
from mlpdata.convert.worker import ShardTask, WorkerContext
from mlpdata.errors import Error
from mlpdata.shards.index import SCHEMA
from mlpdata.shards.manifest import index_path
from mlpdata.system.files import replacing

CHECK_BYTES = 64  # in front of the Arrow file, which likes its bytes aligned
UNIQUE = ("key", "source", "offset", "bytes", "digest")  # a dictionary of their values only makes the index larger


@dataclass(frozen=True)
class ShardRecord:
    """A written shard."""

    name: str
    num_samples: int
    num_bytes: int  # of the tar; 0 where there is none
    sha256: str  # of the tar
    summary: Summary  # of the pixels that were decoded here
    beton_bytes: int = 0  # of its bytes in the beton, from its first sample on; 0 where no later run will check them
    beton_check: str = ""  # XXH3-64 of them


def index_rows(rows: np.ndarray, texts: dict[str, list[bytes]], file: str, codec: str,
               numbers: dict[str, np.ndarray]) -> pa.Table:  # fmt: skip
    """The rows of one shard as index.SCHEMA has them.

    rows: (n,) part.ROW. texts: the columns `key` and `source`. file, codec: the same for all rows. numbers: (n,) each,
    of the columns that are not as `rows` has them.
    """
    columns: dict[str, pa.Array] = {name: _text_array(values) for name, values in texts.items()}
    for name, value in (("file", file), ("codec", codec)):
        zeros = _number_array(pa.int32(), np.zeros(len(rows)))
        columns[name] = pa.DictionaryArray.from_arrays(zeros, _text_array([value.encode()]))
    for field in SCHEMA:
        if field.name not in columns:
            values = numbers[field.name] if field.name in numbers else rows[field.name]
            columns[field.name] = _number_array(field.type, values)
    return pa.Table.from_arrays([columns[name] for name in SCHEMA.names], schema=SCHEMA)


# Arrays are made straight from their buffers: pa.array looks for pandas, and importing that costs more than a shard.


def _text_array(values: list[bytes]) -> pa.Array:
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(values)))


def _number_array(kind: pa.DataType, values: np.ndarray) -> pa.Array:
    values = np.ascontiguousarray(values, str(kind))
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def write_journal(context: WorkerContext, task: ShardTask, record: ShardRecord, index: pa.Table) -> None:
    metadata = {"record": msgspec.json.encode(record)}
    body = io.BytesIO()
    with pa.ipc.new_file(body, index.schema.with_metadata(metadata)) as writer:
        writer.write_table(index)
    check = keyed_check(f"{context.plan_digest} {task.name}", body.getbuffer()).intdigest()
    # Where the shard is not durable no later run believes it, and a sync would wait for what other workers write.
    with replacing(context.work.journal(task.name), sync=task.durable) as f:
        f.write(check.to_bytes(CHECK_BYTES, "little"))
        f.write(body.getbuffer())


def _read_journal(work: WorkDir, name: str, plan_digest: str) -> pa.Table | None:
    """A shard's rows of the index; None where the journal is damaged, or belongs to something else. Raises OSError."""
    data = memoryview(work.journal(name).read_bytes())
    body = data[CHECK_BYTES:]
    if keyed_check(f"{plan_digest} {name}", body).intdigest() != int.from_bytes(data[:CHECK_BYTES], "little"):
        return None
    return pa.ipc.open_file(pa.py_buffer(body)).read_all()


def check_shard(context: WorkerContext, task: ShardTask) -> ShardRecord | None:
    """A shard from an earlier run; None where anything of it is not as its journal says."""
    work, settings = context.work, context.settings
    try:
        table = _read_journal(work, task.name, context.plan_digest)
        if table is None:
            return None
        record = msgspec.json.decode(table.schema.metadata[b"record"], type=ShardRecord)
        if settings.tar_codec:
            with open(work.root / task.name, "rb") as f:
                if hashlib.file_digest(f, "sha256").hexdigest() != record.sha256:
                    return None
        if settings.beton_codec:
            with open(work.beton(task.split), "rb") as f:
                f.seek(int(context.shuffle_table(task.split).pointers(task.first, 1)[0]))
                if checksum_of(f, record.beton_bytes) != record.beton_check:
                    return None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return record


class IndexWriter:
    """A split's parquet index, one row group a shard, in the order of the split; in its place only when finished."""

    def __init__(self, work: WorkDir, split: str, plan_digest: str):
        self._work, self._plan_digest = work, plan_digest
        self._path = index_path(work.root, split)
        self._tmp = work.temporary(self._path.name)
        repeating = [name for name in SCHEMA.names if name not in UNIQUE]
        self._file = open(self._tmp, "wb")  # noqa: SIM115 - Arrow itself takes no path that is not UTF-8
        self._writer = pq.ParquetWriter(
            self._file,
            SCHEMA,
            compression="zstd",
            use_dictionary=repeating,  # pyright: ignore[reportArgumentType] - it takes names of columns too
        )

    def add(self, shard: str) -> None:
        """Append the rows of a shard that is written."""
        table = _read_journal(self._work, shard, self._plan_digest)
        if table is None:
            path = self._work.journal(shard)
            raise Error(f"{path} was changed while the work went on; run the same command again to go on")
        self._writer.write_table(table.replace_schema_metadata())

    def finish(self) -> None:
        self.close()
        os.replace(self._tmp, self._path)

    def close(self) -> None:
        try:
            self._writer.close()
        finally:
            self._file.close()
