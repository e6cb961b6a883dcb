"""Whose directory it is: what an output directory holds, and whether a plan may write there or go on there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import xxhash

from mlpdata.convert.plan import ConversionPlan
from mlpdata.convert.record import option_difference
from mlpdata.convert.workdir import clean_up, is_untouched, own_files, reset
from mlpdata.errors import Error, first_line, reading
from mlpdata.shards.classes import classes_text
from mlpdata.shards.files import difference
from mlpdata.shards.manifest import Manifest, card_path, index_path, made_from, manifest_path
from mlpdata.shards.text import open_file
from mlpdata.sources.keys import listed
from mlpdata.system.files import in_the_way, resolved, sync_dir

# For people: fields of an identity whose values say something, and others.
PLAIN = {"tool_version": "mlpdata", "release": "the release of the source", "format_version": "the format version"}
OTHERS = {"image_library": "version of the image libraries", "units": "list of images", "classes": "list of classes"}
OR_REPLACE = "delete that directory, or say --overwrite"
# What a manifest holds before anything long, and what a card ends with.
MARKS, MARKED_BYTES = (b'"classes_sha256"', b"\nMade by mlpdata "), 1 << 20


def check_place(plan: ConversionPlan) -> None:
    """Raise Error where the output directory holds anything but a conversion, or its source."""
    root, work = plan.root, plan.work.path
    if found := in_the_way(root):
        raise Error(f"{found}; choose another --out")
    for path in plan.stamps:
        if resolved(root) in (resolved(path), *resolved(path).parents):
            raise Error(f"the source {path} lies in {root}, whose files are deleted and written; choose another --out")
    if os.path.lexists(work):
        if work.is_symlink() or not work.is_dir():
            raise Error(f"{work} is not the folder that an unfinished conversion leaves; remove it")
        if foreign := plan.work.foreign():
            raise Error(f"{work / foreign} does not belong to a conversion; move it away, or choose another --out")
    elif root.is_dir() and any(root.iterdir()) and not os.path.lexists(manifest_path(root)):
        raise Error(f"{root} is not empty and not a conversion of mlpdata; choose another --out, or delete it")


def finished_manifest(plan: ConversionPlan) -> Manifest | None:
    """The manifest, if the directory is finished and holds just what the plan makes.

    None where there is work to do, also on a finished directory of which something is missing, cut or changed: see
    `begin_again`. Raises Error for the finished directory of another plan.
    """
    if not os.path.lexists(manifest_path(plan.root)):
        return None
    manifest = _own_manifest(plan)
    if _damage(plan.root, manifest):
        return None
    if plan.work.path.is_dir():  # a run was stopped between writing the manifest and cleaning up
        clean_up(plan.work, manifest, plan.all_splits)
    return manifest


def _own_manifest(plan: ConversionPlan) -> Manifest:
    """The manifest of a finished directory. Raises Error where it is damaged, or not of this plan."""
    try:
        manifest = Manifest.load(plan.root)
    except Error as e:
        raise Error(f"{first_line(e).rpartition(';')[0] or e}; choose another --out, {OR_REPLACE}") from None
    asked, there = plan.draft.source_files, manifest.source_files
    if differs := option_difference(plan.draft.command, manifest.command):
        raise Error(
            f"{plan.root} holds another conversion{made_from(there)}: {differs}; choose another --out, {OR_REPLACE}"
        )
    if plan.draft.parents and not _same_parents(manifest, plan.draft):
        raise Error(
            f"{plan.root} was made from other shard directories, or from other samples of them; choose "
            f"another --out, {OR_REPLACE}"
        )
    if plan.draft.parents and hashlib.sha256(classes_text(plan.source.classes).encode()).hexdigest() != (
        manifest.classes_sha256
    ):
        raise Error(f"{plan.root} holds the same with other names of classes; choose another --out, {OR_REPLACE}")
    if not _same_files(there, asked):
        raise Error(
            f"{plan.root} holds a conversion of another source: {_other_source(asked, there)}; choose another --out, "
            f"{OR_REPLACE}"
        )
    return manifest


def _other_source(asked: dict[str, dict], there: dict[str, dict]) -> str:
    """How the files of a source differ from those on record."""
    new, old = (made_from(files).removeprefix(", from ") for files in (asked, there))
    return f"asked for {new}, found {old}" if new != old else f"{new} was another one, or has changed since"


def _same_parents(manifest: Manifest, draft: Manifest) -> bool:
    """Whether two derived directories are of the same ones, and of the same of their samples."""
    return (manifest.parents, manifest.source_filter) == (draft.parents, draft.source_filter)


def _same_files(recorded: dict[str, dict], now: dict[str, dict]) -> bool:
    """Whether a source is what a manifest says of it. Older manifests say of a folder only its name."""
    return recorded.keys() == now.keys() and all(not mark or mark == now[name] for name, mark in recorded.items())


def _damage(root: Path, manifest: Manifest) -> str:
    """What is wrong with the first file of a finished directory that is missing, cut or changed; "" if none is.

    Files are read only if they were written after the manifest, which is written last: else their sizes must do.
    `mlpdata verify` reads all of them.
    """
    try:
        manifest.check_sizes(root)
        finished_at = manifest_path(root).stat().st_mtime_ns
        for name, entry in manifest.files.items():
            path = root / name
            if path.stat().st_mtime_ns > finished_at:
                with reading(path), open(path, "rb") as f:
                    if wrong := difference(f, entry):
                        return f"{path} {wrong}"
    except Error as e:
        return first_line(e).partition(";")[0]
    return ""


def begin_again(plan: ConversionPlan, say: Callable[[str], None]) -> None:
    """Make a finished directory unfinished of which something is missing, cut or changed, or that is overwritten."""
    if plan.overwrite:
        _overwrite(plan, say)
    elif os.path.lexists(manifest_path(plan.root)):
        manifest = _own_manifest(plan)
        say(f"warning: {_damage(plan.root, manifest)}: all of {plan.root} is made again")
        _remove_finished(plan.root, manifest)


def _overwrite(plan: ConversionPlan, say: Callable[[str], None]) -> None:
    """Remove whatever conversion the directory holds."""
    if os.path.lexists(manifest_path(plan.root)):
        try:
            manifest = Manifest.load(plan.root)
        except Error as e:
            _remove_recognised(plan.root, e, say)
        else:
            say(f"{plan.root} is overwritten: it held {manifest.made_by}")
            _remove_finished(plan.root, manifest)
    if plan.work.plan.exists() or not is_untouched(plan.work):
        say(f"{plan.root} is overwritten: the unfinished conversion in it is removed")
        reset(plan.work)


def _remove_recognised(root: Path, error: Error, say: Callable[[str], None]) -> None:
    """Remove a conversion whose manifest is damaged: what has our names, where manifest or card still say it is ours.

    Raises Error where they do not.
    """
    if not any(map(_is_marked, (manifest_path(root), card_path(root)))):
        why = first_line(error).partition(";")[0]
        raise Error(f"{why}, and {root} does not look like a shard directory: delete it, or choose another --out")
    ending = index_path(root, "").name
    splits = {path.name.removesuffix(ending) for path in root.glob(f"?*{ending}")}
    removed = own_files(root, splits)
    say(f"{root} is overwritten: {first_line(error)}; removed: {listed([path.name for path in removed], 6, 'more')}")
    for path in sorted(removed, key=lambda path: path != manifest_path(root)):
        path.unlink()
        sync_dir(root)


def _is_marked(path: Path) -> bool:
    """Whether a manifest, damaged as it may be, or a card is of ours."""
    try:
        with open_file(path) as f:
            text = f.read(MARKED_BYTES)
    except (OSError, ValueError):
        return False
    return any(mark in text for mark in MARKS)


def _remove_finished(root: Path, manifest: Manifest) -> None:
    """The manifest goes first: what is left if this is interrupted is unfinished work."""
    manifest_path(root).unlink()
    sync_dir(root)
    for name in manifest.files:
        path = root / name
        if path.is_dir() and not path.is_symlink():
            raise Error(f"{path} is a folder; remove it, and run the same command again")
        path.unlink(missing_ok=True)


def bind(plan: ConversionPlan, say: Callable[[str], None]) -> None:
    """Bind the work directory to the plan, or raise Error where it is bound to another one."""
    path = plan.work.plan
    bound = _read_bound(path)
    if bound is None:
        if path.exists():
            say(f"warning: {path} was damaged and is written again; the other files are checked one by one")
            path.unlink()
        _write_bound(plan, path)
        bound = _read_bound(path)
        if bound is None:
            raise Error(f"{path} cannot be read back; run the same command again")
    identity = bound["identity"]
    is_ours = identity == plan.identity and not _changed(bound["stamps"], plan.stamps)
    if not is_ours and plan.share is None and is_untouched(plan.work):
        path.unlink()  # an earlier run failed before anything was made
        return bind(plan, say)
    is_of_it = identity.get("source_files", {}).keys() == plan.identity["source_files"].keys()
    is_of_it = is_of_it and identity.get("command") == plan.identity["command"]
    if is_of_it and (changed := _changed(bound["stamps"], plan.stamps)):
        raise Error(
            f"{changed} changed after the conversion in {plan.root} had begun: "
            f"delete {plan.root} and run the same command again, or put back what was there"
        )
    if identity != plan.identity:
        raise Error(
            f"{plan.root} holds another conversion{made_from(identity.get('source_files', {}))}, unfinished: "
            f"{_differences(plan.identity, identity)}; finish it as it was begun, choose another --out, {OR_REPLACE}"
        )


def _differences(asked: dict, there: dict) -> str:
    """In what two identities differ; they do."""
    if differs := option_difference(asked["command"], str(there.get("command"))):
        return differs
    if not _same_files(there.get("source_files", {}), asked["source_files"]):
        return _other_source(asked["source_files"], there.get("source_files", {}))
    names = [name for name in asked if asked[name] != there.get(name)]
    plain = [f"{PLAIN[name]} is {asked[name]}, was {there.get(name)}" for name in names if name in PLAIN]
    return "; ".join(plain) or f"another {' and another '.join(OTHERS[name] for name in names if name in OTHERS)}"


def check_source(plan: ConversionPlan) -> None:
    """Raise Error where the source is not what it was when it was opened."""
    if changed := _changed(plan.stamps, plan.source.stamps(str(plan.root))):
        raise Error(
            f"{changed} changed while it was read, so {plan.root} may hold a mixture: delete it and run the same "
            "command again"
        )


def _changed(before: dict[str, str], now: dict[str, str]) -> str:
    """The first of the source's files that is another now; "" where none is. The source may have been moved."""
    if len(before) != len(now):
        return next(iter(now), "the source")
    return next((path for (path, stamp), old in zip(now.items(), before.values(), strict=True) if stamp != old), "")


def _write_bound(plan: ConversionPlan, path: Path) -> None:
    body = json.dumps({"identity": plan.identity, "stamps": plan.stamps}, indent=1).encode()
    tmp = plan.work.temporary(f"plan.{os.uname().nodename}.{os.getpid()}")
    with open(tmp, "wb") as f:
        f.write(xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body)
        f.flush()
        os.fsync(f.fileno())
    try:
        os.link(tmp, path)  # of several machines that start at once, one is first
        tmp.unlink()
    except FileExistsError:
        tmp.unlink()
    except OSError:  # a file system without links
        os.replace(tmp, path)
    sync_dir(path.parent)


def _read_bound(path: Path) -> dict | None:
    """What the work directory is bound to; None where nothing says so. Raises Error for another version's."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    check, _, body = data.partition(b"\n")
    if check == xxhash.xxh3_64_hexdigest(body).encode():
        return json.loads(body)
    try:
        older = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(older, dict) and isinstance(older.get("tool_version"), str):
        raise Error(
            f"{path.parent.parent} holds an unfinished conversion of another mlpdata ({older['tool_version']:.20}); "
            "finish it with that, choose another --out, or delete the directory"
        )
    return None
