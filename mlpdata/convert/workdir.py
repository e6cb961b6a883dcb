"""The work directory `.convert/`: its paths, its lock, its space, and how a conversion is resumed from it.

Resume. What a conversion has done so far lies in `.convert/` inside the output directory. `plan.json` binds it to one
plan; a run with another plan is refused (binding.py). A unit of the source is done when the journal of its part,
`parts/UNIT.rows`, was renamed into place, a shard when its own, `shards/SHARD.arrow`, was. The next run looks at every
journal before it believes it: the checksum of a journal covers its content, the plan and the name of the unit or shard,
and the journal holds checksums of the payloads. What is damaged, or of another plan, counts as missing and is made
again, with the same bytes. Outputs below `plan.DURABLE_FROM_BYTES` are not synced as they are written: a later run
uses their parts and makes their shards anew, which takes seconds. The manifest comes last. Where it stands, a
`.convert/` beside it is what a killed run could not remove any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mlpdata.convert.part import DATA_SUFFIX, ROWS_SUFFIX
from mlpdata.errors import Error
from mlpdata.shards.manifest import Manifest, manifest_path, skipped_path, work_path
from mlpdata.system.format import format_bytes

WAIT_S = 2.0  # for the workers of a run that was just killed: they hold its lock for a moment


class WorkDir:
    """Every path in the work directory of one shard directory.

    >>> WorkDir(Path("out")).part("train-000000").as_posix()
    'out/.convert/parts/train-000000.rows'
    """

    def __init__(self, root: Path):
        self.root, self.path = root, work_path(root)
        self.parts = self.path / "parts"
        self.shards = self.path / "shards"  # the shards' journals; shards themselves are in the shard directory
        self.plan = self.path / "plan.json"  # what the directory is bound to: see binding.bind
        self.truncation = self.path / "assembling"  # stands while parts may be truncated: see truncation.begin
        self.labels = self.path / "labels.npy"  # the output's label of each of the source's
        self.skipped = self.path / skipped_path(root).name  # what could not be read, where there was too much of it

    def part(self, unit: str) -> Path:
        """The journal of a unit's part."""
        return self.parts / f"{unit}{ROWS_SUFFIX}"

    def journal(self, shard: str) -> Path:
        return self.shards / f"{shard}.arrow"

    def beton(self, split: str) -> Path:
        """The beton under way; `finish` moves it into the shard directory."""
        return self.path / f"{split}.beton"

    def part_rows(self, split: str) -> Path:
        """See shuffle.ShuffleTable."""
        return self.path / f"{split}.places"

    def pointers(self, split: str) -> Path:
        return self.path / f"{split}.pointers"

    def temporary(self, name: str) -> Path:
        return self.path / f"{name}.tmp"

    def lock(self, share: tuple[int, int] | None = None) -> Path:
        """share: (K, N), for the lock of one share; None for that of the whole."""
        return self.path / (f"lock-{share[0]}-of-{share[1]}" if share else "lock")

    def share_counts(self) -> set[int]:
        """The N of every share K/N whose lock was ever taken."""
        names = (re.fullmatch(r"lock-\d+-of-(\d+)", path.name) for path in self.path.iterdir())
        return {int(name[1]) for name in names if name}

    def foreign(self) -> str | None:
        """A name in the work directory that no conversion gives; None where there is none. All others are deleted."""
        named = (self.parts, self.shards, self.plan, self.truncation, self.labels, self.skipped)
        ours = re.compile(
            rf"{'|'.join(re.escape(path.name) for path in named)}|lock(-\d+-of-\d+)?|\.nfs\w+"
            r"|.+\.(beton|places|pointers|tmp)"
        )
        return next((path.name for path in self.path.iterdir() if not ours.fullmatch(path.name)), None)

    def num_bytes(self) -> int:
        """The disk space of all files here and in the shard directory."""
        total = 0
        for folder in (self.root, self.path, self.parts):
            if folder.is_dir():
                with os.scandir(folder) as entries:
                    total += sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in entries)
        return total


def prepare(work: WorkDir) -> None:
    """Make the work directory. What stands in the way of its folders and locks, being of the wrong kind, is removed."""
    work.path.mkdir(parents=True, exist_ok=True)
    for folder in (work.parts, work.shards):
        if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
            folder.unlink()
    work.parts.mkdir(exist_ok=True)
    for path in work.path.glob("lock*"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)


def tidy(work: WorkDir, shared: bool) -> None:
    """Remove what no run goes on with: temporary files of a killed run, and what is of the wrong kind.

    shared: other machines may be at work here, whose temporary files stay.
    """
    folders = (work.parts, work.shards)
    for folder in (work.path, *folders):
        if not folder.is_dir():
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if Path(entry.path) in folders:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                elif entry.is_symlink() or (entry.name.endswith(".tmp") and not shared):
                    os.unlink(entry.path)


def is_untouched(work: WorkDir) -> bool:
    """Whether no unit and no shard was ever finished here."""
    journals = (*work.parts.glob(f"*{ROWS_SUFFIX}"), *work.shards.glob("*"))
    return not journals and not work.truncation.exists()


def reset(work: WorkDir) -> None:
    """Remove all that was done, but for the locks that this run holds. What the directory is bound to goes first."""
    work.plan.unlink(missing_ok=True)
    for path in (work.truncation, *work.path.iterdir()):
        if path in (work.parts, work.shards):
            shutil.rmtree(path)
        elif not path.name.startswith("lock"):
            path.unlink(missing_ok=True)
    work.parts.mkdir()


def discard_part(work: WorkDir, unit: str) -> None:
    """Have a unit converted again."""
    work.part(unit).unlink(missing_ok=True)
    work.part(unit).with_suffix(DATA_SUFFIX).unlink(missing_ok=True)


def abandon(work: WorkDir) -> None:
    """Remove work that can come to nothing: it would only stand in the way of other options."""
    shutil.rmtree(work.path, ignore_errors=True)
    with contextlib.suppress(OSError):  # the folder holds something of somebody else's
        work.root.rmdir()


def clean_up(work: WorkDir, manifest: Manifest, splits: set[str]) -> None:
    """Remove the work directory, and what unfinished runs with other options left in the shard directory.

    splits: every name of a split that such files may have.
    """
    for path in own_files(work.root, splits):
        if path.name not in manifest.files and path != manifest_path(work.root):
            path.unlink(missing_ok=True)
    shutil.rmtree(work.path, ignore_errors=True)


def own_files(root: Path, splits: set[str]) -> list[Path]:
    """What has the name of a file of a shard directory with some of these splits, or of the usual ones."""
    names = "|".join(map(re.escape, splits | {"train", "val", "test"}))
    ours = re.compile(
        rf"(({names})(-\d{{6,}}\.tar|\.beton|\.index\.parquet|\.real\.json)|classes\.txt|skipped\.jsonl|_info\.json"
        r"|README\.md|manifest\.json)(\.tmp)?"
    )
    with os.scandir(root) as entries:
        found = [e.name for e in entries if ours.fullmatch(e.name) and not e.is_dir(follow_symlinks=False)]
    return [root / name for name in sorted(found)]


def check_space(work: WorkDir, needed: int) -> None:
    """Raise Error where the disk cannot hold `needed` bytes. What the work takes of it already counts as free."""
    root = work.root.absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    free += work.num_bytes()
    if needed > free:
        raise Error(
            f"no space for {work.root}: at its largest the work takes about {format_bytes(needed)}, "
            f"{format_bytes(free)} are free or already used by it; free some space, and the "
            "same command goes on from here"
        )


# ----------------------------------------------------------------------------------------------------------- lock


@contextlib.contextmanager
def locked(work: WorkDir, share: tuple[int, int] | None) -> Iterator[None]:
    """Hold a conversion's directory. Raises Error where another run does.

    share: (K, N) for one of N shares of a plan: machines that convert shares hold the directory together, and each
    holds its own share.
    """
    with contextlib.ExitStack() as stack:
        deadline = time.monotonic() + WAIT_S
        wanted = [(work.lock(), fcntl.LOCK_SH), (work.lock(share), fcntl.LOCK_EX)]
        for path, kind in wanted if share else [(work.lock(), fcntl.LOCK_EX)]:
            file = stack.enter_context(open(path, "a+"))
            try:
                while not _try_lock(file, kind):
                    if time.monotonic() > deadline:
                        raise Error(
                            f"another conversion is at work in {work.root}; wait for it, or choose another --out"
                        )
                    time.sleep(0.1)
            except OSError as e:
                raise Error(f"cannot lock {path}: {e.strerror}; choose another --out") from None
        yield


def _try_lock(file: IO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
