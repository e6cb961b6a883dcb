import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import until

from mlpdata import Error
from mlpdata.system.engines import LocalEngine


def double(state, task):
    return state + 2 * task


def misbehave(state, task):
    if task == "user error":
        raise Error("the file is bad")
    if task == "bug":
        raise ZeroDivisionError("oops")
    if task == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "disk full":
        raise OSError(28, "No space left on device", "/x/y")
    signal.pause()  # for ever


def test_every_task_once_whatever_the_workers():
    for workers in (1, 3):
        with LocalEngine(workers, 100) as engine:
            assert sorted(engine.map(double, range(50))) == [(i, 100 + 2 * i) for i in range(50)]
            assert list(engine.map(double, [])) == []


def test_a_script_without_a_guard_is_told_what_to_write(tmp_path):
    """Its workers import it, and with it the call that starts them; torch has them started so."""
    script = tmp_path / "script.py"
    work = 'convert(Options(dataset="shapes", res=8, limit=20, out="out", workers=2, quiet=True))'
    head = "import torch\nfrom mlpdata.convert import Options, convert\n"
    script.write_text(f"{head}{work}\n")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1 and "bootstrapping" not in done.stderr
    assert 'put what it does below a line `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]
    assert done.stdout.count("Shapes, made on the spot") == 1
    script.write_text(f'{head}if __name__ == "__main__":\n    {work}\n')
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def in_a_pool(out):
    from mlpdata.convert import Options, convert

    try:
        convert(Options(dataset="shapes", res=8, limit=20, out=out, quiet=True))
    except Error as e:
        return str(e)


def test_a_daemonic_process_is_told_that_it_cannot_convert(tmp_path):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert "can start no workers" in pool.apply(in_a_pool, (tmp_path / "out",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("user error", Error, "^the file is bad$"),
        ("bug", RuntimeError, "at bug:(.|\n)*ZeroDivisionError: oops"),
        ("killed", Error, "killed by signal 9 .* while at killed"),
        ("disk full", Error, "No space left on device: /x/y, at disk full"),
    ],
)
def test_a_failure_reaches_the_caller_with_its_task_and_nobody_waits(task, kind, message):
    with pytest.raises(kind, match=message), LocalEngine(2, None) as engine:
        list(engine.map(misbehave, ["sleep", task]))  # the one that sleeps would never end


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys\n"
        "from mlpdata.system.engines import LocalEngine\n"
        "def task(state, i):\n"
        "    open(os.path.join(state, str(os.getpid())), 'w').close()\n"
        "    signal.pause()\n"
        "if __name__ == '__main__':\n"
        "    with LocalEngine(3, sys.argv[1]) as engine:\n"
        "        list(engine.map(task, range(3)))\n"
    )
    pids = tmp_path / "pids"
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, script, pids])
    until(lambda: len(list(pids.iterdir())) == 3, parent)
    workers = [int(p.name) for p in pids.iterdir()]
    parent.kill()
    parent.wait()
    until(lambda: not any(alive(pid) for pid in workers))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_cannot_be_started_leave_none_behind(monkeypatch):
    started = []
    start = multiprocessing.process.BaseProcess.start

    def fails_at_last(process):
        if len(started) == 2:
            raise OSError(24, "Too many open files")
        start(process)
        started.append(process)

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", fails_at_last)
    with pytest.raises(OSError, match="Too many open files"):
        LocalEngine(3, None)
    assert [process.is_alive() for process in started] == [False, False]


def test_no_signal_ends_a_worker_but_its_parents_word():
    """Those of a whole group (a terminal's Ctrl-C, a scheduler's SIGTERM) are for the parent."""
    with LocalEngine(1, 100) as engine:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(engine._workers[0].process.pid, number)
        assert list(engine.map(double, [1])) == [(1, 102)]


def out_of_memory(state, task):
    raise MemoryError


def test_out_of_memory_in_a_worker_is_one_line():
    message = "^out of memory at 5: run the same command again with fewer --workers$"
    with pytest.raises(Error, match=message), LocalEngine(1, None) as engine:
        list(engine.map(out_of_memory, [5]))
