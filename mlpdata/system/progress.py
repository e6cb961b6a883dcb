"""One progress line for long work: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time

from mlpdata.errors import printable
from mlpdata.system.format import format_bytes, format_rate, format_seconds, inflected

PLAIN_EVERY_S = 5.0
LIVE_EVERY_S = 0.1
SHOW_AFTER_S = 0.5  # short work gets no bar, and does not pay for importing one
SUSPICIOUS_S = 60.0
LEAST_BAR = 8  # characters


def announce(line: str) -> None:
    """Show on stderr what is waited for, where no progress can be counted."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody is there to read it: no reason to stop
        print(f"\r\x1b[2K{line}" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


class Progress:
    """Counts samples and bytes, and shows on stderr the share done, the time left, the rate and what was skipped.

    total:       samples expected; 0 where nobody knows: the share and the time left are then not shown.
    unit:        the noun of what is counted; "bytes" are shown as MB or GB.
    total_bytes: where not 0, the share and the time left go by bytes: they are known, and `total` is a guess.
    after_s:     nothing is shown of work that takes no longer.

    As a context manager it shows the last line at the end, also of work that fails. `Engine.map` keeps it.
    """

    def __init__(
        self, title: str, total: int, unit: str = "image", quiet: bool = False, total_bytes: int = 0,
        after_s: float = 0.0,
    ):  # fmt: skip
        self.title, self.total, self.unit, self.total_bytes = printable(title), total, unit, total_bytes
        self.done = self.num_bytes = self.skipped = 0
        self._resumed = self._resumed_bytes = 0  # what an earlier run did counts for the share, not for the rate
        self._live = sys.stderr is not None and sys.stderr.isatty()
        self._quiet = quiet or sys.stderr is None
        self._start = self._last_add = time.monotonic()
        self._step = (0, 0)  # (samples, bytes) of the last `add`
        self._next = self._start + max(after_s, SHOW_AFTER_S if self._live else PLAIN_EVERY_S)
        self._end_from = self._start + max(after_s, 1.0)
        self._shown = False
        self._shown_done = -1

    def resume(self, done: int, num_bytes: int = 0, skipped: int = 0) -> None:
        """Count what an earlier run did."""
        self.done, self._resumed, self.skipped = self.done + done, self._resumed + done, self.skipped + skipped
        self.num_bytes, self._resumed_bytes = self.num_bytes + num_bytes, self._resumed_bytes + num_bytes

    def add(self, done: int, num_bytes: int = 0, skipped: int = 0) -> None:
        """Count work that is done, and show it if it is time to."""
        self.done += done
        self.num_bytes += num_bytes
        self.skipped += skipped
        self._step = (done, num_bytes)
        self._last_add = time.monotonic()
        self._show_in_time("")

    def tick(self, busy: list) -> None:
        """Show the time that passes while nothing is done; say what is waited for if that takes suspiciously long.

        busy: the tasks under way.
        """
        idle_s = time.monotonic() - self._last_add
        more = f", nothing finished for {format_seconds(idle_s)}, at {busy[0]}" if idle_s > SUSPICIOUS_S else ""
        self._show_in_time(printable(more))

    def finish(self) -> None:
        """Show the last line, where any was shown before or the work took its time; a plain one once only."""
        if not self._live and self._shown_done == self.done >= self.total:
            return
        if self._shown or time.monotonic() > self._end_from:
            self._show("", "\n")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.finish()

    def line(self) -> str:
        """The plain line."""
        share, left_s, rates = self._figures()
        last = self.total if self._has_total() else self.done
        noun = "" if self.unit == "bytes" else f" {inflected(self.unit, last)}"
        words = [f"{self.title}: {self._counts(' of ')}{noun}{'' if share is None else f' ({share:.0%})'}"]
        words += [f"after {format_seconds(self._elapsed_s())}", *rates]
        words += [] if left_s is None else [f"{format_seconds(left_s)} left"]
        return ", ".join([*words, *self._skips()])

    def bar(self, columns: int) -> str:
        """The line with a bar, of at most `columns` characters; what has no room for a bar beside it is left out."""
        from tqdm import tqdm

        share, left_s, rates = self._figures(smooth=True)
        counts, clock = self._counts("/"), tqdm.format_interval(self._elapsed_s())
        clock += "" if left_s is None else f"<{tqdm.format_interval(left_s)}"
        choices = [
            f"{counts} [{', '.join([clock, *rates, *self._skips()])}]",
            f"{counts} [{', '.join([clock, rates[0], *self._skips()])}]",
            f"[{', '.join([clock, rates[0], *self._skips()])}]",
            f"[{clock}]",
        ]
        room = columns - len(f"{self.title}: 100%||  ") - LEAST_BAR
        words = next((words for words in choices if len(words) <= room), choices[-1])
        if share is None:
            return f"{self.title}: {words}"[:columns]
        title, words = (text.replace("{", "{{").replace("}", "}}") for text in (self.title, words))
        return tqdm.format_meter(share, 1, 1, columns, bar_format=f"{title}: {{percentage:3.0f}}%|{{bar}}| {words}")

    def _elapsed_s(self) -> float:
        return max(time.monotonic() - self._start, 1e-6)

    def _figures(self, smooth: bool = False) -> tuple[float | None, float | None, list[str]]:
        """(share done, seconds left, rates as text); None where the total is not known.

        smooth: the share and the time left go on at the same speed since the last `add`, by one such `add` at most.
        """
        rate = (self.done - self._resumed) / self._elapsed_s()
        byte_rate = (self.num_bytes - self._resumed_bytes) / self._elapsed_s()
        rates = [f"{format_bytes(rate)}/s" if self.unit == "bytes" else format_rate(rate, self.unit)]
        rates += [f"{format_bytes(byte_rate)}/s"] if self.num_bytes else []
        done, total, speed, step = self.done, self.total if self._has_total() else 0, rate, self._step[0]
        if self.total_bytes:
            done, total, speed, step = self.num_bytes, self.total_bytes, byte_rate, self._step[1]
        if smooth:
            done += min(step, speed * (time.monotonic() - self._last_add))
        left_s = max(0.0, (total - done) / speed) if total and speed > 0 else None
        return min(1.0, done / total) if total else None, left_s, rates

    def _counts(self, of: str) -> str:
        count = format_bytes if self.unit == "bytes" else "{:,}".format
        about = "about " if self.total_bytes else ""
        return f"{count(self.done)}{of}{about}{count(self.total)}" if self._has_total() else count(self.done)

    def _has_total(self) -> bool:
        """Whether there is a total, and none that was guessed too low."""
        return 0 < self.total >= self.done

    def _skips(self) -> list[str]:
        return [] if self.unit == "bytes" else [f"{self.skipped:,} skipped"]

    def _show_in_time(self, more: str) -> None:
        if time.monotonic() >= self._next:
            self._show(more, "")

    def _show(self, more: str, end: str) -> None:
        self._next = time.monotonic() + (LIVE_EVERY_S if self._live else PLAIN_EVERY_S)
        self._shown, self._shown_done = True, self.done
        if self._quiet:
            return
        columns = shutil.get_terminal_size().columns - 1
        text = f"\r\x1b[2K{(self.bar(columns) + more)[:columns]}{end}" if self._live else f"{self.line()}{more}\n"
        try:
            print(text, end="", file=sys.stderr, flush=True)
        except (OSError, ValueError):  # nobody is there to read it: no reason to stop
            self._quiet = True
