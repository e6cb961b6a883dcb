"""The directory of a conversion: whose it is, who is at work in it, whether the disk is large enough."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time

from mlpdata.errors import Error
from mlpdata.manifest import Manifest, manifest_path, sync_dir
from mlpdata.plan import Plan, largest, size

WAIT_S = 2.0  # for the workers of a run that was just killed: they hold its lock for a moment


def check_directory(plan: Plan) -> Manifest | None:
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
    return None


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
            f"no space for {plan.root}: at its largest the work takes about {size(need)}, "
            f"{size(free + there)} are free or in use by it already; the same command goes on when there is more"
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


def check_plan(plan: Plan) -> None:
    """Bind the work directory to the plan, or raise Error where it is bound to another one."""
    path = plan.work / "plan.json"
    if not path.exists():
        tmp = plan.work / f"plan.{os.uname().nodename}.{os.getpid()}.tmp"
        with open(tmp, "w") as f:
            json.dump(plan.identity, f, indent=1)
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
