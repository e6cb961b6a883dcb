"""Truncation of parts: the disk space of what was written to shards is given back while the rest is being written.

Parts and shards hold the same bytes twice; side by side they would need twice the space of the output. Shards are
written in the order of the splits and of their numbers, and the rows of a part lie the other way round (part.py), so
the samples of shards that are done are the end of every part, which can be cut off. This is done CUTS times in a
conversion, at the ends of blocks that have checksums of their own, and only in large outputs: the disk then holds at
most 1.15 times the output. Before the first cut a note, `.convert/assembling`, is written. While it stands, a later run
takes a part that ends at a block's end for whole, and trusts the shards it finds; if one of these is damaged and needs
rows that were cut off, the units of these rows are converted again (`truncated_parts`). The note lists the units that
were converted with `decodes_all` (deferred.py): made again otherwise, they would hold damaged JPEGs once more.
"""

from __future__ import annotations

import bisect
import json
import os
from collections.abc import Iterable

from mlpdata.convert.part import Part, keyed_check
from mlpdata.convert.workdir import WorkDir
from mlpdata.convert.worker import ShardTask, WorkerContext
from mlpdata.system.files import sync_dir, write_atomic

CUTS = 64  # parts are truncated so many times in all: more often costs more than the space is worth


def begin(work: WorkDir, plan_digest: str, decoded: set[str]) -> None:
    """Write the note that parts may be truncated from now on.

    decoded: names of the units of which nothing is deferred.
    """
    body = json.dumps(sorted(decoded)).encode()
    write_atomic(work.truncation, keyed_check(plan_digest, body).hexdigest().encode() + b"\n" + body)


def begun(work: WorkDir, plan_digest: str) -> set[str] | None:
    """What `begin` was told; None where it was not called, or its note is damaged: then every shard is written anew."""
    try:
        check, _, body = work.truncation.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return set(json.loads(body)) if check == keyed_check(plan_digest, body).hexdigest().encode() else None


def end(work: WorkDir) -> None:
    """Remove the note: parts have to be whole again."""
    work.truncation.unlink(missing_ok=True)
    sync_dir(work.path)


def truncate_parts(context: WorkerContext, tasks: Iterable[ShardTask]) -> None:
    """Give back the space of what these shards were made of. All shards before them are done.

    What is cut off already stays so. Up to a block of each part is kept beyond what later shards need.
    """
    work = context.work
    for folder in (work.root, work.path, work.shards):
        sync_dir(folder)  # the shards' names are on the disk before the parts' bytes go
    first_unused: dict[int, int] = {}  # part -> the first of its rows that no later shard needs
    for task in tasks:  # of each part, the rows of a later shard lie further to the front
        parts, starts, _ = context.shuffle_table(task.split).rows_of(task.number)
        first_unused.update(zip(parts.tolist(), starts.tolist(), strict=True))
    for number, row in first_unused.items():
        part = context.part(number)
        if part.lent is not None:
            continue
        offset = int(part.rows(row, row + 1)["data"][0])
        ends = part.record.ends
        kept = ends[bisect.bisect_left(ends, offset)]
        if os.stat(part.data_path).st_size > kept:
            os.truncate(part.data_path, kept)


def truncated_parts(context: WorkerContext, tasks: Iterable[ShardTask]) -> set[int]:
    """The numbers of the parts of which some rows that these shards need were cut off."""
    row_behind: dict[int, int] = {}  # part -> the row behind the last that is needed
    for task in tasks:
        parts, _, stops = context.shuffle_table(task.split).rows_of(task.number)
        for number, stop in zip(parts.tolist(), stops.tolist(), strict=True):
            row_behind[number] = max(stop, row_behind.get(number, 0))
    return {number for number, row in row_behind.items() if not _has_payload(context.part(number), row - 1)}


def _has_payload(part: Part, row: int) -> bool:
    if part.lent is not None:
        return True
    last = part.rows(row, row + 1)[0]
    size = last["pixels_bytes"] * last["has_pixels"] + last["encoded_bytes"]
    return os.stat(part.data_path).st_size >= last["data"] + size
