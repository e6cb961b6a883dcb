"""The work directory `.export/` of an export under way: whose it is, what is done already, and how it ends.

Everything is written below `.export/data/` first. A piece is done when its journal, `.export/done/PIECE.json`, stands,
which is renamed into place after the piece's files. When all are done, the record is written to `.export/`, what lies
in `data/` is moved up, and the record follows as `export.json`: until then a reader of the export finds nothing or next
to nothing, and the same command goes on wherever it was interrupted.

Files are synced when all of them are written. What a run before the machine was last started has left is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from mlpdata.errors import Error
from mlpdata.export.record import is_export, load_record, record_path
from mlpdata.export.writer import Exported, Piece, Written
from mlpdata.system.files import in_the_way, replacing, resolved, sync_dir, write_atomic
from mlpdata.system.format import format_bytes

ANOTHER = "choose another -o, or delete it"


class ExportDir:
    """Every path of an export under way."""

    def __init__(self, root: Path):
        self.root, self.work = root, root / ".export"
        self.data = self.work / "data"
        self.done = self.work / "done"
        self.plan = self.work / "plan.json"
        self.lock = self.work / "lock"

    def journal(self, piece: Piece) -> Path:
        return self.done / f"{piece.name}.json"


def check_place(out: ExportDir, source: Path) -> None:
    """Raise Error where the output cannot be written to: it is something else, or lies in its source."""
    root, here = resolved(out.root), resolved(source)
    if here == root or here in root.parents:
        raise Error(f"-o {out.root} lies in {source}, the directory to export; choose a folder outside it")
    if root in here.parents:
        raise Error(f"-o {out.root} holds {source}, the directory to export; choose another folder")
    if found := in_the_way(out.root):
        raise Error(f"{found}; choose another -o")
    is_ours = is_export(out.root) or is_export(out.work)
    if out.root.is_dir() and not is_ours and any(path != out.work for path in out.root.iterdir()):
        raise Error(f"{out.root} is not empty and not an export of mlpdata; {ANOTHER}")


def begin(out: ExportDir, exported: Exported, command: str) -> None:
    """Bind the work directory to an export, or go on with it. Raises Error where it is another one's."""
    identity = {"command": command, "manifest_sha256": exported.manifest_sha256}
    bound = None
    if os.path.lexists(out.plan):
        try:
            bound = json.loads(out.plan.read_bytes())
            kept = {name: bound[name] for name in identity}
        except (OSError, ValueError, TypeError, KeyError):
            kept = bound = None
        if kept != identity:
            what = bound.get("command") if bound else None
            same = "another version of that directory" if what == command else f"{what or 'unreadable'!s:.200}"
            raise Error(f"{out.root} holds an unfinished export of something else ({same}); {ANOTHER}")
    if is_export(out.work):  # all of it was synced before the record was written
        return
    if (bound or {}).get("boot") != (boot := boot_id()) or not boot:
        shutil.rmtree(out.data, ignore_errors=True)
        shutil.rmtree(out.done, ignore_errors=True)
    out.data.mkdir(parents=True, exist_ok=True)
    out.done.mkdir(exist_ok=True)
    write_atomic(out.plan, json.dumps({**identity, "boot": boot}).encode())


def boot_id() -> str:
    """What tells one run of the machine from the next; "" where nothing does: only Linux says."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def read_done(out: ExportDir, piece: Piece) -> Written | None:
    """What an earlier run made of a piece; None where it is to be written."""
    try:
        written = Written(**json.loads(out.journal(piece).read_bytes()))
        sizes = {name: (out.data / name).stat().st_size for name in written.files}
    except (OSError, ValueError, TypeError):
        return None
    is_whole = all(sizes[name] == entry["bytes"] for name, entry in written.files.items())
    return written if is_whole and written.num_samples == len(piece.rows) else None


def note_done(out: ExportDir, piece: Piece, written: Written) -> None:
    """Keep what a piece became, for this run and a later one."""
    with replacing(out.journal(piece), sync=False) as f:
        f.write(json.dumps(asdict(written)).encode())


def check_space(root: Path, needed: int, written: int) -> None:
    """Raise Error where the disk cannot hold `needed` bytes, of which so many are written already."""
    root = root.absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    if needed - written > free:
        raise Error(
            f"no space for {root}: the export takes about {format_bytes(needed - written)} more, {format_bytes(free)} "
            "are free"
        )


def complete(out: ExportDir) -> None:
    """Move everything that was written to where it belongs, the record last. It may have been interrupted before."""
    for path in sorted(out.data.iterdir()):
        os.rename(path, out.root / path.name)
    sync_dir(out.root)
    if wrong := load_record(out.work).damage(out.root):
        raise Error(f"{wrong}; delete {out.root} and run the same command again")
    os.rename(record_path(out.work), record_path(out.root))
    sync_dir(out.root)
    clean_up(out)


def clean_up(out: ExportDir) -> None:
    shutil.rmtree(out.work, ignore_errors=True)


@contextlib.contextmanager
def locked(out: ExportDir) -> Iterator[None]:
    """Hold an output directory. Raises Error where another export is at work in it."""
    made = not out.root.exists()
    out.work.mkdir(parents=True, exist_ok=True)
    with open(out.lock, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink == 0:  # the run that held it has just removed it
                raise BlockingIOError
        except BlockingIOError:
            raise Error(f"another export is at work in {out.root}; wait for it, or choose another -o") from None
        except OSError as e:
            raise Error(f"cannot lock {out.lock}: {e.strerror}; choose another -o") from None
        try:
            yield
        finally:
            if out.work.exists() and not (out.done.exists() and any(out.done.iterdir())):  # nothing was done
                clean_up(out)
                if made:
                    with contextlib.suppress(OSError):  # it holds a finished export
                        out.root.rmdir()
