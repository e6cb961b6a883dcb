"""Conversions that are killed, stopped, interrupted, started twice: in the end the bytes are those of a quiet run.

By hand, with more kills on an archive of one's own:

    python tests/convert/test_kills.py 30 imagenet21k --source fall11_whole.tar --res 64
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from archives import damaged_inside, encoded, make_cifar, picture
from conftest import HANG_S, Gate, run_cli, sums, until

import mlpdata
from mlpdata import Error


def start(*words, command="convert", **options):
    command = [sys.executable, "-m", "mlpdata.cli", command, *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
    )


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    """Enough images of enough work for a kill to hit anything: 1,800 photographs of 200 x 150 in small units.

    One in five has the size of the output already; of these one a class does not decode, which is found late.
    """
    root = tmp_path_factory.mktemp("big") / "in"
    data = [encoded(picture(*((200, 150) if i % 5 else (48, 48)), i)) for i in range(40)]
    for c in range(6):
        (root / f"class{c}").mkdir(parents=True)
        for i in range(300):
            (root / f"class{c}" / f"{i}.jpg").write_bytes(data[(7 * c + i) % 40])
        (root / f"class{c}" / "damaged.jpg").write_bytes(damaged_inside(data[0]))
    return root


def random_kills(words, reference, root, kills, seed, command="convert"):
    """Kill runs into `root` at random moments, with 1, 2 and 5 workers, until so many hit; then let it finish.

    Every time a run gets to its end the directory is compared with the reference and begun anew.
    """
    began = time.monotonic()
    assert start(*words, "--out", reference, "--workers", 2, command=command).wait(HANG_S) == 0
    whole = time.monotonic() - began
    expected, rng, hits, finished = sums(reference), random.Random(seed), 0, 0
    while hits < kills:
        process = start(*words, "--out", root, "--workers", rng.choice([1, 2, 5]), command=command)
        try:
            assert process.wait(rng.uniform(0.15, whole)) == 0, process.stdout.read()
        except subprocess.TimeoutExpired:
            hits += 1
            kind = rng.random()
            if kind < 0.4:
                process.kill()  # the parent alone: its workers must notice
            elif kind < 0.6 and (workers := children(process.pid)):
                with contextlib.suppress(ProcessLookupError):  # it may just have ended
                    os.kill(rng.choice(workers), signal.SIGKILL)  # one worker: the parent must notice
            else:
                os.killpg(process.pid, signal.SIGKILL)
        process.wait(HANG_S)
        if (root / "manifest.json").exists():
            finished += 1
            # Nothing to do, but what a killed run left is cleaned up.
            process = start(*words, "--out", root, command=command)
            assert process.wait(HANG_S) == 0
            assert sums(root) == expected
            shutil.rmtree(root)
    assert start(*words, "--out", root, "--workers", 2, command=command).wait(HANG_S) == 0
    assert sums(root) == expected
    return f"{hits} kills, {finished + 1} runs to the end, all with the same {len(expected)} SHA-256 sums"


def children(pid):
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may just have ended
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def held(folder, words, workers):
    """A conversion whose workers are held behind their first unit: it cannot be over before a test goes on.

    Returns (process, pids of its workers, gate).
    """
    gate = Gate(folder / "gate", "mlpdata.convert.unit:convert_unit")
    process = start(*words, "--workers", workers, env=gate.env)
    until(lambda: len(gate.held()) == workers, process)
    return process, gate.held(), gate


WORDS = ["--res", 48, "--shard-size", 200, "--quiet"]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, big_folder):
    words = ["folder", "--source", big_folder, *WORDS]
    random_kills(words, tmp_path / "reference", tmp_path / "killed", kills=5, seed=5)


@pytest.fixture(scope="module")
def two_dirs(tmp_path_factory, big_folder):
    """Two directories of three classes each: a merge reads the first where it lies, and copies the second's parts."""
    base = tmp_path_factory.mktemp("two")
    assert start("folder", "--source", big_folder, *WORDS, "--out", base / "all").wait(HANG_S) == 0
    for name, seed, classes in (("a", 0, "class0,class1,class2"), ("b", 1, "class3,class4,class5")):
        words = [base / "all", "--classes", classes, "--seed", seed, "--out", base / name, "--quiet"]
        assert start(*words, command="subset").wait(HANG_S) == 0
    return [base / "a", base / "b"]


@pytest.mark.parametrize("durable", [False, True])
def test_a_killed_merge_ends_with_the_same_bytes(tmp_path, two_dirs, durable, monkeypatch):
    if durable:
        (tmp_path / "sitecustomize.py").write_text(DURABLE)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    words = [*two_dirs, "--classes", "union", "--shard-size", 150, "--quiet"]
    random_kills(words, tmp_path / "reference", tmp_path / "killed", kills=4, seed=6, command="merge")


@pytest.mark.slow
def test_a_killed_merge_of_two_directories_of_60_000_images(tmp_path):
    """Every key meets its like, so that every sample is copied into a part first: the longest way."""
    make_cifar(tmp_path / "cifar.tar.gz", rows=10_000)  # in each of six batches
    for name, seed in (("a", 0), ("b", 1)):
        words = ["cifar10", "--source", tmp_path / "cifar.tar.gz", "--format", "beton", "--seed", seed, "--quiet"]
        assert start(*words, "--out", tmp_path / name).wait(HANG_S) == 0
    words = [tmp_path / "a", tmp_path / "b", "--quiet"]
    print(random_kills(words, tmp_path / "reference", tmp_path / "killed", kills=8, seed=7, command="merge"))


@pytest.mark.slow
@pytest.mark.parametrize("durable", [False, True])
def test_killed_thirty_times(tmp_path, big_folder, durable, monkeypatch):
    if durable:  # as for large outputs: synced, and parts cut off as they are used
        (tmp_path / "sitecustomize.py").write_text(DURABLE)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    words = ["folder", "--source", big_folder, *WORDS]
    print(random_kills(words, tmp_path / "reference", tmp_path / "killed", kills=30, seed=30))


DURABLE = "from mlpdata.convert import plan\nplan.DURABLE_FROM_BYTES = 0\n"  # any output is treated as a large one


def test_parts_are_cut_off_and_the_work_goes_on_from_what_is_left(tmp_path, big_folder):
    """A large output: killed while it assembles, when some parts are shorter than their journals say already."""
    words = ["folder", "--source", big_folder, "--res", 48, "--shard-size", 20, "--quiet"]
    reference, root = tmp_path / "reference", tmp_path / "out"
    assert start(*words, "--out", reference).wait(HANG_S) == 0
    gate = Gate(tmp_path / "gate", "mlpdata.convert.truncation:truncate_parts", calls=(1, 20), before=DURABLE)
    process = start(*words, "--out", root, "--workers", 1, env=gate.env)

    def size():
        return sum(p.stat().st_size for p in (root / ".convert" / "parts").glob("*.data"))

    until(lambda: gate.held(1), process)
    cut_once = size()
    gate.open(1)
    until(lambda: gate.held(20), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < size() < cut_once * 0.8
    assert start(*words, "--out", root, "--workers", 2).wait(HANG_S) == 0
    assert sums(root) == sums(reference)


def is_running(pid):
    """Dead processes stay listed where nobody asks for their status, as in a container without an init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_of_a_killed_run_go_even_when_they_are_stopped(tmp_path, big_folder):
    words = ["folder", "--source", big_folder, *WORDS, "--out", tmp_path / "out"]
    process, workers, _ = held(tmp_path, words, 2)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    assert start(*words, "--workers", 2).wait(HANG_S) == 0  # nobody holds the lock
    until(lambda: not any(is_running(pid) for pid in workers))


def test_a_killed_worker_ends_the_run_with_a_line_that_says_how_to_go_on(tmp_path, big_folder):
    words = ["folder", "--source", big_folder, "--res", 48, "--out", tmp_path / "out"]
    process, workers, _ = held(tmp_path, words, 2)
    os.kill(workers[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 1
    assert "killed by signal 9" in out and "same command" in out and "Traceback" not in out
    assert start(*words, "--workers", 2).wait(HANG_S) == 0


def ignoring(number):
    return lambda: signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("ignored", [False, True])
def test_asked_to_stop_it_ends_cleanly(tmp_path, big_folder, number, ignored):
    """Also where Ctrl-C is ignored, as it is for what a script starts with `&`."""
    if ignored and number == signal.SIGINT:
        pytest.skip("then it goes on, as it should")
    words = ["folder", "--source", big_folder, "--res", 48, "--out", tmp_path / "out"]
    gate = Gate(tmp_path / "gate", "mlpdata.convert.unit:convert_unit")
    process = start(*words, "--workers", 2, env=gate.env, preexec_fn=ignoring(signal.SIGINT) if ignored else None)
    until(lambda: len(gate.held()) == 2, process)
    for pid in gate.held():
        os.kill(pid, signal.SIGSTOP)
    process.send_signal(number)
    out, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 1 and "same command goes on" in out and "Traceback" not in out
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not any(is_running(pid) for pid in gate.held())


def test_what_nohup_keeps_going_is_not_ended_by_a_hangup(tmp_path):
    words = ["shapes", "--res", 8, "--limit", 600, "--out", tmp_path / "out", "--workers", 1]
    gate = Gate(tmp_path / "gate", "mlpdata.convert.unit:convert_unit")
    process = start(*words, env=gate.env, preexec_fn=ignoring(signal.SIGHUP))
    until(gate.held, process)
    process.send_signal(signal.SIGHUP)
    gate.open()
    out, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0, out


def test_a_second_run_into_the_same_directory_is_refused(tmp_path, big_folder):
    words = ["folder", "--source", big_folder, "--res", 48, "--out", tmp_path / "out"]
    first, _, gate = held(tmp_path, words, 1)
    second = start(*words)
    out, _ = second.communicate(timeout=HANG_S)
    assert second.returncode == 1 and "another conversion is at work" in out
    gate.open()
    assert first.wait(HANG_S) == 0


def test_unfinished_work_is_continued_only_with_its_own_options(tmp_path, big_folder):
    words = ["folder", "--source", big_folder, "--out", tmp_path / "out"]
    process, *_ = held(tmp_path, [*words, "--res", 48], 1)
    process.kill()
    process.wait()
    done = run_cli("convert", *words, "--workers", 1, "--res", 32)
    assert done.returncode == 1 and "another conversion" in done.stderr
    with pytest.raises(Error, match="did not finish"):
        mlpdata.load(tmp_path / "out", "train", 4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        print(random_kills(sys.argv[2:], Path(folder) / "reference", Path(folder) / "killed", int(sys.argv[1]), seed=0))
