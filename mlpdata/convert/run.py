"""An archive becomes a shard directory: plan, parts, shuffle, shards, finish.

    make_plan               every choice is made, every unit of the source listed          plan.py
    convert_parts           units become parts, in workers                                 stage_parts.py, unit.py
    count_parts             the parts are counted                                          stage_parts.py
    write_shards            the order is decided; shards are gathered from the parts       stage_shards.py, shard.py
    finish                  listings, checksums, and the manifest last                     finish.py

The bytes of every file follow from the data and the options alone: not from the number of workers, not from the order
in which they finished, not from how often the work was interrupted (workdir.py), not from how many machines shared it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from mlpdata.convert import truncation
from mlpdata.convert.binding import begin_again, bind, check_place, check_source, finished_manifest
from mlpdata.convert.deferred import discard_shards
from mlpdata.convert.finish import finish
from mlpdata.convert.options import Options
from mlpdata.convert.plan import ConversionPlan, make_plan, peak_disk_bytes
from mlpdata.convert.stage_parts import (
    Totals,
    check_classes,
    check_totals,
    convert_first_samples,
    convert_parts,
    count_parts,
)
from mlpdata.convert.stage_shards import PartsNeeded, WrittenShards, write_shards
from mlpdata.convert.workdir import abandon, check_space, clean_up, discard_part, locked, prepare, tidy
from mlpdata.convert.worker import WorkerContext
from mlpdata.derive.source import ShardSource
from mlpdata.errors import Error, first_line, lacks_memory
from mlpdata.shards import remote, upload
from mlpdata.shards.beton import PAGE_SIZE
from mlpdata.shards.manifest import Fidelity, Manifest
from mlpdata.sources import NothingLeft, keys
from mlpdata.system.engines import Engine, LocalEngine, leave_if_imported_by_worker
from mlpdata.system.format import format_bytes, format_rate, plural
from mlpdata.system.threads import cores

LEAST_SINGLES = 8  # images; fewer may well be of a class each
LOW_FIDELITY_DB = 35.0  # warned of, unless so few images were measured that chance explains it


def convert(options: Options, say: Callable[[str], None] = print) -> Manifest | None:
    """Convert a data set into a shard directory and return its manifest; None if only a share (`part`) was made.

    options.out may be a URL of an object storage: see upload.staged.
    say: called with each line for the user. Continues an interrupted run of the same options; leaves a finished one as
    it is. Raises Error if the work cannot be done or is incomplete; the directory then has no manifest.
    """
    leave_if_imported_by_worker()
    if remote.is_remote(options.out):
        if options.sharing or options.engine != "local":
            raise Error(
                f"--out {options.out}: with --part the machines need a disk that they share; choose a directory on it"
            )
        if options.overwrite:
            raise Error(
                f"--out {options.out}: --overwrite works on local directories only; delete it, or choose another --out"
            )
        with upload.staged(str(options.out), say) as (folder, say_here):
            return convert(replace(options, out=folder), say_here)
    started = time.monotonic()
    with _one_line(
        "stopped before anything was written",
        lambda e: f"cannot read {e.filename or options.source or 'the source'}: {e.strerror or first_line(e)}",
        "out of memory while the source was listed; use a machine with more memory",
    ):
        plan = make_plan(options, say)
    with _one_line(
        f"stopped; what is done stays in {plan.work.path}: the same command goes on from here"
        f"{', without --overwrite' if plan.overwrite else ''}",
        lambda e: (
            f"{e.strerror or first_line(e)}{f': {e.filename}' if e.filename else ''}; "
            "when that is mended, run the same command again to go on from here"
        ),
        "out of memory; run the same command again, with fewer --workers, to go on from here",
    ):
        check_place(plan)
        manifest = None if plan.overwrite else finished_manifest(plan)
        if manifest is None:
            check_space(plan.work, plan.peak_bytes)
            check_classes(plan)
            with _joined(plan):
                prepare(plan.work)
                with locked(plan.work, plan.share):
                    # Another run may have finished it a moment ago.
                    manifest = None if plan.overwrite else finished_manifest(plan)
                    if manifest is None:
                        return _convert_locked(plan, started, say)
        advice = "`mlpdata verify` reads every byte, --overwrite makes it again"
        say(f"{plan.root} already holds exactly this: nothing to do ({advice})")
        return manifest


@contextlib.contextmanager
def _one_line(stopped: str, failed: Callable[[OSError], str], out_of_memory: str) -> Iterator[None]:
    """Raise what may go wrong anywhere as an Error of one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise Error(stopped) from None
    except OSError as e:
        raise Error(failed(e)) from None
    except (MemoryError, RuntimeError) as e:
        if not lacks_memory(e):
            raise
        raise Error(out_of_memory) from None


def _convert_locked(plan: ConversionPlan, started: float, say: Callable[[str], None]) -> Manifest | None:
    """Do the whole work, while no other run is at work in the directory. Returns None for a share."""
    tidy(plan.work, shared=plan.share is not None)
    begin_again(plan, say)
    bind(plan, say)
    _say_plan(plan, say)
    try:
        result = _plan_to_manifest(plan, say)
    except NothingLeft:
        abandon(plan.work)  # while the lock is held: the next run finds nothing of it
        raise
    if result is None:
        k, n = plan.share or (1, 1)
        units = plural(len(plan.own_tasks), "unit")
        say(f"part {k} of {n} is done, {units}; when all are, run the same command with --assemble instead of --part")
        return None
    manifest, totals = result
    clean_up(plan.work, manifest, plan.all_splits)  # a run that comes now and finds the manifest does so too
    _say_done(plan, manifest, totals, max(1e-9, time.monotonic() - started), say)
    return manifest


def _plan_to_manifest(plan: ConversionPlan, say: Callable[[str], None]) -> tuple[Manifest, Totals] | None:
    """Parts, shards, manifest. Begins again where shards need other parts: see deferred.py and truncation.py."""
    known: set[str] = set()  # units whose parts this run knows to be whole
    again = False
    if plan.limit is not None:
        with _engine(plan, _context(plan)) as engine:
            plan = replace(plan, tasks=convert_first_samples(plan, engine))
        known = {task.unit.name for task in plan.tasks}
    plan = _decoding_all(plan, truncation.begun(plan.work, plan.digest) or set())
    while True:
        context = _context(plan)
        with _engine(plan, context) as engine:  # new workers each time: they remember what the parts were
            convert_parts(plan, engine, known, say, again)
            if plan.share is not None:
                check_source(plan)
                return None
            totals = _counted(plan, context, say)
            shards = write_shards(plan, engine, context, totals)
            if isinstance(shards, WrittenShards):
                check_source(plan)
                return finish(plan, engine, context, totals, shards), totals
        plan, known, again = _with_parts_discarded(plan, shards), _still_known(plan, shards), True


def _context(plan: ConversionPlan) -> WorkerContext:
    return WorkerContext(plan.source, plan.settings, plan.work, [task.unit.name for task in plan.tasks], plan.digest)


def _joined(plan: ConversionPlan) -> contextlib.AbstractContextManager[Any]:
    """Where the work needs a cluster, be in it before anything is made or overwritten. Raises Error."""
    if plan.engine == "ray":
        from mlpdata.system.ray_engine import joined

        return joined()
    return contextlib.nullcontext()


def _engine(plan: ConversionPlan, context: WorkerContext) -> Engine:
    if plan.engine == "ray":
        from mlpdata.system.ray_engine import RayEngine

        return RayEngine(plan.workers, context)
    return LocalEngine(min(plan.workers or cores(), len(plan.tasks)), context)


def _counted(plan: ConversionPlan, context: WorkerContext, say: Callable[[str], None]) -> Totals:
    """What the parts hold. Raises Error where the data set is not whole, or the disk cannot hold its shards."""
    totals = count_parts(plan, context)
    try:
        check_totals(plan, context, totals)
    except Error:
        check_source(plan)  # a source that was cut meanwhile holds no damaged images, and no fewer classes
        raise
    if n := totals.summary.num_repaired:
        are = "is stored as Pillow reads it" if n == 1 else "are stored as Pillow reads them"
        say(f"warning: {plural(n, 'JPEG')} that libjpeg warns about {are}, damage and all")
    check_space(plan.work, peak_disk_bytes(plan, totals.payload_bytes))
    return totals


def _with_parts_discarded(plan: ConversionPlan, needed: PartsNeeded) -> ConversionPlan:
    """Have the units converted again that the shards need otherwise."""
    if needed.do_not_decode:
        discard_shards(plan.work, plan.splits)
        plan = _decoding_all(plan, needed.units)
    for unit in needed.units:
        discard_part(plan.work, unit)
    return plan


def _still_known(plan: ConversionPlan, needed: PartsNeeded) -> set[str]:
    """Units whose parts are whole. Once shards were discarded that is unknown: parts may have been truncated."""
    return set() if needed.do_not_decode else {task.unit.name for task in plan.tasks} - needed.units


def _decoding_all(plan: ConversionPlan, units: set[str]) -> ConversionPlan:
    """The plan with nothing deferred in these units."""
    tasks = [replace(t, decodes_all=True) if t.unit.name in units else t for t in plan.tasks]
    return replace(plan, tasks=tasks)


# ------------------------------------------------------------------------------------------------------- messages


def _say_plan(plan: ConversionPlan, say: Callable[[str], None]) -> None:
    beton_codec, tar_codec = plan.settings.codecs
    files = []
    if beton_codec:
        is_padded = plan.beton_bytes > 1.5 * plan.estimate[0]
        pages = f", padded to pages of {PAGE_SIZE >> 20} MiB" if is_padded and plan.num_expected else ""
        files.append(f"beton ({beton_codec}, about {format_bytes(plan.beton_bytes)}{pages})")
    if tar_codec:
        files.append(f"tar ({tar_codec}, about {format_bytes(plan.estimate[1])})")
    count = plural(plan.num_expected, "image") if plan.num_expected else "an unknown number of images"
    say(
        f"{plan.spec.title}, {plan.source.release}: {count} to {plan.settings.resize.res} px in {plan.root}: "
        f"{' and '.join(files)}; the work needs at most about {format_bytes(plan.peak_bytes)} of disk"
    )
    if plan.filter_note:
        say(plan.filter_note)
    for note in plan.source.notes:
        say(note)
    for warning in plan.source.warnings:
        say(f"warning: {warning}")
    for warning in _of_class_names([name for name, _ in plan.source.classes]):
        say(f"warning: {warning}")
    num_images, num_classes = sum(task.unit.num_samples for task in plan.tasks), len(plan.source.classes)
    if plan.spec.wants_path and not plan.spec.archives and LEAST_SINGLES <= num_images < 2 * num_classes:
        say(
            f"warning: {plural(num_classes, 'class')} for {plural(num_images, 'image')}: are these the classes, and "
            "not a caption or an index?"
        )


def _of_class_names(names: list[str]) -> Iterator[str]:
    """What may be no intention in the names of the classes."""
    if pairs := keys.alike(names):
        one, other = map(ascii, pairs[0])
        more = f", and {plural(len(pairs) - 1, 'more pair')}" if len(pairs) > 1 else ""
        yield f"classes {one} and {other} look alike{more}, and stay different classes"
    if (label := keys.out_of_count(names)) is not None:
        yield f"the classes are numbers, and labels follow their order as text: class {names[label]} has label {label}"


def _say_done(plan: ConversionPlan, manifest: Manifest, totals: Totals, seconds: float, say) -> None:
    if manifest.fidelity:
        say(fidelity_line(manifest.fidelity))
    if totals.num_enlarged and not plan.spec.native_res and not isinstance(plan.source, ShardSource):
        say(
            f"warning: {totals.num_enlarged:,} of {plural(totals.num_samples, 'image')} enlarged to {manifest.res} px, "
            f"the smallest from {totals.smallest} px; --res {totals.smallest} enlarges none"
        )
    n, skipped, left_out = totals.num_samples, sum(totals.num_skipped.values()), totals.num_left_out
    num_bytes = sum(entry["bytes"] for entry in manifest.files.values())
    counts = ", ".join(f"{name} {info.num_samples:,}" for name, info in manifest.splits.items())
    dropped = len(plan.source.classes) - manifest.num_classes if plan.class_filter.min_class_size else 0
    omitted = [f"{dropped:,} of {plural(len(plan.source.classes), 'class')} too small"] if dropped else []
    omitted += [f"{skipped:,} skipped"] if skipped or not left_out else []
    omitted += [f"{plural(left_out, 'file')} left out"] if left_out else []
    say(
        f"done: {plural(n, 'image')} ({counts}), {', '.join(omitted)}, {format_bytes(num_bytes)} in {plan.root}, "
        f"{seconds:.1f} s, {format_rate(n / seconds)}"
    )


def fidelity_line(fidelity: Fidelity) -> str:
    if not fidelity["max_diff"]:
        return f"fidelity: pixels equal an exact decode, as measured on {plural(fidelity['num_samples'], 'image')}"
    line = (
        f"fidelity of the scaled JPEG decode: {fidelity['psnr_db']} dB PSNR against the exact decode on "
        f"{plural(fidelity['num_samples'], 'image')}, largest difference {fidelity['max_diff']}"
    )
    if fidelity.get("psnr_db_upper", fidelity["psnr_db"]) < LOW_FIDELITY_DB:
        return (
            f"warning: {line}: below {LOW_FIDELITY_DB:g} dB, fine detail differs visibly when images are enlarged; "
            "--decode exact decodes in full, which takes longer"
        )
    if fidelity["psnr_db"] < LOW_FIDELITY_DB:
        return f"{line}; too few images to tell whether it is below {LOW_FIDELITY_DB:g} dB"
    return line
