"""An archive to a shard directory: plan units, convert them to parts, assemble shards in shuffled order, seal.

The bytes of every file follow from the data and the options alone: not from the number of workers, not from the order
in which they finished, not from how often the work was interrupted, not from how many machines shared it. `.convert/`
inside the output directory holds the work under way; finished parts and shards are found there again and not made
twice.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mlpdata.convert import assembly, shuffle
from mlpdata.convert.finish import Found, Hasher, iter_skipped, seal
from mlpdata.convert.limit import first_samples
from mlpdata.convert.options import Options
from mlpdata.convert.parts import Part, cut_off, lacks
from mlpdata.convert.plan import Plan, is_large, make_plan, splits_of
from mlpdata.convert.sums import Summary
from mlpdata.convert.units import Task
from mlpdata.convert.workdir import (
    Lock,
    begin_again,
    begin_with,
    begun_with,
    check_directory,
    check_plan,
    check_source,
    check_space,
    clean_up,
    prepare,
    tidy,
)
from mlpdata.errors import Error, first_line, lacks_memory
from mlpdata.shards import beton, card, remote
from mlpdata.shards.manifest import Manifest, beton_path, index_path, skipped_path
from mlpdata.sources import NothingLeft
from mlpdata.system.engines import Engine, LocalEngine
from mlpdata.system.files import sync_dir
from mlpdata.system.format import format_bytes
from mlpdata.system.progress import Progress

LOW_FIDELITY_DB = 35.0  # warned of, unless so few images were measured that chance explains it
CUTS = 64  # parts are cut off so many times in all: more often costs more than the space is worth


def convert(options: Options, say: Callable[[str], None] = print) -> Manifest | None:
    """Convert a data set into a shard directory and return its manifest; None for a share of one.

    options.out may be a URL of an object storage: see remote.staged.
    say: called with a line at a time for the user. Continues an interrupted run of the same options; a finished one is
    left as it is. Raises Error when the work cannot be done or is incomplete; the directory then has no manifest.
    """
    if remote.is_remote(options.out):
        if options.part is not None or options.assemble or options.engine != "local":
            raise Error(f"--out {options.out}: the work of several machines meets on a disk they share")
        with remote.staged(str(options.out), say) as folder:
            return convert(replace(options, out=folder), say)
    started = time.monotonic()
    try:
        plan = make_plan(options, say)
    except KeyboardInterrupt:
        raise Error("stopped before anything was written") from None
    except OSError as e:
        raise Error(
            f"cannot read {e.filename or options.source or 'the source'}: {e.strerror or first_line(e)}"
        ) from None
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e):
            raise
        raise Error("out of memory while the source was listed; it needs a machine with more") from None
    try:
        if check_directory(plan) is None:
            check_space(plan)
            prepare(plan)
            with Lock(plan):
                if check_directory(plan) is None:  # another run may have finished it a moment ago
                    begin_again(plan, say)
                    tidy(plan)
                    check_plan(plan, say)
                    say(_announce(plan))
                    if plan.filter_note:
                        say(plan.filter_note)
                    for warning in plan.source.warnings:
                        say(f"warning: {warning}")
                    try:
                        return _run(plan, started, say)
                    except NothingLeft:
                        _abandon(plan)  # while the lock is held: whoever comes next finds nothing of it
                        raise
        say(f"{plan.root} already holds exactly this: nothing to do (delete it to have it made again)")
        return Manifest.load(plan.root)
    except KeyboardInterrupt:
        raise Error(f"stopped; what is done stays in {plan.work}: the same command goes on from here") from None
    except OSError as e:
        raise Error(f"{_in_a_line(e)}; run the same command again to go on from here") from None
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e):
            raise
        raise Error("out of memory; run the same command again, with fewer --workers, to go on from here") from None


def _in_a_line(error: OSError) -> str:
    return f"{error.strerror or first_line(error)}{f': {error.filename}' if error.filename else ''}"


def _run(plan: Plan, started: float, say) -> Manifest | None:
    limited = plan.options.limit is not None
    if limited:
        plan = _first_samples(plan)
    result = Assembled()
    plan = _decoding(plan, begun_with(plan) or set())
    while True:
        with _engine(plan) as engine:  # new workers each time: they remember what the parts were
            if result.undecodable:
                _begin_anew(plan)
            redo = [task for n, task in enumerate(plan.tasks) if n in result.undecodable | result.lacking]
            if redo:
                _make_parts(plan, redo, engine, _progress(plan, redo))
            if result.undecodable or not (redo or limited):
                _convert_parts(plan, engine, say, again=bool(redo))
            if plan.options.part is not None:
                k, n = plan.options.part
                check_source(plan)
                units = f"{len(plan.share)} units"
                say(f"part {k} of {n} is done, {units}; when all are, finish with --assemble for --part")
                return None
            found = _take_stock(plan)
            try:
                _check_skipped(plan, found)
            except Error:
                check_source(plan)  # what was cut meanwhile holds no damaged images, and no fewer classes
                raise
            if n := found.total.num_repaired:
                say(f"warning: {n:,} JPEGs that libjpeg warns about are stored as Pillow reads them, damage and all")
            check_space(plan, found.payload_bytes)
            result = _assemble(plan, engine, found)
            plan = _decoding(plan, {plan.tasks[n].unit.name for n in result.undecodable})
            if not (result.undecodable or result.lacking):
                check_source(plan)
                manifest = seal(plan, engine, found, result.made, result.hashes)
                break
    clean_up(plan, manifest)  # a run that comes now and finds the manifest does so too
    for warning in plan.source.warnings:
        say(f"warning: {warning}")
    if manifest.fidelity:
        say(_fidelity_line(manifest.fidelity))
    _say_done(plan, manifest, found, time.monotonic() - started, say)
    return manifest


def _decoding(plan: Plan, names: set[str]) -> Plan:
    """The plan with nothing deferred in the units of these names."""
    return replace(plan, tasks=[replace(t, decodes_all=t.decodes_all or t.unit.name in names) for t in plan.tasks])


def _engine(plan: Plan) -> Engine:
    names = [task.unit.name for task in plan.tasks]
    state = assembly.State(plan.source, plan.recipe, plan.root, plan.beton_codec, plan.tar_codec, names, plan.digest)
    if plan.options.engine == "ray":
        from mlpdata.system.ray_engine import RayEngine

        return RayEngine(plan.options.workers, state)
    return LocalEngine(min(plan.num_workers, len(plan.tasks)), state)


def _announce(plan: Plan) -> str:
    beton_bytes, tar_bytes = plan.estimate
    files = []
    if plan.beton_codec:
        files.append(f"beton ({plan.beton_codec}, about {format_bytes(beton_bytes)})")
    if plan.tar_codec:
        files.append(f"tar ({plan.tar_codec}, about {format_bytes(tar_bytes)})")
    n = plan.num_expected
    count = f"{n:,} images" if n else "an unknown number of images"
    return (
        f"{plan.spec.title}, {plan.source.release}: {count} to {plan.res} px in {plan.root}: "
        f"{' and '.join(files)}; the work needs at most about {format_bytes(plan.peak_bytes)} of disk"
    )


# ---------------------------------------------------------------------------------------------------------- parts


def _convert_parts(plan: Plan, engine: Engine, say, again: bool) -> None:
    """Convert the units of this run's share that are not there yet. again: they all were in this run."""
    done = _parts_found(plan, plan.share, engine)
    todo = [task for task in plan.share if task.unit.name not in done]
    if plan.options.assemble and todo and not again:
        raise Error(_missing(plan, todo))
    with _progress(plan, plan.share) as progress:
        if done and not again:
            say(f"going on: {len(done)} of {len(plan.share)} units are done")
            for task in plan.share:
                if part := done.get(task.unit.name):
                    progress.resume(*_amount(task, part))
        _make_parts(plan, todo, engine, progress)


def _first_samples(plan: Plan) -> Plan:
    """Convert just what --limit wants. Returns the plan with the units it took and how many samples of each."""
    holds = [tuple(s for s in splits_of(plan.source, task.unit) if s in plan.splits) for task in plan.tasks]
    with _engine(plan) as engine, _progress(plan, []) as progress:

        def convert(tasks: list[Task]) -> list[dict[str, int]]:
            done = _parts_found(plan, tasks, engine)
            done |= _make_parts(plan, [task for task in tasks if task.unit.name not in done], engine, progress)
            return [done[task.unit.name].counts for task in tasks]

        tasks = first_samples([task.unit for task in plan.tasks], holds, plan.options.limit, convert)
    return replace(plan, tasks=tasks)


def _progress(plan: Plan, tasks: list[Task]) -> Progress:
    total_bytes = sum(task.unit.num_bytes for task in tasks)
    return Progress("converting", plan.num_expected, quiet=plan.options.quiet, total_bytes=total_bytes)


def _parts_found(plan: Plan, tasks: list[Task], engine: Engine) -> dict[str, assembly.PartFound]:
    """What is there already of the parts of tasks, by unit. Where shards are assembled parts may be cut off."""
    may_be_cut = begun_with(plan) is not None
    there = [task for task in tasks if assembly.part_path(plan.work, task.unit.name).exists()]
    checks = [assembly.CheckPart(task, may_be_cut) for task in there]
    with Progress("checking", len(checks), unit="units", quiet=plan.options.quiet) as progress:
        parts = engine.map(assembly.check_part, checks, progress)
        return {check.task.unit.name: part for check, part in parts if part is not None}


def _make_parts(plan: Plan, tasks: list[Task], engine: Engine, progress: Progress) -> dict[str, assembly.PartFound]:
    made = {task.unit.name: part for task, part in engine.map(assembly.convert_task, tasks, progress, _amount)}
    sync_dir(plan.parts)
    return made


def _shard_amount(task: assembly.ShardTask, result: assembly.Made | assembly.Undecodable) -> tuple[int, int]:
    return (len(task), result.num_bytes) if isinstance(result, assembly.Made) else (0, 0)


def _amount(task: Task, part: assembly.PartFound) -> tuple[int, int, int]:
    return sum(part.counts.values()), task.unit.num_bytes, part.num_skipped


def _begin_anew(plan: Plan) -> None:
    """Remove what was assembled, as units are converted anew in which something does not decode that was deferred.

    In a large output, parts that were cut off are found to be torn next, and are made again. That such an
    image turns up is rare enough; looking for them first would cost every run as much as a quarter of its time.
    """
    plan.assembling.unlink(missing_ok=True)
    sync_dir(plan.work)  # before anything else: where it stands, parts may be cut off
    for split in plan.splits:
        for path in (*plan.root.glob(f"{split}-*.tar"), assembly.beton_work_path(plan.work, split)):
            path.unlink(missing_ok=True)
    shutil.rmtree(plan.work / assembly.SHARDS)


def _missing(plan: Plan, todo: list[Task]) -> str:
    """Which shares lack units, as far as the lock files of the machines that were at work tell."""
    counts = {int(m[1]) for m in (re.fullmatch(r"lock-\d+-of-(\d+)", p.name) for p in plan.work.iterdir()) if m}
    text = f"{len(todo)} of {len(plan.tasks)} units are missing, the first is {todo[0].unit.name}"
    if len(counts) == 1:
        n, numbers = counts.pop(), {task.unit.name: i for i, task in enumerate(plan.tasks)}
        shares = sorted({numbers[task.unit.name] % n + 1 for task in todo})
        text += f"; run {', '.join(f'--part {k}/{n}' for k in shares)} first"
    return text + " (without --assemble this machine converts them)"


def _take_stock(plan: Plan) -> Found:
    """Count what the parts hold, one after the other."""
    num_classes = len(plan.source.classes)
    counts = {s: np.zeros(num_classes, np.int64) for s in plan.splits}
    found = Found(counts, dict.fromkeys(plan.splits, 0), 0, "", {}, set(), 0, Summary(), np.arange(num_classes))
    for task in plan.tasks:
        part = Part(assembly.part_path(plan.work, task.unit.name))
        record = part.record
        found.total.add(Summary(**record["summary"]))
        found.small.update(record["small"])
        found.decoded |= {task.unit.name} if record["decodes_all"] else set()
        for skipped in record["skipped"]:
            if not skipped.get("is_data", True):
                found.num_left_out += 1
                continue
            found.num_skipped[skipped["split"]] += 1
            found.first_reason = found.first_reason or skipped["reason"]
        for split, (start, stop) in record["splits"].items():
            rows = part.rows(start, stop)
            counts[split] += np.bincount(rows["label"], minlength=num_classes)
            found.payload_bytes += int(
                rows["pixels_bytes"].sum(dtype=np.int64) + rows["encoded_bytes"].sum(dtype=np.int64)
            )
    if plan.source.drops_empty_classes:
        kept = sum(counts.values()) > 0
        found.label_map = np.where(kept, np.cumsum(kept) - 1, -1)
    return found


def _check_skipped(plan: Plan, found: Found) -> None:
    if found.small and not any(counts.sum() for counts in found.class_counts.values()):
        raise plan.class_filter.none_left(found.small)
    for split, counts in found.class_counts.items():
        if not counts.sum():
            if found.first_reason:
                reason = f"none of its images could be read; the first: {found.first_reason}"
                raise Error(f"split {split!r} is empty: {reason}")
            raise NothingLeft(f"split {split!r} is empty: the source has no image of it")
    skipped = sum(found.num_skipped.values())
    total = skipped + sum(int(c.sum()) for c in found.class_counts.values())
    if skipped / total > plan.options.max_skipped:  # not multiplied: 0.29 * 100 is less than 29
        listing = plan.work / skipped_path(plan.root).name
        card.write_skipped(listing, iter_skipped(plan))
        raise Error(
            f"{skipped:,} of {total:,} images ({skipped / total:.2%}) could not be read, "
            f"more than --max-skipped {plan.options.max_skipped:g}; the first: {found.first_reason}; all are listed in "
            f"{listing}. "
            "The same command with a larger share goes on from here"
        )


def _abandon(plan: Plan) -> None:
    """Remove the work that can come to nothing: it would only stand in the way of other options."""
    shutil.rmtree(plan.work, ignore_errors=True)
    with contextlib.suppress(OSError):  # something of somebody else's is in it
        plan.root.rmdir()


# --------------------------------------------------------------------------------------------------------- shards


@dataclass
class Assembled:
    """The shards, or which units have to be converted again first, by their numbers in the plan."""

    made: dict[str, list[assembly.Made]] = field(default_factory=dict)  # per split and in order
    hashes: dict[Path, str] = field(default_factory=dict)  # SHA-256 of the betons, where it was taken on the way
    undecodable: set[int] = field(default_factory=set)  # something in them does not decode that was left for later
    lacking: set[int] = field(default_factory=set)  # cut off, and wanted for shards of an earlier run that are damaged


def _assemble(plan: Plan, engine: Engine, found: Found) -> Assembled:
    """Write every shard that is not there yet.

    First split and first shard first: what they use is the end of every part, and is cut off behind them.
    """
    folder = plan.work / assembly.SHARDS
    durable = is_large(found.payload_bytes)  # now it is known; the plan had to guess
    begun = durable and begun_with(plan) is not None
    if folder.exists() and not begun:
        shutil.rmtree(folder)  # unsynced shards are not trusted across runs; they are cheap to make again
    folder.mkdir(exist_ok=True)
    if durable and not begun:
        if not plan.recipe.durable:
            for _ in engine.map(assembly.sync_part, [task.unit.name for task in plan.tasks]):
                pass
            sync_dir(plan.parts)
        begin_with(plan, found.decoded)
    np.save(plan.work / assembly.LABELS, found.label_map)
    tasks = [task for split in sorted(plan.splits) for task in _shard_tasks(plan, split, durable, found.label_map)]
    there = [task for task in tasks if assembly.journal_path(plan.work, task.name).exists()]
    with Progress("checking", len(there), unit="shards", quiet=plan.options.quiet) as progress:
        results = engine.map(assembly.check_made, there, progress)
        made: dict[str, assembly.Made] = {task.name: result for task, result in results if result is not None}
    if lacking := _lacking(plan, [task for task in tasks if task.name not in made]):
        return Assembled(lacking=lacking)
    undecodable: set[int] = set()
    progress = Progress("writing shards", sum(len(task) for task in tasks), quiet=plan.options.quiet)
    progress.resume(sum(len(task) for task in tasks if task.name in made))
    with contextlib.ExitStack() as stack:
        hashers = _hashers(plan, stack)
        indexes = {
            split: assembly.IndexWriter(index_path(plan.root, split), plan.work, plan.digest) for split in plan.splits
        }
        for index in indexes.values():
            stack.callback(index.close)
        cut = behind = 0  # shards whose samples are cut off; shards that are made, and all before them

        def move_on():
            nonlocal cut, behind
            while behind < len(tasks) and (task := tasks[behind]).name in made:
                if hasher := hashers.get(task.split):
                    hasher.allow(task.beton_end)
                indexes[task.split].add(task.name)
                behind += 1
            if durable and not undecodable and behind - cut > len(tasks) // CUTS:
                _cut_off(plan, tasks[cut:behind])
                cut = behind

        move_on()
        stack.enter_context(progress)
        todo = [task for task in tasks if task.name not in made]
        for task, result in engine.map(assembly.write_shard, todo, progress, _shard_amount):
            if isinstance(result, assembly.Undecodable):
                undecodable |= result.parts
                continue
            made[task.name] = result
            move_on()
        if undecodable:
            return Assembled(undecodable=undecodable)
        for index in indexes.values():
            index.finish()
        hashes = {assembly.beton_work_path(plan.work, split): hasher.finish() for split, hasher in hashers.items()}
    return Assembled({split: [made[t.name] for t in tasks if t.split == split] for split in plan.splits}, hashes)


def _lacking(plan: Plan, tasks: list[assembly.ShardTask]) -> set[int]:
    """The numbers of the parts that were cut off before all was made of them."""
    behind: dict[int, int] = {}  # part -> the row behind the last that is wanted
    for task in tasks:
        used, _, stops = _order(plan, task.split).stretches(task.number)
        for number, stop in zip(used.tolist(), stops.tolist(), strict=True):
            behind[number] = max(stop, behind.get(number, 0))
    return {n for n, row in behind.items() if lacks(Part(assembly.part_path(plan.work, plan.tasks[n].unit.name)), row)}


def _hashers(plan: Plan, stack: contextlib.ExitStack) -> dict[str, Hasher]:
    """One for each beton that this machine alone writes; they end with the stack."""
    if plan.beton_codec is None or plan.options.engine != "local":
        return {}
    hashers = {}
    for split in plan.splits:
        hashers[split] = Hasher(assembly.beton_work_path(plan.work, split))
        stack.callback(hashers[split].stop)
    return hashers


def _cut_off(plan: Plan, tasks: list[assembly.ShardTask]) -> None:
    """Give back the space of what made shards were made of. Their names are on disk before it goes."""
    for folder in (plan.root, plan.work, plan.work / assembly.SHARDS):
        sync_dir(folder)
    firsts: dict[int, int] = {}  # part -> its first row that is of no use any more
    for task in tasks:
        used, starts, _ = _order(plan, task.split).stretches(task.number)
        firsts.update(zip(used.tolist(), starts.tolist(), strict=True))  # later shards lie further to the front
    for number, row in firsts.items():
        cut_off(Part(assembly.part_path(plan.work, plan.tasks[number].unit.name)), row)


def _order(plan: Plan, split: str) -> shuffle.Order:
    return shuffle.Order(plan.work, split, len(plan.tasks))


def _shard_tasks(plan: Plan, split: str, durable: bool, label_map: np.ndarray) -> list[assembly.ShardTask]:
    """Cut the order of a split into shards, and make room for its beton."""
    journals = [assembly.part_path(plan.work, task.unit.name) for task in plan.tasks]
    size_field = {"raw": "pixels_bytes", None: None}.get(plan.beton_codec, "encoded_bytes")
    lengths, content = shuffle.settle(_order(plan, split), journals, plan.options.shard_size, size_field)
    firsts = np.cumsum([0, *lengths]).tolist()
    ends = [0] * len(lengths)
    if content is not None:
        _prepare_beton(plan, split, content, label_map)
        ends = [*content.layout.ptrs[firsts[1:-1]].tolist(), content.layout.file_bytes]
    return [assembly.ShardTask(split, k, firsts[k], n, durable, ends[k]) for k, n in enumerate(lengths)]


def _prepare_beton(plan: Plan, split: str, content: shuffle.Beton, label_map: np.ndarray) -> None:
    tmp, final = assembly.beton_work_path(plan.work, split), beton_path(plan.root, split)
    if final.exists() and not tmp.exists():  # an earlier run stopped between this rename and the manifest
        os.replace(final, tmp)
    # Where a shard is there already so are its payloads; the tables are cheap to write again.
    keep = any((plan.work / assembly.SHARDS).glob(f"{split}-*.arrow")) and tmp.exists()
    columns = {**content.columns, "labels": label_map.astype(np.int32)[content.columns["labels"]]}
    beton.create(tmp, content.layout, plan.beton_codec, **columns, keep=keep)


def _say_done(plan: Plan, manifest: Manifest, found: Found, seconds: float, say) -> None:
    n = sum(s.num_samples for s in manifest.splits.values())
    skipped, left_out = sum(found.num_skipped.values()), found.num_left_out
    num_bytes = sum(f["bytes"] for f in manifest.files.values())
    counts = ", ".join(f"{name} {s.num_samples:,}" for name, s in manifest.splits.items())
    dropped = len(plan.source.classes) - manifest.num_classes if plan.class_filter.min_class_size else 0
    omitted = [f"{dropped:,} of {len(plan.source.classes):,} classes too small"] if dropped else []
    omitted += [f"{skipped:,} skipped"] if skipped or not left_out else []
    omitted += [f"{left_out:,} {'files' if left_out > 1 else 'file'} left out"] if left_out else []
    say(
        f"done: {n:,} images ({counts}), {', '.join(omitted)}, {format_bytes(num_bytes)} in {plan.root}, "
        f"{seconds:.1f} s, {n / seconds:,.0f} images/s"
    )


def _fidelity_line(fidelity: dict) -> str:
    line = (
        f"fidelity of the scaled JPEG decode: {fidelity['psnr_db']} dB PSNR against the exact decode on "
        f"{fidelity['num_samples']} images, largest difference {fidelity['max_diff']}"
    )
    if fidelity["psnr_db_upper"] < LOW_FIDELITY_DB:
        return f"warning: {line}: below {LOW_FIDELITY_DB:g} dB, fine detail differs from an exact decode"
    if fidelity["psnr_db"] < LOW_FIDELITY_DB:
        return f"{line}; too few images to tell whether it is below {LOW_FIDELITY_DB:g} dB"
    return line
