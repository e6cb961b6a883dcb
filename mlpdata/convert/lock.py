"""The lock of a conversion's directory. It goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from typing import IO

from mlpdata.convert.workdir import WorkDir
from mlpdata.errors import Error

WAIT_S = 2.0  # for the workers of a run that was just killed: they hold its lock for a moment


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
