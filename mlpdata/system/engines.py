"""Where units of work run: what every engine does, and processes on this machine.

An engine maps functions over tasks: every call gets the engine's one state object and a task. It never hangs: the death
of a worker is noticed at once and its task named, and workers whose parent dies end by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing as mp
import os
import signal
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Self

from mlpdata.errors import Error, first_line, lacks_memory
from mlpdata.system.progress import Progress

TICK_S = 1.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 1 << 30
UNGUARDED = 86  # exit status of a worker that ran into the script that started it
GUARD = (
    'workers import the script that starts them: put what it does below a line `if __name__ == "__main__":`, '
    "and run it again"
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the parent decides what they mean

# (task, its result) -> what they count for in a progress line: (samples, bytes, skipped), as `Progress.add` takes them.
Amount = Callable[[Any, Any], tuple[int, ...]]
Function = Callable[[Any, Any], Any]  # of the engine's state and a task
Tick = Callable[[list], None]  # of the tasks under way
Outcome = tuple[Any, Exception | None, str]  # of one call: (result, error, traceback); errors travel as values


def one_task(task: Any, result: Any) -> tuple[int, ...]:
    """The Amount of a progress line that counts tasks."""
    return (1,)


class Engine(ABC):
    """What both engines do; also a context manager that stops the work."""

    def map(
        self, function: Function, tasks: Iterable[Any], progress: Progress | None = None, amount: Amount = one_task
    ) -> Iterator[tuple[Any, Any]]:
        """Run function(state, task) for every task; yields (task, result) as they finish, in any order.

        progress: gets the `amount` of each result, and shows about every second how time passes and which task is
                  waited for. The caller finishes it.
        Raises the worker's own Error, or RuntimeError with the worker's traceback for anything else, or Error naming
        the task of a worker that died.
        """
        for task, (result, error, trace) in self._outcomes(function, iter(tasks), progress.tick if progress else _wait):
            if error is not None:
                raise error if isinstance(error, Error) else RuntimeError(f"in a worker, at {task}:\n{trace}")
            if progress:
                progress.add(*amount(task, result))
            yield task, result

    @abstractmethod
    def _outcomes(self, function: Function, tasks: Iterator[Any], tick: Tick) -> Iterator[tuple[Any, Outcome]]:
        """(task, outcome) as they finish. tick: called about every second in which nothing finishes."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers at once, whatever they do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _wait(busy: list) -> None:
    """The tick of work that shows no progress."""


def attempt(function: Callable, state: Any, task: Any) -> Outcome:
    """Call function(state, task) in a worker."""
    try:
        return function(state, task), None, ""
    except Error as e:
        return None, e, ""
    except OSError as e:
        what = f"{e.strerror or first_line(e)}{f': {e.filename}' if e.filename else ''}, at {task}"
        return None, Error(f"{what}; when that is mended, run the same command again"), ""
    except BaseException as e:
        if lacks_memory(e):
            return None, Error(f"out of memory at {task}: run the same command again with fewer --workers"), ""
        return None, RuntimeError(str(e)), traceback.format_exc()


# ---------------------------------------------------------------------------------------------------------- local


def process_context() -> SpawnContext | ForkContext:
    """How processes are started: `get_start_method()` says whether they are forks."""
    # Forking is the fast start (no imports again), and safe only while the process has one thread and no torch.
    safe = threading.active_count() == 1 and "torch" not in sys.modules and sys.platform.startswith("linux")
    return mp.get_context("fork") if safe else mp.get_context("spawn")


def leave_if_imported_by_worker() -> None:
    """End a spawned process that runs its parent's script again, as the import of an unguarded script does.

    To be called where a script begins to work. The parent says what is wrong: see `LocalEngine`. Raises Error in a
    process that may have no children.
    """
    if getattr(mp.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)
    if mp.current_process().daemon:
        raise Error("a daemonic process, as multiprocessing.Pool has them, can start no workers: convert outside of it")


class LocalEngine(Engine):
    """Worker processes on this machine, one task at a time each.

    state: pickled to each worker once (inherited where forked).
    """

    def __init__(self, num_workers: int, state: Any):
        leave_if_imported_by_worker()
        context = process_context()
        self._workers = []
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until the worker has set its own handlers
        try:
            for _ in range(num_workers):
                ours, theirs = context.Pipe()
                # A forked child inherits the pipe ends of its elder siblings; it has to close them, or an end would
                # outlive its owner and nobody would see it close.
                inherited = [ours, *(w.pipe for w in self._workers)] if context.get_start_method() == "fork" else []
                process = context.Process(target=_work, args=(theirs, inherited, state), daemon=True)
                process.start()
                theirs.close()
                self._workers.append(_Worker(process, ours))
        except BaseException:
            self.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _outcomes(self, function: Function, tasks: Iterator[Any], tick: Tick) -> Iterator[tuple[Any, Outcome]]:
        idle = list(self._workers)
        busy: dict[Any, tuple[_Worker, Any]] = {}
        while True:
            while idle and (task := next(tasks, None)) is not None:
                worker = idle.pop()
                try:
                    worker.pipe.send((function, task))
                except (BrokenPipeError, ConnectionResetError):
                    raise self._death(worker, task) from None
                busy[worker.pipe] = (worker, task)
            if not busy:
                return
            ready = wait(list(busy), TICK_S)
            if not ready:
                tick([task for _, task in busy.values()])
            for pipe in ready:
                worker, task = busy.pop(pipe)
                try:
                    outcome = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    raise self._death(worker, task) from None
                idle.append(worker)
                yield task, outcome

    def _death(self, worker: _Worker, task: Any) -> Error:
        worker.process.join(5)
        code = worker.process.exitcode
        if code == UNGUARDED:
            return Error(GUARD)
        how = f"was killed by signal {-code} (out of memory?)" if code and code < 0 else f"exited with status {code}"
        return Error(f"a worker {how} while at {task}; run the same command again to go on from here")

    def close(self) -> None:
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Any  # a Connection, whose class differs by system


def _work(pipe: Connection, inherited: list[Connection], state: Any) -> None:
    for other in inherited:
        other.close()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # follow the parent even when stopped or deep inside a library
        # Units are alike: memory that is given back to the system is needed again, and zeroed, a moment later.
        for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            with contextlib.suppress(AttributeError):  # another C library than glibc
                libc.mallopt(setting, KEEP_BYTES)
    threading.Thread(target=_follow_parent, daemon=True).start()
    gc.disable()  # units make millions of small objects and no cycles; collecting takes a tenth of the time
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(attempt(function, state, task))
        except (BrokenPipeError, ConnectionResetError):
            return


def _follow_parent() -> None:
    parent = mp.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
