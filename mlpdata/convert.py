"""An archive to a shard directory: plan units, convert them to parts, assemble shards in shuffled order, seal.

The bytes of every file follow from the data and the options alone: not from the number of workers, not from the order
in which they finished, not from how often the work was interrupted. `.convert/` inside the output directory holds the
work under way; finished parts and shards are found there again and not made twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xxhash

import mlpdata
from mlpdata import beton, datasets, image, publish, shards
from mlpdata.engines import LocalEngine
from mlpdata.manifest import (
    FORMAT_VERSION,
    Error,
    Manifest,
    SplitInfo,
    beton_path,
    index_path,
    manifest_path,
    skipped_path,
    sync_dir,
    work_path,
    write_atomic,
)
from mlpdata.parts import Part, Recipe, Summary, Task, cut_off
from mlpdata.progress import Progress
from mlpdata.sources import ClassFilter, Source

DURABLE_FROM_BYTES = 2 << 30  # smaller outputs are not synced part by part: a power cut costs them seconds
MEASURED = (16, 1024)  # fidelity is measured on one sample in 256, but on about this many at least and at most
FORMATS = {"beton": ["beton"], "tar": ["tar"], "both": ["beton", "tar"]}
CODECS = ("auto", "raw", "jpg", "png")
LOW_FIDELITY_DB = 35.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mlpdata convert` was asked for. Raises Error for values that make no sense."""

    dataset: str
    source: str | None = None
    res: int | None = None  # pixels a side; None: the data set's own
    format: str = "both"
    codec: str = "auto"
    quality: int = 90
    resize: str = "squash"
    filter: str = "box"
    out: Path | None = None
    splits: tuple[str, ...] = ()
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    seed: int = 0
    shard_size: int = 10_000
    limit: int | None = None  # samples a split
    max_skipped: float = 0.01
    min_class_size: int = 0  # classes with fewer images are left out
    val_per_class: int = 0  # images of each class, first by name, that become the split `val`
    classes: Path | None = None  # file whose lines begin with the names of the classes to take, in label order
    quiet: bool = False

    def __post_init__(self):
        for name, allowed in (
            ("format", FORMATS),
            ("codec", CODECS),
            ("resize", image.RESIZES),
            ("filter", image.FILTERS),
        ):
            if getattr(self, name) not in allowed:
                raise Error(f"{name} {getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.res is not None and not 1 <= self.res <= 1024:
            raise Error(f"res must be from 1 to 1024 pixels, not {self.res}")
        for name, low in (
            ("workers", 1),
            ("shard_size", 1),
            ("quality", 1),
            ("min_class_size", 0),
            ("val_per_class", 0),
        ):
            if getattr(self, name) < low:
                raise Error(f"{name} must be at least {low}, not {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise Error(f"limit must be at least 1, not {self.limit}")
        if not 0 <= self.max_skipped <= 1:
            raise Error(f"max-skipped is a share from 0 to 1, not {self.max_skipped}")
        if not 0 <= self.seed < 2**63:
            raise Error(f"seed must be from 0 to 2^63 - 1, not {self.seed}")


@dataclass(frozen=True)
class Plan:
    """The work, settled before it starts."""

    spec: datasets.DatasetSpec
    source: Source
    options: Options
    res: int
    root: Path
    beton_codec: str | None
    tar_codec: str | None
    tasks: list[Task]
    splits: list[str]
    recipe: Recipe
    identity: dict  # equal identities give equal output; a work directory is only continued under its own

    @property
    def work(self) -> Path:
        return work_path(self.root)

    @property
    def parts(self) -> Path:
        return self.work / "parts"

    @property
    def assembling(self) -> Path:
        """Stands once all parts were whole, before the first of them is cut off."""
        return self.work / "assembling"


# ------------------------------------------------------------------------------------------------------------ run


def convert(options: Options, say=print) -> Manifest:
    """Convert a data set into a shard directory and return its manifest.

    say: called with a line at a time for the user. Continues an interrupted run of the same options; a finished one is
    left as it is. Raises Error when the work cannot be done or is incomplete; the directory then has no manifest.
    """
    started = time.monotonic()
    plan = make_plan(options)
    finished = _check_directory(plan)
    if finished:
        say(f"{plan.root} already holds exactly this: nothing to do")
        return finished
    plan.parts.mkdir(parents=True, exist_ok=True)
    with _lock(plan.work):
        _check_plan(plan)
        say(_announce(plan))
        state = shards.State(plan.source, plan.recipe, plan.root, plan.beton_codec, plan.tar_codec)
        with LocalEngine(min(options.workers, len(plan.tasks)), state) as engine:
            try:
                found = _convert_parts(plan, engine, say)
                _check_skipped(plan, found)
                made = _assemble(plan, engine, found)
                manifest = _seal(plan, engine, found, made)
            except KeyboardInterrupt:
                engine.close()
                raise Error(f"stopped; what is done stays in {plan.work}: the same command goes on from here") from None
            except OSError as e:
                where = f": {e.filename}" if e.filename else ""
                raise Error(f"{e.strerror or e}{where}; run the same command again to go on from here") from None
        shutil.rmtree(plan.work)
    _say_done(plan, manifest, found, time.monotonic() - started, say)
    return manifest


def make_plan(options: Options) -> Plan:
    """Open the source, list its units and settle every choice. Raises Error for a bad source or impossible options."""
    spec = datasets.get(options.dataset)
    res = options.res or spec.res
    class_filter = _class_filter(options)
    source = datasets.open_source(spec, options.source, res=res, seed=options.seed, class_filter=class_filter)
    units = source.units()
    available = list(source.splits or dict.fromkeys(unit.split for unit in units))
    splits = [_split_name(name, available, spec.name) for name in dict.fromkeys(options.splits)] or available
    tasks: list[Task] = []
    for split in source.splits or splits:
        left = options.limit
        for unit in units:
            if unit.split == split and (left is None or left > 0):
                tasks.append(Task(unit, left))
                if left is not None:
                    left -= unit.num_samples
    if not tasks:
        raise Error(f"{spec.name}: nothing to convert; the source has no images")
    formats = FORMATS[options.format]
    tar_codec = options.codec
    if options.codec == "auto":
        tar_codec = "jpg" if source.codec == "jpg" else "png"
    tar_codec = tar_codec if "tar" in formats else None
    beton_codec = ("jpg" if options.codec == "jpg" else "raw") if "beton" in formats else None
    root = Path(options.out or Path("shards") / f"{spec.name}-{res}")
    expected = sum(_expected(task) for task in tasks)
    identity = {
        "format_version": FORMAT_VERSION,
        "tool_version": mlpdata.__version__,
        "command": _command(spec, options, res, splits),
        "release": source.release,
        "source_files": {Path(f).name: _fingerprint(Path(f)) for f in source.files},
        "units": xxhash.xxh3_64_hexdigest(repr([(t.unit, t.limit) for t in tasks]).encode()),
        "classes": xxhash.xxh3_64_hexdigest(repr(source.classes).encode()),
        "image_library": image.library_versions(),
    }
    recipe = Recipe(
        resize=image.Resize(res, options.resize, options.filter),
        keep_pixels=beton_codec == "raw" or tar_codec == "raw",
        encoding=next((c for c in (tar_codec, beton_codec) if c in ("jpg", "png")), None),
        quality=options.quality,
        seed=options.seed,
        measure_one_in=max(1, expected // min(max(expected // 256, MEASURED[0]), MEASURED[1])),
        durable=sum(_estimate(expected, res, beton_codec, tar_codec)) > DURABLE_FROM_BYTES,
        splits=tuple(splits),
        training_split="train" if "train" in splits else splits[0],
    )
    return Plan(spec, source, options, res, root, beton_codec, tar_codec, tasks, splits, recipe, identity)


def _class_filter(options: Options) -> ClassFilter:
    names = None
    if options.classes is not None:
        try:
            lines = Path(options.classes).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as e:
            raise Error(f"cannot read --classes {options.classes}: {getattr(e, 'strerror', None) or e}") from None
        names = tuple(line.split("\t")[0].strip() for line in lines if line.strip())
        if not names or len(set(names)) < len(names):
            raise Error(f"--classes {options.classes} names {'a class twice' if names else 'no classes'}")
    return ClassFilter(min_class_size=options.min_class_size, val_per_class=options.val_per_class, classes=names)


def _split_name(name: str, available: list[str], dataset: str) -> str:
    if name in available:
        return name
    others = [s for s in available if s != "train"]
    if name in ("val", "test", "validation", "valid") and len(others) == 1:
        return others[0]
    raise Error(f"{dataset} has no split {name!r} with images; it has {', '.join(available)}")


def _expected(task: Task) -> int:
    return task.unit.num_samples if task.limit is None else min(task.limit, task.unit.num_samples)


def _estimate(n: int, res: int, beton_codec: str | None, tar_codec: str | None) -> tuple[int, int]:
    """About how many bytes the beton and the tars will have, from mean sizes of photographs at 32 and 64 pixels."""
    area = res * res
    payload = {"raw": 3 * area, "jpg": 0.4 * area + 750, "png": 2.15 * area + 650}
    beton_bytes = n * payload[beton_codec] if beton_codec else 0
    tar_bytes = n * (payload[tar_codec] + 4 * 512) if tar_codec else 0
    return int(beton_bytes), int(tar_bytes)


def _command(spec: datasets.DatasetSpec, options: Options, res: int, splits: list[str]) -> str:
    """The command that makes these bytes anywhere: without paths, and without what does not change the bytes."""
    words = ["mlpdata", "convert", spec.name, f"--res {res}", f"--format {options.format}", f"--codec {options.codec}"]
    words += [f"--resize {options.resize}", f"--filter {options.filter}", f"--quality {options.quality}"]
    words += [f"--split {name}" for name in splits]
    words += [f"--seed {options.seed}", f"--shard-size {options.shard_size}"]
    words += [f"--limit {options.limit}"] if options.limit else []
    words += [f"--min-class-size {options.min_class_size}"] if options.min_class_size else []
    words += [f"--val-per-class {options.val_per_class}"] if options.val_per_class else []
    words += [f"--classes {Path(options.classes).name}"] if options.classes else []
    return " ".join(words)


def _fingerprint(path: Path) -> dict:
    """Enough of a file to notice another one under its name, without reading a terabyte: its size and both ends."""
    if path.is_dir():
        return {}
    size = path.stat().st_size
    with open(path, "rb") as f:
        ends = f.read(1 << 20)
        f.seek(max(0, size - (1 << 20)))
        ends += f.read(1 << 20)
    return {"bytes": size, "xxh3_of_ends": xxhash.xxh3_64_hexdigest(ends)}


# ---------------------------------------------------------------------------------------------- directory and lock


def _check_directory(plan: Plan) -> Manifest | None:
    """The manifest, if the directory is finished and holds just this. Raises Error if it holds anything else."""
    root = plan.root
    if manifest_path(root).exists():
        manifest = Manifest.load(root)
        if manifest.command == plan.identity["command"] and manifest.source_files == plan.identity["source_files"]:
            if plan.work.exists():  # stopped between the manifest and the cleaning up
                shutil.rmtree(plan.work)
            return manifest
        raise Error(
            f"{root} holds another conversion ({manifest.command}); choose another --out, or delete that directory"
        )
    if root.exists() and not root.is_dir():
        raise Error(f"{root} is a file; choose another --out")
    if root.is_dir() and any(root.iterdir()) and not plan.work.is_dir():
        raise Error(f"{root} is not empty and no conversion of ours; choose another --out")
    need = sum(_estimate(sum(map(_expected, plan.tasks)), plan.res, plan.beton_codec, plan.tar_codec))
    have = shutil.disk_usage(next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())).free
    if 2 * need > have and not plan.work.is_dir():
        raise Error(
            f"no space for {root}: about {need / 1e9:.1f} GB of shards and as much in passing, {have / 1e9:.1f} GB free"
        )
    return None


class _lock:
    """Hold the work directory: a second run is refused; the lock goes with the process, however it ends."""

    def __init__(self, work: Path):
        self.path = work / "lock"

    def __enter__(self):
        self.file = open(self.path, "w")
        for attempt in range(20):  # orphaned workers of a run that was just killed hold it for a moment
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                time.sleep(0.1 if attempt < 19 else 0)
        raise Error(f"another conversion is at work in {self.path.parent.parent}; wait for it, or choose another --out")

    def __exit__(self, *_):
        self.file.close()


def _check_plan(plan: Plan) -> None:
    path = plan.work / "plan.json"
    if not path.exists():
        write_atomic(path, json.dumps(plan.identity, indent=1).encode())
        return
    try:
        theirs = json.loads(path.read_text())
    except ValueError:
        theirs = {}
    if theirs != plan.identity:
        differs = next((k for k in plan.identity if theirs.get(k) != plan.identity[k]), "plan")
        raise Error(
            f"{plan.root} holds an unfinished conversion with another {differs} "
            f"({theirs.get('command', 'unreadable')}); finish it with its own options, "
            "choose another --out, or delete the directory"
        )


def _announce(plan: Plan) -> str:
    n = sum(map(_expected, plan.tasks))
    beton_bytes, tar_bytes = _estimate(n, plan.res, plan.beton_codec, plan.tar_codec)
    files = []
    if plan.beton_codec:
        files.append(f"beton ({plan.beton_codec}, {_size(beton_bytes)})")
    if plan.tar_codec:
        files.append(f"tar ({plan.tar_codec}, {_size(tar_bytes)})")
    count = f"{n:,} images" if n else "an unknown number of images"
    return (
        f"{plan.spec.title}, {plan.source.release}: {count} to {plan.res} px in {plan.root}: "
        f"about {' and '.join(files)}, and as much in passing"
    )


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            return f"{num_bytes:,.0f} {unit}" if num_bytes >= 10 or unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000


# ---------------------------------------------------------------------------------------------------------- parts


@dataclass
class Found:
    """What all parts together hold."""

    stretches: dict[str, list[tuple[Part, int, int]]]  # split -> its rows in each part, in unit order
    skipped: list[dict]
    class_counts: dict[str, np.ndarray]  # by the source's labels
    total: Summary
    label_map: np.ndarray  # the source's label -> the output's; -1 for a class that is left out


def _convert_parts(plan: Plan, engine: LocalEngine, say) -> Found:
    journals = {task.unit.name: plan.parts / f"{task.unit.name}.arrow" for task in plan.tasks}
    old = [name for name, path in journals.items() if path.exists()]
    if plan.assembling.exists():
        done = set(old)  # all were whole when that was written, and have been cut off since
    else:
        done = {name for name, ok in engine.map(shards.check_part, old) if ok}
    todo = [task for task in plan.tasks if task.unit.name not in done]
    progress = Progress("converting", sum(map(_expected, plan.tasks)), quiet=plan.options.quiet)
    if done:
        say(f"going on: {len(done)} of {len(plan.tasks)} units are done")
        finished = [Part(journals[name]) for name in done]
        progress.resume_at(sum(map(len, finished)), sum(len(p.skipped) for p in finished))
    for task, counts in engine.map(shards.convert_task, todo):
        progress.add(counts[0], task.unit.num_bytes, counts[1])
    progress.finish()
    sync_dir(plan.parts)

    num_classes = len(plan.source.classes)
    found = Found(
        {s: [] for s in plan.splits},
        [],
        {s: np.zeros(num_classes, np.int64) for s in plan.splits},
        Summary(),
        np.arange(num_classes),
    )
    for task in plan.tasks:
        part = Part(journals[task.unit.name])
        found.skipped += part.skipped
        found.total.add(part.summary)
        for split, (start, stop) in part.splits.items():
            found.stretches[split].append((part, start, stop))
            found.class_counts[split] += np.bincount(part.column("label")[start:stop], minlength=num_classes)
    found.skipped.sort(key=lambda s: (s["split"], s["source"], s["reason"]))
    if plan.source.drops_empty_classes:
        kept = sum(found.class_counts.values()) > 0
        found.label_map = np.where(kept, np.cumsum(kept) - 1, -1)
    return found


def _check_skipped(plan: Plan, found: Found) -> None:
    for split, counts in found.class_counts.items():
        if not counts.sum():
            reason = f"; the first: {found.skipped[0]['reason']}" if found.skipped else ""
            raise Error(f"split {split!r} is empty: none of its images could be read{reason}")
    total = len(found.skipped) + sum(int(c.sum()) for c in found.class_counts.values())
    if len(found.skipped) > plan.options.max_skipped * total:
        listing = plan.work / skipped_path(plan.root).name
        publish.write_skipped(listing, found.skipped)
        raise Error(
            f"{len(found.skipped):,} of {total:,} images ({len(found.skipped) / total:.2%}) could not be read, "
            f"more than --max-skipped {plan.options.max_skipped:g}; they are listed in {listing}. "
            "The same command with a larger share goes on from here"
        )


# --------------------------------------------------------------------------------------------------------- shards


def _assemble(plan: Plan, engine: LocalEngine, found: Found) -> dict[str, list[shards.Made]]:
    """Write every shard that is not there yet. Returns what was made, per split and in order.

    The last split and the last shard come first: parts are laid out by split and hash, so what has been used is always
    their end, and is cut off.
    """
    folder = plan.work / "shards"
    if not plan.recipe.durable and folder.exists():
        shutil.rmtree(folder)  # unsynced shards are not trusted across runs; they are cheap to make again
    folder.mkdir(exist_ok=True)
    if plan.recipe.durable:
        write_atomic(plan.assembling, b"")
    np.save(plan.work / shards.LABELS, found.label_map)
    tasks = [task for split in sorted(plan.splits) for task in _shard_tasks(plan, split, found.stretches[split])]
    made = {task.name: shards.read_made(plan.work, task.name) for task in tasks if shards.is_made(plan.work, task.name)}
    progress = Progress("writing shards", sum(len(task) for task in tasks), quiet=plan.options.quiet)
    progress.resume_at(sum(len(task) for task in tasks if task.name in made), 0)
    unused = list(tasks)
    for task, result in engine.map(shards.write_shard, [t for t in reversed(tasks) if t.name not in made]):
        made[task.name] = result
        progress.add(len(task), result.num_bytes)
        while plan.recipe.durable and unused and unused[-1].name in made:
            _cut_off(plan, unused.pop())
    progress.finish()
    return {split: [made[task.name] for task in tasks if task.split == split] for split in plan.splits}


def _cut_off(plan: Plan, task: shards.ShardTask) -> None:
    for name, start, _ in task.slices:
        cut_off(Part(plan.parts / f"{name}.arrow"), start)


def _shard_tasks(plan: Plan, split: str, stretches: list[tuple[Part, int, int]]) -> list[shards.ShardTask]:
    """Cut the order of a split into shards: each is a range of hashes, so a stretch of every part."""
    sorted_hashes = [part.column("hash")[start:stop] for part, start, stop in stretches]
    hashes = np.concatenate(sorted_hashes)
    order = np.argsort(hashes, kind="stable")
    edges = hashes[order[:: plan.options.shard_size]]  # the first hash of every shard
    # (parts, shards + 1): where in each part each shard starts; equal hashes stay together
    starts = np.stack([np.append(np.searchsorted(h, edges), len(h)) for h in sorted_hashes])
    firsts = np.concatenate(([0], np.cumsum(np.diff(starts, axis=1).sum(axis=0))))
    starts += np.array([start for _, start, _ in stretches])[:, None]
    plan_layout = None
    if plan.beton_codec:
        kind = "pixels" if plan.beton_codec == "raw" else "encoded"
        sizes = np.concatenate([part.column(f"{kind}_bytes")[start:stop] for part, start, stop in stretches])[order]
        plan_layout = beton.layout(sizes)
        _prepare_beton(plan, split, plan_layout)
    tasks = []
    for k in range(len(edges)):
        used = np.flatnonzero(starts[:, k + 1] > starts[:, k])
        slices = [(stretches[i][0].name, int(starts[i, k]), int(starts[i, k + 1])) for i in used]
        first, last = int(firsts[k]), int(firsts[k + 1])
        rows = None
        if plan_layout is not None:
            rows = (first, plan_layout.ptrs[first:last], plan_layout.alloc_table_ptr)
        tasks.append(shards.ShardTask(split, k, last - first, slices, rows))
    return tasks


def _prepare_beton(plan: Plan, split: str, layout: beton.Layout) -> None:
    tmp, final = shards.beton_work_path(plan.work, split), beton_path(plan.root, split)
    if final.exists() and not tmp.exists():  # an earlier run stopped between this rename and the manifest
        os.replace(final, tmp)
    if not tmp.exists() or tmp.stat().st_size != layout.file_bytes:
        if any((plan.work / "shards").glob(f"{split}-*.arrow")):
            raise Error(f"{tmp} is gone, and what it was made from; delete {plan.root} and convert again")
        beton.create(tmp, layout)


# ----------------------------------------------------------------------------------------------------------- seal


def _seal(plan: Plan, engine: LocalEngine, found: Found, made: dict[str, list[shards.Made]]) -> Manifest:
    """Write indexes, listings and the card, move the betons into place, and last of all write the manifest."""
    root, files, splits = plan.root, {}, {}
    paths = []
    for split in plan.splits:
        shards.write_index(index_path(root, split), plan.work, [m.name for m in made[split]])
        paths.append(index_path(root, split))
        if plan.beton_codec:
            paths.append(shards.beton_work_path(plan.work, split))
        if plan.tar_codec:
            for m in made[split]:
                files[m.name] = {"bytes": m.num_bytes, "sha256": m.sha256}
                paths.append(root / m.name)
        splits[split] = SplitInfo(
            num_samples=int(found.class_counts[split].sum()),
            num_skipped=sum(s["split"] == split for s in found.skipped),
            class_counts=found.class_counts[split][found.label_map >= 0].tolist(),
            beton=beton_path(root, split).name if plan.beton_codec else None,
            tars=[m.name for m in made[split]] if plan.tar_codec else [],
            tar_lengths=[m.num_samples for m in made[split]] if plan.tar_codec else [],
            index=index_path(root, split).name,
        )
    publish.write_skipped(skipped_path(root), found.skipped)
    mean, std = _mean_std(found.total)
    classes = [plan.source.classes[i] for i in np.flatnonzero(found.label_map >= 0)]
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        dataset=plan.spec.name,
        release=plan.source.release,
        source_files=plan.identity["source_files"],
        source_filter=_source_filter(plan, len(classes)),
        num_classes=len(classes),
        classes_sha256=publish.write_classes(root, classes),
        res=plan.res,
        resize=plan.options.resize,
        filter=plan.options.filter,
        formats=FORMATS[plan.options.format],
        codec=plan.options.codec,
        beton_codec=plan.beton_codec,
        tar_codec=plan.tar_codec,
        quality=plan.options.quality if found.total.num_encoded_here else None,
        seed=plan.options.seed,
        shard_size=plan.options.shard_size,
        image_library=plan.identity["image_library"],
        fidelity=_fidelity(found.total),
        mean=mean,
        std=std,
        splits=splits,
        files={},
        tool_version=mlpdata.__version__,
        command=plan.identity["command"],
    )
    paths += publish.write_documents(root, manifest, plan.spec.title, classes)
    paths.append(skipped_path(root))
    # The large files are synced and hashed by the workers, side by side.
    for path, (num_bytes, sha256) in engine.map(shards.seal_file, [(p, p.name not in files) for p in paths]):
        name = path[0].name
        files.setdefault(name, {"bytes": num_bytes, "sha256": sha256})
    for split in plan.splits:
        if plan.beton_codec:
            os.replace(shards.beton_work_path(plan.work, split), beton_path(root, split))
    sync_dir(root)
    manifest = replace(manifest, files=dict(sorted(files.items())))
    manifest.save(root)
    return manifest


def _source_filter(plan: Plan, kept: int) -> dict:
    """The filters on record; the classes they left out are counted, not assumed."""
    wanted = {k: getattr(plan.options, k) for k in ("limit", "min_class_size", "val_per_class")}
    record = {k: v for k, v in wanted.items() if v}
    if plan.options.min_class_size:
        record |= {"classes_found": len(plan.source.classes), "classes_kept": kept}
    if plan.options.classes:
        record["classes"] = Path(plan.options.classes).name
    return record


def _mean_std(total: Summary) -> tuple[list[float], list[float]]:
    """Per channel, on the scale of 0 to 1, from exact integer sums."""
    n = max(1, total.num_pixels)
    mean = [s / n for s in total.pixel_sum]
    variance = [max(0.0, q / n - m * m) for q, m in zip(total.pixel_sum_squared, mean, strict=True)]
    return [round(m / 255, 6) for m in mean], [round(v**0.5 / 255, 6) for v in variance]


def _fidelity(total: Summary) -> dict | None:
    if not total.num_measured:
        return None
    mse = total.measured_squared_error / total.measured_values
    psnr = 99.0 if mse == 0 else float(10 * np.log10(255**2 / mse))
    return {"num_samples": total.num_measured, "psnr_db": round(psnr, 2), "max_diff": total.measured_max_diff}


def _say_done(plan: Plan, manifest: Manifest, found: Found, seconds: float, say) -> None:
    n = sum(s.num_samples for s in manifest.splits.values())
    num_bytes = sum(f["bytes"] for f in manifest.files.values())
    counts = ", ".join(f"{name} {s.num_samples:,}" for name, s in manifest.splits.items())
    say(
        f"done: {n:,} images ({counts}), {len(found.skipped):,} skipped, {_size(num_bytes)} in {plan.root}, "
        f"{seconds:.1f} s, {n / seconds:,.0f} images/s"
    )
    if manifest.fidelity:
        f = manifest.fidelity
        line = (
            f"fidelity of the scaled decode: {f['psnr_db']} dB PSNR on {f['num_samples']} images, max {f['max_diff']}"
        )
        say(line if f["psnr_db"] >= LOW_FIDELITY_DB else f"warning: {line}: below {LOW_FIDELITY_DB:g} dB")
