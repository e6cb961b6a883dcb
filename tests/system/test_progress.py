import os
import pty
import select
import sys

import pytest
from conftest import HANG_S

from mlpdata.system import progress as module
from mlpdata.system.engines import LocalEngine
from mlpdata.system.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, which a test sets."""
    seconds = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: seconds[0])
    return seconds


@pytest.fixture
def running(clock):
    """A conversion of 1,000 images that went on at 400, after 100 seconds of its own."""
    progress = Progress("converting", 1000)
    progress.resume(400, 40_000_000, 3)
    clock[0] = 100.0
    progress.add(100, 10_000_000, 1)
    return progress


def test_a_plain_line_says_share_time_rate_and_what_was_skipped(running):
    said = "converting: 500 of 1,000 images (50%), after 1:40 min, 1.0 images/s, 100 kB/s, 8:20 min left, 4 skipped"
    assert running.line() == said


def test_share_and_time_left_go_by_bytes_where_samples_are_guessed(running):
    running.total_bytes = 250_000_000
    assert running.line().startswith("converting: 500 of about 1,000 images (20%)")
    assert "33:20 min left" in running.line()


def test_a_guess_that_was_too_low_is_not_shown(running):
    running.total, running.total_bytes = 372, 250_000_000
    assert running.line().startswith("converting: 500 images (20%), ") and "33:20 min left" in running.line()
    assert "372" not in running.bar(120)
    running.total_bytes = 0
    assert running.line().startswith("converting: 500 images, ") and "left" not in running.line()


def test_without_a_total_there_is_no_share_and_no_time_left(clock):
    progress = Progress("listing", 0)
    clock[0] = 2.0
    progress.add(10)
    assert progress.line() == "listing: 10 images, after 2 s, 5.0 images/s, 0 skipped"
    assert progress.bar(60) == "listing: 10 [00:02, 5.0 images/s, 0 skipped]"


def test_a_plain_last_line_is_not_repeated(clock, capsys):
    for last in (100, 50):
        with Progress("verifying", 100) as progress:
            clock[0] += 6.0
            progress.add(last)
            clock[0] += 6.0
            if last < 100:
                progress.add(100 - last)
    err = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in err] == [
        "verifying: 100 of 100 images (100%)",
        "verifying: 50 of 100 images (50%)",
        "verifying: 100 of 100 images (100%)",
    ]


def test_bytes_are_shown_as_such(clock):
    progress = Progress("a.tar", 170_000_000, "bytes")
    clock[0] = 10.0
    progress.add(17_000_000)
    assert progress.line() == "a.tar: 17 MB of 170 MB (10%), after 10 s, 1.7 MB/s, 90 s left"


@pytest.mark.parametrize("columns", [40, 60, 79, 120, 200])
def test_a_bar_takes_the_width_of_the_terminal_and_leaves_out_what_has_no_room(running, columns):
    bar = running.bar(columns)
    assert len(bar) == columns and bar.startswith("converting:  50%|█") and "[01:40<08:20" in bar
    assert ("4 skipped" in bar) == (columns >= 79) and ("100 kB/s" in bar) == (columns >= 120)


def test_a_bar_goes_on_between_large_units_by_one_of_them_at_most(running, clock):
    clock[0] = 150.0
    assert running.bar(79).startswith("converting:  53%") and "(50%)" in running.line()
    clock[0] = 1000.0
    assert running.bar(79).startswith("converting:  59%") and "(50%)" in running.line()


def test_names_with_braces_are_text(clock):
    clock[0] = 1.0
    assert Progress("{odd}.tar", 10).bar(79).startswith("{odd}.tar:   0%|")


def test_a_bar_is_drawn_in_place_in_a_terminal_and_lines_elsewhere(clock, monkeypatch, capsys):
    parent, child = pty.openpty()
    for stream in (os.fdopen(child, "w"), sys.stderr):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("converting", 1000) as progress:
            for _ in range(3):
                clock[0] += 6.0
                progress.add(100)
    drawn = b""
    while b"\n" not in drawn and select.select([parent], [], [], HANG_S)[0]:  # it arrives in pieces
        drawn += os.read(parent, 1 << 16)
    drawn = drawn.decode()
    assert drawn.count("\n") == 1 and drawn.count("\r\x1b[2Kconverting:") == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("converting: ") for line in lines)


def test_short_work_is_not_shown_and_quiet_work_never(clock, capsys):
    with Progress("converting", 10) as progress:
        progress.add(10)
    with Progress("converting", 10, quiet=True) as progress:
        clock[0] += 100
        progress.add(10)
    assert capsys.readouterr().err == ""


def test_a_total_that_was_guessed_too_low_is_no_reason_to_say_the_end_twice(clock, capsys):
    with Progress("converting", 372) as progress:
        clock[0] += 10
        progress.add(400)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_waited_for_is_named_when_it_takes_suspiciously_long(clock, capsys):
    progress = Progress("converting", 10)
    clock[0] = 50.0
    progress.tick(["unit n01440764"])
    clock[0] = 90.0
    progress.tick(["unit n01440764"])
    first, second = capsys.readouterr().err.splitlines()
    assert "nothing finished" not in first and second.endswith("nothing finished for 90 s, at unit n01440764")


def test_a_progress_line_that_nobody_reads_stops_nothing(clock, monkeypatch):
    class Gone:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

    for stream in (Gone(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("converting", 10) as progress:
            clock[0] += 10
            progress.add(5)
        assert progress.done == 5


def double(state, task):
    return 2 * task


def test_an_engine_keeps_the_line_of_its_work():
    progress = Progress("doubling", 3, quiet=True)
    with LocalEngine(2, None) as engine:
        assert len(list(engine.map(double, [1, 2, 3], progress))) == 3
        assert progress.done == 3
        list(engine.map(double, [1, 2], progress, lambda task, result: (task, result, 1)))
    assert (progress.done, progress.num_bytes, progress.skipped) == (6, 6, 2)
