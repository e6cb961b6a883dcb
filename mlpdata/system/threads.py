"""Thread helpers: start now and wait later, or prefetch. Nothing waits for a thread that is gone."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from mlpdata.errors import Error

Wait = Callable[[], None]  # waits until work that was begun is no_wait; raises its first error; may be called again


def cores() -> int:
    """How many cores this process may use; all of the machine where the system does not say (macOS)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def no_wait() -> None:
    """The Wait of work that was no_wait at once."""


class Threads:
    """Threads that begin when there is work for more than one."""

    def __init__(self, num_threads: int, name: str):
        self._num_threads, self._name = num_threads, name
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0  # of the process whose threads they are: a fork has none of them, and would wait for ever

    def start(self, function: Callable, work: list) -> Wait:
        """Begin to call the function for every piece of work."""
        if len(work) < 2 or self._num_threads < 2:
            for piece in work:
                function(piece)
            return no_wait
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = ThreadPoolExecutor(self._num_threads, self._name), os.getpid()
        pieces = iter(work)  # one for all threads: each takes the next piece when it is no_wait with its last

        def run() -> None:
            for piece in pieces:
                function(piece)

        running = [self._pool.submit(run) for _ in range(min(self._num_threads, len(work)))]

        def finish() -> None:
            wait(running)  # all of them, also after an error: they write where the caller says
            for future in running:
                future.result()

        return finish


def overlap(items: Iterator[tuple[Any, Wait]]) -> Generator[Any, None, None]:
    """Items that are no_wait, one after the other, while the one behind each is already under way."""
    begun: list[tuple[object, Wait]] = []
    try:
        for item, finish in items:
            if finish is no_wait and not begun:
                yield item
                continue
            begun.append((item, finish))
            if len(begun) == 2:
                begun[0][1]()
                yield begun.pop(0)[0]
        for item, finish in begun:
            finish()
            yield item
    finally:
        for _, finish in begun:  # what it writes to and reads from is somebody's again
            with contextlib.suppress(Exception):
                finish()
        items.close()  # pyright: ignore[reportAttributeAccessIssue]: callers pass generators


_END = object()


def prefetch(items: Iterator, depth: int) -> Generator[Any, None, None]:
    """The same items, made by a thread that runs up to `depth` of them ahead. Its errors are raised here.

    Leaving the iteration early ends the thread, and closes the generator that made the items.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        end = _END
        try:
            for item in items:
                if not put(item):
                    break
        except BaseException as e:
            end = e
        finally:
            items.close()  # pyright: ignore[reportAttributeAccessIssue]: callers pass generators
        put(end)

    thread = threading.Thread(target=run, name="mlpdata-ahead", daemon=True)
    entry, running = (stop, thread), _running  # local: at the end of the process `finally` may have no module any more
    thread.start()
    if threading.current_thread().name != thread.name:  # else the thread that this one works for ends it
        running.add(entry)
    try:
        while True:
            try:
                item = ready.get(timeout=5)
            except queue.Empty:
                if thread.is_alive() or not ready.empty():
                    continue
                raise Error("the thread that reads ahead is gone") from None
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()
        running.discard(entry)


_running: set[tuple[threading.Event, threading.Thread]] = set()


@atexit.register
def _stop_threads() -> None:
    """Python ends daemon threads by unwinding them wherever they are; inside torch that aborts the process."""
    running = list(_running)
    for stop, _ in running:
        stop.set()
    for _, thread in running:
        thread.join()
