"""One parquet file, read by column and row group.

Files come from anywhere. What a footer claims is checked before it is used. Damage costs the rows of the damaged row
group only, and they are reported.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from mlpdata.archive.blob import PlainFile
from mlpdata.archive.url import UrlFile
from mlpdata.errors import Error, cannot_read, first_line
from mlpdata.sources.keys import shown
from mlpdata.sources.location import Location, open_file
from mlpdata.sources.parquet_columns import FileSchema, features, image_bytes, label_values
from mlpdata.system.format import plural

ROWS_A_UNIT = 10_000
ROWS_A_BATCH = 64  # images decoded from parquet pages at a time: bounds memory
LABELS_A_BATCH = 1 << 16
CODEC_ROWS = 256  # searched for a first image
BUFFER_BYTES = 8 << 20  # read from a column at a time, however large its row groups are
MAX_ROWS = 1 << 31  # of one file; footers may claim anything
READ_ERRORS = (OSError, pa.ArrowException, MemoryError, UnicodeDecodeError, OverflowError)


@dataclass(frozen=True)
class RowGroups:
    """Row groups `start` to `stop` of a file."""

    start: int
    stop: int
    num_rows: int
    num_bytes: int


class ParquetFile:
    """An open file of a data set, as a context manager. Raises Error where the file is not whole."""

    def __init__(self, location: Location, path: str):
        name = f"{location}: {shown(path)}"
        try:
            blob = _BlobReader(open_file(location, path))
            self._file = pq.ParquetFile(blob, buffer_size=BUFFER_BYTES, page_checksum_verification=True)
            self.schema = FileSchema(name, self._file.schema_arrow, features(self._file.schema_arrow))
        except READ_ERRORS as e:
            if isinstance(e, OSError) and e.strerror:
                raise cannot_read(name, e) from None
            raise Error(
                f"{name} is no whole parquet file ({first_line(e)}); get it again, or move it out of the data set"
            ) from None
        # The columns' metadata is left alone: pyarrow ends the process where their statistics are damaged.
        self._footer = self._file.metadata
        self.group_sizes = [self._footer.row_group(group).num_rows for group in range(self._footer.num_row_groups)]
        if min(self.group_sizes, default=0) < 0 or not sum(self.group_sizes) == self._footer.num_rows <= MAX_ROWS:
            self._file.close()
            raise Error(f"{name} is damaged: its footer claims {plural(self._footer.num_rows, 'row')}")

    def __enter__(self) -> ParquetFile:
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def units(self) -> Iterator[RowGroups]:
        """Row groups that together have about ROWS_A_UNIT rows."""
        start, num_rows, num_bytes = 0, 0, 0
        for group, size in enumerate(self.group_sizes):
            num_rows += size
            num_bytes += self._footer.row_group(group).total_byte_size
            if num_rows >= ROWS_A_UNIT or group == len(self.group_sizes) - 1:
                yield RowGroups(start, group + 1, num_rows, num_bytes)
                start, num_rows, num_bytes = group + 1, 0, 0

    def labels(self, column: str) -> Iterator[object]:
        """The different labels of a column, some of them repeatedly. Row groups that cannot be read are left out."""
        groups = list(range(len(self.group_sizes)))
        try:
            yield from self._labels(column, groups)
        except READ_ERRORS:  # rows that cannot be read are listed when their images are
            for group in groups:
                with contextlib.suppress(*READ_ERRORS):
                    yield from self._labels(column, [group])

    def _labels(self, column: str, groups: list[int]) -> Iterator[object]:
        for batch in self._file.iter_batches(LABELS_A_BATCH, groups, [column], use_threads=False):
            yield from label_values(batch.column(0).unique())

    def rows(self, group: int, image: str, label: str) -> Iterator[tuple[bytes | str, object]]:
        """(encoded image, or why there is none; label) of each row of a row group: always as many as it has rows."""
        num_rows = self.group_sizes[group]
        n, why, names = 0, f"row group {group} ends before it", [image, label]
        try:
            for batch in self._file.iter_batches(ROWS_A_BATCH, row_groups=[group], columns=names, use_threads=False):
                images, values = image_bytes(batch.column(image)), label_values(batch.column(label))
                for data, value in islice(zip(images, values, strict=True), num_rows - n):
                    n += 1
                    yield data, value
        except READ_ERRORS as e:
            why = f"row group {group} cannot be read: {first_line(e)}"
        for _ in range(num_rows - n):
            yield why, None

    def first_image(self, column: str) -> bytes:
        """The first encoded image; b"" where the first rows have none."""
        with contextlib.suppress(*READ_ERRORS):
            for batch in islice(self._file.iter_batches(1, columns=[column], use_threads=False), CODEC_ROWS):
                if isinstance(data := next(image_bytes(batch.column(column))), bytes):
                    return data
        return b""


class _BlobReader(io.RawIOBase):
    """A blob as the file object that pyarrow reads from."""

    def __init__(self, blob: PlainFile | UrlFile):
        self._blob, self._position = blob, 0

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._blob.close()
        super().close()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._blob.size}[whence]
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        data = self._blob.read_at(self._position, self._blob.size if size is None or size < 0 else size)
        self._position += len(data)
        return data
