"""One progress line for long work: live in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 0.1
SUSPICIOUS_S = 60.0


class Progress:
    """Counts samples and bytes and says, on stderr, the rate, the share done, the time left and what was skipped.

    total: samples expected; 0 where nobody knows, then share and time left are left out.
    """

    def __init__(self, title: str, total: int, unit: str = "images", quiet: bool = False):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.num_bytes = self.skipped = 0
        self.num_bytes_expected = (
            0  # where set, the share and the time left go by bytes: they are known, samples guessed
        )
        self._already = self._already_bytes = 0  # done in an earlier run: counts for the share, not for the rate
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._quiet = quiet
        self._start = self._last = self._finished = time.monotonic()
        self._shown = False

    def resume(self, done: int, num_bytes: int = 0, skipped: int = 0) -> None:
        """Count what an earlier run did."""
        self.done, self._already, self.skipped = self.done + done, self._already + done, self.skipped + skipped
        self.num_bytes, self._already_bytes = self.num_bytes + num_bytes, self._already_bytes + num_bytes

    def add(self, done: int, num_bytes: int = 0, skipped: int = 0) -> None:
        """Count finished work, and speak if it is time to."""
        self.done += done
        self.num_bytes += num_bytes
        self.skipped += skipped
        self._finished = time.monotonic()
        self._speak()

    def tick(self, busy: list) -> None:
        """Speak if it is time to, though nothing was finished; say what is waited for if it takes suspiciously long."""
        waited = time.monotonic() - self._finished
        self._speak(f", nothing finished for {duration(waited)}, at {busy[0]}" if waited > SUSPICIOUS_S else "")

    def _speak(self, more: str = "") -> None:
        if time.monotonic() - self._last >= (LIVE_EVERY_S if self._live else PLAIN_EVERY_S):
            self._say(more)

    def finish(self) -> None:
        """Say the last line, where anything was said before or the work took its time."""
        if self._shown or time.monotonic() - self._start > 1:
            self._say()
            if self._live and not self._quiet:
                self._print("", "\n")

    def line(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-6)
        rate = (self.done - self._already) / elapsed
        byte_rate = (self.num_bytes - self._already_bytes) / elapsed
        done, total, speed = self.done, self.total, rate
        if self.num_bytes_expected:
            done, total, speed = self.num_bytes, self.num_bytes_expected, byte_rate
        parts = [f"{self.title}: {self.done:,}"]
        if self.total:
            about = "about " if self.num_bytes_expected else ""
            parts[0] += f" of {about}{self.total:,} {self.unit}"
        else:
            parts[0] += f" {self.unit}"
        if total:
            parts[0] += f" ({min(1.0, done / total):.0%})"
        parts.append(f"{rate:,.0f} {self.unit}/s")
        if self.num_bytes:
            parts.append(f"{byte_rate / 1e6:,.0f} MB/s")
        if total and speed > 0:
            parts.append(f"{duration(max(0.0, (total - done) / speed))} left")
        parts.append(f"{self.skipped:,} skipped")
        return ", ".join(parts)

    def _say(self, more: str = "") -> None:
        self._last = time.monotonic()
        self._shown = True
        if self._quiet:
            return
        self._print(f"\r\x1b[2K{self.line()}{more}" if self._live else self.line() + more, "" if self._live else "\n")

    def _print(self, text: str, end: str) -> None:
        try:
            print(text, end=end, file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody is there to read it: no reason to stop
            self._quiet = True


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3:20 min, 5:07 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
