"""Where units of work run. One engine so far: processes on this machine.

An engine holds `num_workers` workers, each with its own copy of one state object, and maps functions over tasks. It
never hangs: a worker that dies is noticed at once and its task named; workers whose parent dies leave by themselves.
"""

from __future__ import annotations

import gc
import multiprocessing as mp
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

from mlpdata.manifest import Error


def _context():
    # Forking is the fast start (no imports again), and safe only while the process has one thread and no torch.
    safe = threading.active_count() == 1 and "torch" not in sys.modules and sys.platform.startswith("linux")
    return mp.get_context("fork" if safe else "spawn")


class LocalEngine:
    """Worker processes on this machine, one task at a time each.

    state: passed to every call as the first argument; pickled to each worker once (inherited where forked).
    """

    def __init__(self, num_workers: int, state: Any):
        context = _context()
        self._workers = []
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            # A forked child inherits the pipe ends of its elder siblings; it has to close them, or an end would
            # outlive its owner and nobody would see it close.
            inherited = [ours, *(w.pipe for w in self._workers)] if context.get_start_method() == "fork" else []
            process = context.Process(target=_work, args=(theirs, inherited, state), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))

    def map(self, function: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Run function(state, task) for every task; yields (task, result) as they finish, in any order.

        Raises the worker's own Error, or RuntimeError with the worker's traceback for anything else, or Error naming
        the task of a worker that died.
        """
        tasks = iter(tasks)
        idle = list(self._workers)
        busy: dict[Any, tuple[_Worker, Any]] = {}
        while True:
            while idle:
                task = next(tasks, None)
                if task is None:
                    break
                worker = idle.pop()
                try:
                    worker.pipe.send((function, task))
                except (BrokenPipeError, ConnectionResetError):
                    raise self._death(worker, task) from None
                busy[worker.pipe] = (worker, task)
            if not busy:
                return
            for pipe in wait(list(busy)):
                worker, task = busy.pop(pipe)
                try:
                    result, error, trace = pipe.recv()
                except (EOFError, ConnectionResetError):
                    raise self._death(worker, task) from None
                if error is not None:
                    raise error if isinstance(error, Error) else RuntimeError(f"in a worker, at {task}:\n{trace}")
                idle.append(worker)
                yield task, result

    def _death(self, worker: _Worker, task: Any) -> Error:
        worker.process.join(5)
        code = worker.process.exitcode
        how = f"was killed by signal {-code} (out of memory?)" if code and code < 0 else f"exited with status {code}"
        return Error(f"a worker {how} while at {task}; run the same command again to go on from here")

    def close(self) -> None:
        """Stop the workers at once, whatever they do."""
        for worker in self._workers:
            worker.pipe.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Worker:
    def __init__(self, process, pipe):
        self.process, self.pipe = process, pipe


def _work(pipe, inherited, state) -> None:
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    threading.Thread(target=_follow_parent, daemon=True).start()
    gc.disable()  # units make millions of small objects and no cycles; looking for some costs a tenth of the time
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = (function(state, task), None, "")
        except Error as e:
            answer = (None, e, "")
        except OSError as e:
            answer = (None, Error(f"{e.strerror or e}{f': {e.filename}' if e.filename else ''}, at {task}"), "")
        except BaseException as e:
            answer = (None, RuntimeError(str(e)), traceback.format_exc())
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return


def _follow_parent() -> None:
    wait([mp.parent_process().sentinel])
    os._exit(1)
