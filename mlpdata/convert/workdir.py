"""The directory of a conversion: whose it is, who is at work in it, whether the disk is large enough."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from mlpdata.convert.assembly import SHARDS
from mlpdata.convert.parts import keyed_check
from mlpdata.convert.plan import Plan, largest
from mlpdata.errors import Error, first_line
from mlpdata.shards.manifest import Manifest, manifest_path
from mlpdata.system.files import sync_dir, write_atomic
from mlpdata.system.format import format_bytes

WAIT_S = 2.0  # for the workers of a run that was just killed: they hold its lock for a moment


def check_directory(plan: Plan) -> Manifest | None:
    """The manifest, if the directory is finished and holds just this. Raises Error if it holds anything else.

    None where there is work to do, also on a finished directory that lost something: see `begin_again`.
    """
    root = plan.root
    if os.path.lexists(manifest_path(root)):
        manifest = _own_manifest(plan)
        if _loss(root, manifest):
            return None
        if plan.work.is_dir():  # stopped between the manifest and the cleaning up
            clean_up(plan, manifest)
        return manifest
    if root.exists() and not root.is_dir():
        raise Error(f"{root} is a file; choose another --out")
    if root.is_dir() and any(root.iterdir()) and not os.path.lexists(plan.work):
        raise Error(f"{root} is not empty and no conversion of ours; choose another --out, or delete it")
    if os.path.lexists(plan.work) and (plan.work.is_symlink() or not plan.work.is_dir()):
        raise Error(f"{plan.work} is not the folder that an unfinished conversion leaves; remove it")
    return None


def _own_manifest(plan: Plan) -> Manifest:
    """The manifest of a finished directory. Raises Error where it is damaged, or not of this plan."""
    root = plan.root
    try:
        manifest = Manifest.load(root)
    except Error as e:
        raise Error(f"{e}: choose another --out, or delete {root} first") from None
    if manifest.command != plan.identity["command"]:
        what = f"another conversion ({manifest.command})"
    elif not _same_files(manifest.source_files, plan.identity["source_files"]):
        what = "a conversion of another source, or of this one before it changed"
    else:
        return manifest
    raise Error(f"{root} holds {what}; choose another --out, or delete that directory")


def _same_files(recorded: dict[str, dict], now: dict[str, dict]) -> bool:
    """Whether a source is what a manifest says of it. Older ones say nothing of a folder but its name."""
    return recorded.keys() == now.keys() and all(not mark or mark == now[name] for name, mark in recorded.items())


def _loss(root: Path, manifest: Manifest) -> str:
    """The first file of a finished directory that is gone or has another size; "" where none is."""
    try:
        manifest.check_sizes(root)
    except Error as e:
        return first_line(e).partition(";")[0]
    return ""


def begin_again(plan: Plan, say: Callable[[str], None]) -> None:
    """Where a finished directory lost something, make it unfinished: the manifest goes first, then what it lists."""
    if not os.path.lexists(manifest_path(plan.root)):
        return
    manifest = _own_manifest(plan)
    say(f"warning: {_loss(plan.root, manifest)}: all of {plan.root} is made again")
    manifest_path(plan.root).unlink()
    sync_dir(plan.root)
    for name in manifest.files:
        path = plan.root / name
        if path.is_dir() and not path.is_symlink():
            raise Error(f"{path} is a folder; remove it, and run the same command again")
        path.unlink(missing_ok=True)


def prepare(plan: Plan) -> None:
    """Make the work directory. What has the wrong kind there is no use to anybody: it goes."""
    plan.work.mkdir(parents=True, exist_ok=True)
    for folder in (plan.parts, plan.work / SHARDS):
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            folder.unlink()
    plan.parts.mkdir(exist_ok=True)
    for path in plan.work.glob("lock*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def tidy(plan: Plan) -> None:
    """Remove what no run goes on with: temporary files of one that was killed, and what has the wrong kind."""
    folders = (plan.parts, plan.work / SHARDS)
    for folder in (plan.work, *folders):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if Path(entry.path) in folders:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.is_symlink() or (entry.name.endswith(".tmp") and plan.options.part is None):
                    os.unlink(entry.path)


def clean_up(plan: Plan, manifest: Manifest) -> None:
    """Remove the work directory, and files of runs with other options that did not come to their end."""
    names = "|".join(map(re.escape, {*plan.source.splits, *plan.splits, "train", "val", "test"}))
    ours = re.compile(
        rf"(({names})(-\d{{6,}}\.tar|\.beton|\.index\.parquet|\.real\.json)|classes\.txt|skipped\.jsonl|_info\.json"
        r"|README\.md|manifest\.json)(\.tmp)?"
    )
    for path in plan.root.iterdir():
        if ours.fullmatch(path.name) and path.name not in manifest.files and path != manifest_path(plan.root):
            with contextlib.suppress(OSError):  # a folder, which is nothing of ours
                path.unlink()
    shutil.rmtree(plan.work, ignore_errors=True)


def check_space(plan: Plan, payload_bytes: int | None = None) -> None:
    """Raise Error where the disk cannot hold the work at its largest. What is there of it already counts.

    payload_bytes: of all samples, once that is known; before, the plan's guess is taken.
    """
    need = plan.peak_bytes if payload_bytes is None else largest(payload_bytes)
    free = shutil.disk_usage(next(p for p in (plan.root.absolute(), *plan.root.absolute().parents) if p.exists())).free
    there = 0
    for folder in (plan.root, plan.work, plan.parts):
        if folder.is_dir():
            with os.scandir(folder) as entries:
                there += sum(e.stat(follow_symlinks=False).st_blocks * 512 for e in entries)
    if need > free + there:
        raise Error(
            f"no space for {plan.root}: at its largest the work takes about {format_bytes(need)}, "
            f"{format_bytes(free + there)} are free or in use by it already; the same command goes on when there is "
            "more"
        )


class Lock:
    """Hold a conversion's directory: a second run is refused. The lock goes with the process, however it ends.

    Machines that convert shares of one plan hold it together, and each holds its own share's.
    """

    def __init__(self, plan: Plan):
        self.root, share = plan.root, plan.options.part
        kind = fcntl.LOCK_SH if share else fcntl.LOCK_EX
        self._wanted = [(plan.work / "lock", kind)]
        if share:
            self._wanted.append((plan.work / f"lock-{share[0]}-of-{share[1]}", fcntl.LOCK_EX))
        self._files = []

    def __enter__(self) -> Lock:
        deadline = time.monotonic() + WAIT_S
        for path, kind in self._wanted:
            self._files.append(open(path, "a+"))
            while True:
                try:
                    fcntl.flock(self._files[-1], kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Error(
                            f"another conversion is at work in {self.root}; wait for it, or choose another --out"
                        ) from None
                    time.sleep(0.1)
                except OSError as e:
                    raise Error(f"cannot lock {path}: {e.strerror}; choose another --out") from None
        return self

    def __exit__(self, *_) -> None:
        for file in self._files:
            file.close()


def check_plan(plan: Plan, say: Callable[[str], None]) -> None:
    """Bind the work directory to the plan, or raise Error where it is bound to another one."""
    path = plan.work / "plan.json"
    theirs = _read_plan(path)
    if theirs is None:
        if path.exists():
            say(f"warning: {path} was damaged and is written anew; what else is there is looked at piece by piece")
            path.unlink()
        _write_plan(plan, path)
        theirs = _read_plan(path)
        if theirs is None:
            raise Error(f"{path} cannot be read back; run the same command again")
    identity = theirs["identity"]
    if identity.get("command") == plan.identity["command"] and _changed(theirs["stamps"], plan.stamps):
        raise Error(
            f"{_changed(theirs['stamps'], plan.stamps)} changed after the conversion in {plan.root} had begun: "
            f"delete {plan.root} and run the same command again, or put back what was there"
        )
    if identity != plan.identity:
        differs = next((k for k in plan.identity if identity.get(k) != plan.identity[k]), "plan")
        raise Error(
            f"{plan.root} holds an unfinished conversion with another {differs} "
            f"({identity.get('command', 'unreadable')}); finish it with its own options, "
            "choose another --out, or delete the directory"
        )


def check_source(plan: Plan) -> None:
    """Raise Error where the source is not what it was when it was opened."""
    if changed := _changed(plan.stamps, plan.source.stamps(str(plan.root))):
        raise Error(
            f"{changed} changed while it was read, and nobody can say what is in {plan.root} now: delete that and run "
            "the same command again"
        )


def _changed(before: dict[str, str], now: dict[str, str]) -> str:
    """The first of the source's files that is another now; "" where none is. It may have been moved."""
    if len(before) != len(now):
        return next(iter(now), "the source")
    return next((path for (path, stamp), old in zip(now.items(), before.values(), strict=True) if stamp != old), "")


def begin_with(plan: Plan, decoded: set[str]) -> None:
    """Note that shards are assembled from now on, and parts cut off.

    decoded: the units of which nothing is deferred: if their parts are lost they are made so again, or the order would
    be another.
    """
    body = json.dumps(sorted(decoded)).encode()
    write_atomic(plan.assembling, keyed_check(plan.digest, body).hexdigest().encode() + b"\n" + body)


def begun_with(plan: Plan) -> set[str] | None:
    """What `begin_with` noted; None where it did not, or that is damaged: then all is assembled anew."""
    try:
        check, _, body = plan.assembling.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    return set(json.loads(body)) if check == keyed_check(plan.digest, body).hexdigest().encode() else None


def _write_plan(plan: Plan, path: Path) -> None:
    body = json.dumps({"identity": plan.identity, "stamps": plan.stamps}, indent=1).encode()
    tmp = plan.work / f"plan.{os.uname().nodename}.{os.getpid()}.tmp"
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
    sync_dir(plan.work)


def _read_plan(path: Path) -> dict | None:
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
