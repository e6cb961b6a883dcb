"""Arrow files as `DatasetDict.save_to_disk` leaves them, for `load_from_disk`, which maps them and copies nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from mlpdata.export import hub
from mlpdata.export.samples import Block
from mlpdata.export.writer import Piece, Say, Writer, Written, entry, one_file
from mlpdata.shards.files import FileEntry
from mlpdata.shards.text import json_text
from mlpdata.splits import on_hub
from mlpdata.system.files import replacing, write_atomic


class ArrowWriter(Writer):
    file_bytes = 400 << 20  # below the 500 MB of `datasets`

    def write(self, folder: Path, piece: Piece, blocks: Iterator[Block]) -> Written:
        path = folder / hub.hub_split(piece) / hub.file_name("data", piece, ".arrow")
        path.parent.mkdir(exist_ok=True)
        schema = hub.schema(self.exported)
        with replacing(path, sync=False) as f, pa.ipc.new_stream(f, schema) as stream:
            for block in blocks:
                stream.write_batch(hub.record_batch(block, schema))
        return one_file(folder, path, piece)

    def finish(self, folder: Path, written: dict[str, list[Written]], say: Say) -> dict[str, FileEntry]:
        exported = self.exported
        files: dict[str, dict] = {"dataset_dict.json": {"splits": [on_hub(split) for split in written]}}
        for split, pieces in written.items():
            names = [Path(name).name for piece in pieces for name in piece.files]
            # The fingerprint names caches of what is computed from the data set: it has to differ where the data do.
            state: dict = {"_data_files": [{"filename": name} for name in names], "_split": on_hub(split)}
            state["_fingerprint"] = next(iter(pieces[0].files.values()))["sha256"][:16]
            state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
            files[f"{on_hub(split)}/state.json"] = state
            files[f"{on_hub(split)}/dataset_info.json"] = {"features": hub.features(exported)}
        listings: dict[str, FileEntry] = {}
        for name, content in files.items():
            write_atomic(folder / name, json_text(content, indent=1).encode())
            listings |= entry(folder, folder / name)
        return listings
