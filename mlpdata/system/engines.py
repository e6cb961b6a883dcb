"""Where units of work run: processes on this machine, or a Ray cluster.

An engine maps functions over tasks; every call gets the engine's one state object and a task. It never hangs: what dies
is noticed at once and its task named, and workers whose parent dies leave by themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing as mp
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any, Protocol

from mlpdata.errors import Error, first_line, lacks_memory
from mlpdata.system.progress import Progress

TICK_S = 1.0
CONNECT_S = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BYTES = 1 << 30
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the parent decides what they mean

# (task, its result) -> what they count for in a progress line: (samples, bytes, skipped), as `Progress.add` takes them.
Amount = Callable[[Any, Any], tuple[int, ...]]


def one_task(task: Any, result: Any) -> tuple[int, ...]:
    """The Amount of a progress line that counts tasks."""
    return (1,)


class Engine(Protocol):
    """What both engines do; also a context manager that stops the work."""

    def map(
        self,
        function: Callable[[Any, Any], Any],
        tasks: Iterable[Any],
        progress: Progress | None = None,
        amount: Amount = one_task,
    ) -> Iterator[tuple[Any, Any]]:
        """Run function(state, task) for every task; yields (task, result) as they finish, in any order.

        progress: the line that is kept: `amount` of each result is added to it, and about every second in which nothing
        finishes it shows the time and what is waited for. Whoever made it finishes it.
        Raises the worker's own Error, or RuntimeError with the worker's traceback for anything else, or Error naming
        the task of a worker that died.
        """

    def close(self) -> None:
        """Stop the workers at once, whatever they do."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *_) -> None: ...


def _attempt(function: Callable, state: Any, task: Any) -> tuple[Any, Exception | None, str]:
    """(result, error, traceback) of one call; errors travel as values."""
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


def _result(answer: tuple[Any, Exception | None, str], task: Any) -> Any:
    result, error, trace = answer
    if error is not None:
        raise error if isinstance(error, Error) else RuntimeError(f"in a worker, at {task}:\n{trace}")
    return result


def _count(result: Any, task: Any, progress: Progress | None, amount: Amount) -> Any:
    if progress:
        progress.add(*amount(task, result))
    return result


# ---------------------------------------------------------------------------------------------------------- local


def process_context():
    """How processes are started: `get_start_method()` says whether they are forks."""
    # Forking is the fast start (no imports again), and safe only while the process has one thread and no torch.
    safe = threading.active_count() == 1 and "torch" not in sys.modules and sys.platform.startswith("linux")
    return mp.get_context("fork" if safe else "spawn")


class LocalEngine:
    """Worker processes on this machine, one task at a time each.

    state: pickled to each worker once (inherited where forked).
    """

    def __init__(self, num_workers: int, state: Any):
        context = process_context()
        self._workers = []
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until a worker has its own mind of them
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

    def map(
        self,
        function: Callable[[Any, Any], Any],
        tasks: Iterable[Any],
        progress: Progress | None = None,
        amount: Amount = one_task,
    ) -> Iterator[tuple[Any, Any]]:
        """See Engine."""
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
            finished = wait(list(busy), TICK_S)
            if not finished and progress:
                progress.tick([task for _, task in busy.values()])
            for pipe in finished:
                worker, task = busy.pop(pipe)
                try:
                    answer = pipe.recv()
                except (EOFError, ConnectionResetError):
                    raise self._death(worker, task) from None
                idle.append(worker)
                yield task, _count(_result(answer, task), task, progress, amount)

    def _death(self, worker: _Worker, task: Any) -> Error:
        worker.process.join(5)
        code = worker.process.exitcode
        how = f"was killed by signal {-code} (out of memory?)" if code and code < 0 else f"exited with status {code}"
        return Error(f"a worker {how} while at {task}; run the same command again to go on from here")

    def close(self) -> None:
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
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # follow the parent even when stopped or deep inside a library
        # One unit is like the next: memory given back to the system would be fetched, zeroed, a moment later.
        for setting in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            with contextlib.suppress(AttributeError):  # another C library than glibc
                libc.mallopt(setting, KEEP_BYTES)
    threading.Thread(target=_follow_parent, daemon=True).start()
    gc.disable()  # units make millions of small objects and no cycles; looking for some costs a tenth of the time
    while True:
        try:
            function, task = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(_attempt(function, state, task))
        except (BrokenPipeError, ConnectionResetError):
            return


def _follow_parent() -> None:
    wait([mp.parent_process().sentinel])
    os._exit(1)


# ------------------------------------------------------------------------------------------------------------ Ray


class RayEngine:
    """Tasks on a Ray cluster that is already there (RAY_ADDRESS, or the one this machine belongs to).

    num_workers: tasks under way at once; None: the cluster's CPUs. A node that is lost costs the tasks it had at the
    time: they run again elsewhere. state.arrive() is called once in each of Ray's processes: it raises Error where the
    node is not fit for the work.
    """

    def __init__(self, num_workers: int | None, state: Any):
        try:
            import ray
        except ImportError:
            raise Error("--engine ray needs Ray: pip install 'mlpdata[ray]'") from None
        self._ray, self._num_workers = ray, num_workers
        ours = not ray.is_initialized()
        host, _, port = os.environ.get("RAY_ADDRESS", "").removeprefix("ray://").rpartition(":")
        try:
            if ours:
                if port.isdecimal():  # Ray itself would try for minutes
                    socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
                ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
        except OSError:
            raise Error("no Ray cluster found: `ray start --head` on one machine, or set RAY_ADDRESS") from None
        except Exception as e:
            raise Error(f"cannot join the Ray cluster: {first_line(e)}") from None
        self._close = ray.shutdown if ours else lambda: None
        # Waits for no node: one that is lost has its tasks started elsewhere, any number of times.
        self._run = ray.remote(num_cpus=1, max_retries=-1)(_run_on_node)
        self._name, self._state = f"{os.getpid()}-{id(self)}", ray.put(state)
        self._busy: dict[Any, Any] = {}

    def map(
        self,
        function: Callable[[Any, Any], Any],
        tasks: Iterable[Any],
        progress: Progress | None = None,
        amount: Amount = one_task,
    ) -> Iterator[tuple[Any, Any]]:
        """See Engine."""
        ray, busy, tasks = self._ray, self._busy, iter(tasks)
        while True:
            room = self._num_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            while len(busy) < room and (task := next(tasks, None)) is not None:
                busy[self._run.remote(function, self._name, [self._state], task)] = task
            if not busy:
                return
            finished, _ = ray.wait(list(busy), num_returns=1, timeout=TICK_S)
            if not finished and progress:
                progress.tick(list(busy.values()))
            for reference in finished:
                task = busy.pop(reference)
                try:
                    answer = ray.get(reference)
                except ray.exceptions.RayError as e:
                    text = str(e).strip().splitlines()
                    raise Error(
                        f"Ray could not run {task}: {text[-1] if text else type(e).__name__}; "
                        "mlpdata must be installed on every node; run the same command again to go on from here"
                    ) from None
                yield task, _count(_result(answer, task), task, progress, amount)

    def close(self) -> None:
        for reference in self._busy:
            with contextlib.suppress(Exception):  # it ends with us anyway
                self._ray.cancel(reference, force=True)
        self._busy.clear()
        self._close()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(self, *_) -> None:
        self.close()


_states: dict[str, Any] = {}  # in Ray's worker processes: the state of the run they last worked for


def _run_on_node(function: Callable, name: str, state: list, task: Any) -> tuple[Any, Exception | None, str]:
    if name not in _states:
        import ray

        arrived = ray.get(state[0])
        answer = _attempt(lambda state, task: state.arrive(), arrived, task)
        if answer[1] is not None:
            return answer
        _states.clear()
        _states[name] = arrived
        gc.disable()
    return _attempt(function, _states[name], task)
