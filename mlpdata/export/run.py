"""A shard directory becomes an export: look at it, write it piece by piece, then the listings, and `export.json` last.

    look              which splits, format, codec; what the format cannot hold is refused
    write_pieces      workers write whole files; a journal each says that it is done       writer.py, samples.py
    finish            listings, everything moved into place, the record                    workdir.py, record.py

The bytes follow from the directory and the options alone, however often the work was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlpdata
from mlpdata.errors import Error, first_line, lacks_memory, reading
from mlpdata.export.options import ExportOptions
from mlpdata.export.record import FORMAT_VERSION, ExportRecord, Origin, is_export, load_record
from mlpdata.export.samples import estimated_bytes, format_to_read, read_blocks, rows_of
from mlpdata.export.workdir import (
    ANOTHER,
    ExportDir,
    begin,
    check_place,
    check_space,
    clean_up,
    complete,
    locked,
    note_done,
    read_done,
)
from mlpdata.export.writer import Exported, Piece, Say, Writer, Written
from mlpdata.export.writers import writer_of
from mlpdata.shards.classes import read_classes
from mlpdata.shards.files import FileEntry, difference
from mlpdata.shards.manifest import Manifest, manifest_path, work_path
from mlpdata.shards.open import open_split
from mlpdata.shards.text import open_file, read_text
from mlpdata.splits import chosen
from mlpdata.system.engines import LocalEngine
from mlpdata.system.files import resolved
from mlpdata.system.format import format_bytes, format_rate, plural
from mlpdata.system.progress import Progress
from mlpdata.system.threads import cores


def export(options: ExportOptions, say: Say = print) -> ExportRecord:
    """Write a shard directory in another format. Returns the record of the export.

    say: called with each line for the user. Continues an interrupted export of the same options; leaves a finished one
    as it is. Raises Error if the work cannot be done; the export then has no `export.json`.
    """
    started = time.monotonic()
    out = ExportDir(Path(options.out))
    with _one_line(out):
        exported = look(options, say)
        check_place(out, options.root)
        if is_export(out.root):
            return _finished(out, exported, say)
        with locked(out):
            if is_export(out.root):  # another run has finished it a moment ago
                return _finished(out, exported, say)
            return _export_locked(out, exported, started, say)


@contextlib.contextmanager
def _one_line(out: ExportDir) -> Iterator[None]:
    """Raise what may go wrong anywhere as an Error of one line."""
    again = "the same command goes on from here"
    try:
        yield
    except KeyboardInterrupt:
        kept = f"what is done stays in {out.work}: {again}" if out.plan.exists() else "nothing was written"
        raise Error(f"stopped; {kept}") from None
    except OSError as e:
        where = f": {e.filename}" if e.filename else ""
        raise Error(f"{e.strerror or first_line(e)}{where}; when that is mended, {again}") from None
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e):
            raise
        raise Error(f"out of memory; with fewer --workers {again}") from None


def look(options: ExportOptions, say: Say) -> Exported:
    """What there is to export. Raises Error for a directory that is unfinished or damaged, and for a missing split."""
    root = options.root
    manifest = Manifest.load(root)
    if work_path(root).exists():
        raise Error(f"{root} is being converted; wait for it")
    splits = chosen(options.splits, manifest.splits, root)
    for split in splits:
        manifest.check_sizes(root, split)
        if not manifest.splits[split].num_samples:
            say(f"split {split} has no samples: it is left out")
    counts = {split: manifest.splits[split].num_samples for split in splits}
    counts = {split: n for split, n in counts.items() if n}
    if not counts:
        raise Error(f"{root}: nothing to export: no samples in split {', '.join(splits)}")
    pixels = writer_of(options.to).wants_pixels
    format = format_to_read(manifest, options, pixels)
    stored = manifest.beton_codec if format == "beton" else manifest.tar_codec
    codec = "raw" if pixels else options.codec
    if codec == "stored":
        codec = "png" if stored == "raw" else str(stored)
    return Exported(
        options=options,
        manifest=manifest,
        manifest_sha256=hashlib.sha256(read_text(manifest_path(root))).hexdigest(),
        classes=read_classes(root, manifest),
        formats=dict.fromkeys(counts, format),
        codec=codec,
        splits=counts,
    )


def _finished(out: ExportDir, exported: Exported, say: Say) -> ExportRecord:
    """The record of a finished export, where it is just this one. Raises Error where it is not, or is damaged."""
    record = load_record(out.root)
    is_same = record.command == exported.options.command
    if not is_same or record.origin.manifest_sha256 != exported.manifest_sha256:
        what = "an earlier version of that directory" if is_same else record.command
        raise Error(f"{out.root} holds another export ({what:.200}); {ANOTHER}")
    if wrong := record.damage(out.root):
        raise Error(f"{wrong}; delete {out.root} and run the same command again")
    clean_up(out)
    say(f"{out.root} already holds exactly this: nothing to do")
    return record


@dataclass(frozen=True)
class Check:
    """A task: compare a file of the directory with its checksum, so that no damage gets into an export."""

    path: Path
    entry: FileEntry

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Context:
    """What every worker has."""

    exported: Exported
    writer: Writer
    data: Path


def work(context: Context, task: Piece | Check) -> Written | None:
    """One task of a worker."""
    if isinstance(task, Check):
        with reading(task.path), open_file(task.path) as f:
            if wrong := difference(f, task.entry):
                raise Error(f"{task.path} {wrong}; get or convert it again")
        return None
    exported, options = context.exported, context.exported.options
    blocks = read_blocks(options.root, exported.manifest, options, task.rows, context.writer.wants_pixels)
    return context.writer.write(context.data, task, blocks)


def _export_locked(out: ExportDir, exported: Exported, started: float, say: Say) -> ExportRecord:
    options, manifest = exported.options, exported.manifest
    writer = writer_of(options.to)(exported)
    pieces: dict[str, list[Piece]] = {}
    checks, needed = [], 0
    begin(out, exported, options.command)
    if is_export(out.work):  # an earlier run was stopped a moment before its end
        return _completed(out, load_record(out.work), started, say)
    for split in exported.splits:
        whole = open_split(options.root, split, exported.formats[split]).index
        writer.prepare(out.data, split, whole, say)
        sizes = estimated_bytes(whole, options, writer.wants_pixels)
        needed += writer.disk_bytes(sizes)
        bounds = writer.cut(sizes)
        rows = (rows_of(split, whole, *bound) for bound in bounds)
        pieces[split] = [Piece(number, len(bounds), part) for number, part in enumerate(rows)]
        checks += [Check(path, manifest.files[path.name]) for path in whole.files]
    done = {p.name: w for some in pieces.values() for p in some if (w := read_done(out, p))}
    check_space(out.root, needed, sum(written.num_bytes for written in done.values()))
    _say_plan(out, exported, needed, len(done), say)
    todo = [p for some in pieces.values() for p in some if p.name not in done]
    context = Context(exported, writer, out.data)
    num_workers = min(options.workers or cores(), max(len(todo), 1))
    total = sum(exported.splits.values())
    with (
        LocalEngine(num_workers, context) as engine,
        Progress(f"exporting to {options.to}", total, quiet=options.quiet) as progress,
    ):
        progress.resume(total - sum(len(p.rows) for p in todo), sum(w.num_bytes for w in done.values()))
        for task, written in engine.map(work, [*checks, *todo], progress, _amount):
            if isinstance(task, Piece):
                note_done(out, task, written)
                done[task.name] = written
    in_order = {split: [done[piece.name] for piece in some] for split, some in pieces.items()}
    return _finish(out, exported, writer, in_order, started, say)


def _amount(task: Piece | Check, written: Written | None) -> tuple[int, int]:
    return (written.num_samples, written.num_bytes) if written else (0, 0)


def _finish(
    out: ExportDir, exported: Exported, writer: Writer, written: dict[str, list[Written]], started: float, say: Say
) -> ExportRecord:
    """Write the listings and the record."""
    options, manifest = exported.options, exported.manifest
    listings = writer.finish(out.data, written, say)
    pieces = [piece for some in written.values() for piece in some]
    files = {name: entry for piece in pieces for name, entry in piece.files.items()} | listings
    record = ExportRecord(
        format_version=FORMAT_VERSION,
        format=options.to,
        codec=exported.codec,
        num_classes=manifest.num_classes,
        splits=exported.splits,
        origin=Origin(
            directory=resolved(options.root).name,
            manifest_sha256=exported.manifest_sha256,
            dataset=manifest.dataset,
            release=manifest.release,
            res=manifest.res,
            command=manifest.command,
        ),
        command=options.command,
        tool_version=mlpdata.__version__,
        num_files=sum(piece.facts.get("num_files", 1) for piece in pieces) + len(listings),
        num_bytes=sum(piece.num_bytes for piece in pieces) + sum(entry["bytes"] for entry in listings.values()),
        files=dict(sorted(files.items())),
    )
    writer.sync(out.data, files)
    record.save(out.work)
    return _completed(out, record, started, say)


def _completed(out: ExportDir, record: ExportRecord, started: float, say: Say) -> ExportRecord:
    complete(out)
    seconds, n = max(1e-9, time.monotonic() - started), sum(record.splits.values())
    counts = ", ".join(f"{name} {count:,}" for name, count in record.splits.items())
    say(
        f"done: {plural(n, 'image')} ({counts}) as {record.format}, {format_bytes(record.num_bytes)} in {out.root}, "
        f"{seconds:.1f} s, {format_rate(n / seconds)}"
    )
    return record


def _say_plan(out: ExportDir, exported: Exported, needed: int, num_done: int, say: Say) -> None:
    manifest, options = exported.manifest, exported.options
    format = next(iter(exported.formats.values()))
    stored = manifest.beton_codec if format == "beton" else manifest.tar_codec
    how = f"{stored} images of the {format}{'s' if format == 'tar' else ''}"
    if exported.codec != stored:
        how += f", encoded as {exported.codec}" if exported.codec != "raw" else ", decoded"
    going_on = f"; going on: {plural(num_done, 'piece')} done" if num_done else ""
    total = sum(exported.splits.values())
    say(f"{options.root} to {out.root}: {plural(total, 'image')}, {how}, about {format_bytes(needed)}{going_on}")
