"""Thread helpers: start now and wait later, or prefetch. Nothing waits for a thread that is gone."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from mlpdata.errors import Error

Wait = Callable[[], None]  # waits until work that was started is done; raises its first error; may be called again
T = TypeVar("T")


def cores() -> int:
    """How many cores this process may use; all of the machine where the system does not say (macOS)."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def no_wait() -> None:
    """The Wait of work that was done at once."""


class Threads:
    """A pool of threads, which starts when there is work for more than one."""

    def __init__(self, num_threads: int, name: str):
        self._num_threads, self._name = num_threads, name
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0  # of the process whose threads they are: a fork has none of them, and would wait for ever

    def start(self, function: Callable[[T], None], work: list[T]) -> Wait:
        """Start to call the function for every piece of work."""
        if len(work) < 2 or self._num_threads < 2:
            for piece in work:
                function(piece)
            return no_wait
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = ThreadPoolExecutor(self._num_threads, self._name), os.getpid()
        pieces = iter(work)  # one iterator for all threads: each takes the next piece when it is done with its last

        def run() -> None:
            for piece in pieces:
                function(piece)

        running = [self._pool.submit(run) for _ in range(min(self._num_threads, len(work)))]

        def wait_for_all() -> None:
            wait(running)  # all of them, also after an error: they write where the caller says
            for future in running:
                future.result()

        return wait_for_all


def overlap(items: Generator[tuple[T, Wait], None, None]) -> Generator[T, None, None]:
    """Items whose work is done, in order, while the work of the next one is already under way."""
    started: list[tuple[T, Wait]] = []
    try:
        for item, wait_for_item in items:
            if wait_for_item is no_wait and not started:
                yield item
                continue
            started.append((item, wait_for_item))
            if len(started) == 2:
                started[0][1]()
                yield started.pop(0)[0]
        for item, wait_for_item in started:
            wait_for_item()
            yield item
    finally:
        for _, wait_for_item in started:  # the caller may use again what the work writes to and reads from
            with contextlib.suppress(Exception):
                wait_for_item()
        items.close()


_END = object()


def prefetch(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The same items, made by a thread that runs up to `depth` of them ahead. Its errors are raised here.

    Leaving the iteration early ends the thread, and closes the generator that made the items.

    >>> list(prefetch((n * n for n in range(4)), depth=2))
    [0, 1, 4, 9]
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item: object) -> bool:
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
            items.close()
        put(end)

    thread = threading.Thread(target=run, name="mlpdata-prefetch", daemon=True)
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
