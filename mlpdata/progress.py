"""One progress line for long work: live in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 0.1


class Progress:
    """Counts samples and bytes and says, on stderr, the rate, the share done, the time left and what was skipped.

    total: samples expected; 0 where nobody knows, then share and time left are left out.
    """

    def __init__(self, title: str, total: int, unit: str = "images", quiet: bool = False):
        self.title, self.total, self.unit = title, total, unit
        self.done = self.num_bytes = self.skipped = 0
        self._already = 0  # done in an earlier run: counts for the share, not for the rate
        self._live = sys.stderr.isatty()
        self._quiet = quiet
        self._start = self._last = time.monotonic()
        self._shown = False

    def resume_at(self, done: int, skipped: int) -> None:
        """Count what an earlier run did."""
        self.done, self._already, self.skipped = done, done, skipped

    def add(self, done: int, num_bytes: int = 0, skipped: int = 0) -> None:
        """Count finished work, and speak if it is time to."""
        self.done += done
        self.num_bytes += num_bytes
        self.skipped += skipped
        if time.monotonic() - self._last >= (LIVE_EVERY_S if self._live else PLAIN_EVERY_S):
            self._say()

    def finish(self) -> None:
        """Say the last line, where anything was said before or the work took its time."""
        if self._shown or time.monotonic() - self._start > 1:
            self._say()
            if self._live and not self._quiet:
                print(file=sys.stderr)

    def line(self) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-6)
        rate = (self.done - self._already) / elapsed
        parts = [f"{self.title}: {self.done:,}"]
        if self.total:
            parts[0] += f" of {self.total:,} {self.unit} ({min(1.0, self.done / self.total):.0%})"
        else:
            parts[0] += f" {self.unit}"
        parts.append(f"{rate:,.0f} {self.unit}/s")
        if self.num_bytes:
            parts.append(f"{self.num_bytes / elapsed / 1e6:,.0f} MB/s")
        if self.total and rate > 0:
            parts.append(f"{max(0.0, (self.total - self.done) / rate):,.0f} s left")
        parts.append(f"{self.skipped:,} skipped")
        return ", ".join(parts)

    def _say(self) -> None:
        self._last = time.monotonic()
        self._shown = True
        if self._quiet:
            return
        if self._live:
            print(f"\r\x1b[2K{self.line()}", end="", file=sys.stderr, flush=True)
        else:
            print(self.line(), file=sys.stderr, flush=True)
