"""Trying again after a failure that may pass, with growing pauses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mlpdata.errors import Error

ATTEMPTS = 5  # failures in a row before we give up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 120.0  # pauses double; a server may ask for one as long as the longest
GAIN_BYTES = 64 << 10  # failures with fewer bytes between them are in a row

T = TypeVar("T")


class TransientError(Exception):
    """A failure that may be gone on the next try."""

    def __init__(self, reason: str, pause_s: float = 0.0):
        super().__init__(reason)
        self.pause_s = pause_s  # what the server asked for


class Backoff:
    """Growing pauses between tries. `say` is told the reason and the length of every pause, as one line."""

    def __init__(self, what: str, say: Callable[[str], None] | None = None):
        self.what, self._say, self._failures, self._gained = what, say, 0, 0

    def gained(self, num_bytes: int) -> None:
        """Count what arrived: from GAIN_BYTES on, the next failure counts as the first."""
        self._gained += num_bytes
        if self._gained >= GAIN_BYTES:
            self._failures = self._gained = 0

    def after(self, failure: TransientError, sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait before the next try. Raises Error after ATTEMPTS failures, or where the server wants a longer one."""
        self._failures += 1
        if self._failures >= ATTEMPTS:
            raise Error(f"{self.what}: {failure}; gave up after {ATTEMPTS} attempts") from None
        if failure.pause_s > LONGEST_PAUSE_S:
            raise Error(f"{self.what}: {failure}; the server asks to come back in {failure.pause_s:,.0f} s") from None
        pause = max(failure.pause_s, min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))
        if self._say:
            self._say(f"{self.what}: {failure}; trying again in {pause:.3g} s")
        sleep(pause)


def retry(what: str, attempt: Callable[[], T], say: Callable[[str], None] | None = None) -> T:
    """The result of attempt(), tried again where its failure is TransientError."""
    backoff = Backoff(what, say)
    while True:
        try:
            return attempt()
        except TransientError as e:
            backoff.after(e)
