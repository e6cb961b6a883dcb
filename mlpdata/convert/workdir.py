"""The work directory `.convert/`: every path in it, and how an interrupted conversion is resumed from it.

Resume. What a conversion has done so far lies in `.convert/` inside the output directory. `plan.json` binds it to one
plan; a run with another plan is refused (binding.py). A unit of the source is done when the journal of its part,
`parts/UNIT.rows`, was renamed into place, a shard when its own, `shards/SHARD.arrow`, was. The next run looks at every
journal before it believes it: the checksum of a journal covers its content, the plan and the name of the unit or shard,
and the journal holds checksums of the payloads. What is damaged, or of another plan, counts as missing and is made
again, with the same bytes. Outputs below `space.DURABLE_FROM_BYTES` are not synced as they are written: a later run
uses their parts and makes their shards anew, which takes seconds. The manifest comes last. Where it stands, a
`.convert/` beside it is what a killed run could not remove any more.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mlpdata.convert.part import DATA_SUFFIX, ROWS_SUFFIX
from mlpdata.shards.manifest import Manifest, manifest_path, skipped_path, work_path


@dataclass(frozen=True)
class WorkDir:
    """Every path in the work directory of one shard directory.

    >>> WorkDir(Path("out")).part("train-000000").as_posix()
    'out/.convert/parts/train-000000.rows'
    """

    root: Path  # of the shard directory

    @property
    def path(self) -> Path:
        return work_path(self.root)

    @property
    def parts(self) -> Path:
        return self.path / "parts"

    @property
    def shards(self) -> Path:
        """Of the shards' journals; the shards themselves are in the shard directory."""
        return self.path / "shards"

    @property
    def plan(self) -> Path:
        """What the directory is bound to: see binding.bind."""
        return self.path / "plan.json"

    @property
    def truncation(self) -> Path:
        """Stands while parts may be truncated: see truncation.begin."""
        return self.path / "assembling"

    @property
    def labels(self) -> Path:
        """The output's label of each of the source's, as an array."""
        return self.path / "labels.npy"

    @property
    def skipped(self) -> Path:
        """The samples that could not be read, where there were too many of them."""
        return self.path / skipped_path(self.root).name

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
    names = "|".join(map(re.escape, splits | {"train", "val", "test"}))
    ours = re.compile(
        rf"(({names})(-\d{{6,}}\.tar|\.beton|\.index\.parquet|\.real\.json)|classes\.txt|skipped\.jsonl|_info\.json"
        r"|README\.md|manifest\.json)(\.tmp)?"
    )
    for path in work.root.iterdir():
        if ours.fullmatch(path.name) and path.name not in manifest.files and path != manifest_path(work.root):
            with contextlib.suppress(OSError):  # a folder, which is nothing of ours
                path.unlink()
    shutil.rmtree(work.path, ignore_errors=True)
