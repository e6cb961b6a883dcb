"""Thread helpers: start now and wait later, or prefetch. Nothing waits for a thread that is gone."""

from __future__ import annotations

import atexit
import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
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


class WaitClock:
    """The seconds that a consumer waits for what one producer makes, which has itself nobody to wait for.

    What the producer is held up by (`held`) may be the consumer's own doing: a device that is behind with its work.
    """

    def __init__(self):
        self._waited = 0.0
        self._held: tuple[float, float | None] = 0.0, None  # (seconds so far, since when); one value: threads share it

    def pop(self) -> float:
        """The seconds since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The consumer waits."""
        before = self._seconds_of_producer()
        try:
            yield
        finally:
            self._waited += self._seconds_of_producer() - before

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The producer is held up, and waits for something that is not its own work."""
        total, _ = self._held
        started = time.perf_counter()
        self._held = total, started
        try:
            yield
        finally:
            self._held = total + time.perf_counter() - started, None

    def _seconds_of_producer(self) -> float:
        """Seconds, from anywhere, of which those in which the producer was held up are left out."""
        now, (total, since) = time.perf_counter(), self._held
        return now - total if since is None else min(now, since) - total


_END = object()
_local = threading.local()


def _stops() -> tuple[threading.Event, ...]:
    """What ends this thread, where it makes items ahead: the leaving of its iteration, or of one that this is for."""
    return getattr(_local, "stops", ())


def is_left() -> bool:
    """Whether this thread makes items ahead for an iteration that was left: it has nothing to wait for any more."""
    return any(stop.is_set() for stop in _stops())


def prefetch(items: Generator[T, None, None], depth: int, clock: WaitClock | None = None) -> Generator[T, None, None]:
    """The same items, made by a thread that runs up to `depth` of them ahead. Its errors are raised here.

    Leaving the iteration early ends the thread, and closes the generator that made the items. clock: counts how long
    the items are waited for.

    >>> list(prefetch((n * n for n in range(4)), depth=2))
    [0, 1, 4, 9]
    """
    ready: queue.Queue = queue.Queue(depth)
    stop, clock = threading.Event(), clock or WaitClock()
    stops = (*_stops(), stop)

    def put(item: object) -> bool:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def run() -> None:
        _local.stops, end = stops, _END
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
                with clock.waiting():
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
