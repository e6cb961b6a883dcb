"""What an earlier run left is input like any other: damaged, another's or of the wrong kind, it is made again."""

import json
import os
import shutil
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import encoded, make_folder, picture, tar_bytes
from conftest import Inline, change_manifest, convert_quietly, sums

from mlpdata import Error
from mlpdata.convert import finish, journal, plan, run
from mlpdata.sources import folder
from mlpdata.system import engines


@pytest.fixture(scope="module", params=["parts", "shards", "large shards"])
def interrupted(request, tmp_path_factory):
    """(options, the directory of a run that was stopped, the sums of one that was not, patches)."""
    root = tmp_path_factory.mktemp("interrupted")
    for i in range(60):
        path = root / "in" / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(*((16, 16) if i % 3 else (20, 18)), i)))
    options = {"dataset": "folder", "source": str(root / "in"), "res": 16, "shard_size": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "LocalEngine", Inline)
        patch.setattr(os, "fsync", lambda fd: None)  # hundreds of them, and nobody pulls the plug
        patch.setattr(folder, "LEAST_IMAGES", 10)
        convert_quietly(**options, out=root / "whole")
        if "large" in request.param:
            patch.setattr(plan, "DURABLE_FROM_BYTES", 0)
        with pytest.MonkeyPatch.context() as stop:
            if "parts" in request.param:
                stop.setattr(run, "count_parts", stopped)
            else:
                calls = iter(range(6))
                add = journal.IndexWriter.add
                stop.setattr(
                    journal.IndexWriter, "add", lambda *a: add(*a) if next(calls, None) is not None else stopped()
                )
            with pytest.raises(Error, match="stopped; what is done stays in"):
                convert_quietly(**options, out=root / "out")
        assert not (root / "out" / "manifest.json").exists()
        yield options, root / "out", sums(root / "whole")


def stopped(*_):
    raise KeyboardInterrupt


def first(pattern):
    return lambda root: sorted(root.glob(pattern))[:1]


def every(pattern):
    return lambda root: sorted(root.glob(pattern))


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    if data:
        data[min(len(data) - 1, int(len(data) * at))] ^= 0x55
        path.write_bytes(data)


def folder_instead(path):
    path.unlink()
    (path / "inside").mkdir(parents=True)


def file_instead(path):
    shutil.rmtree(path)
    path.write_text("")


def link_instead(path):
    path.unlink()
    path.symlink_to(path.parents[3] / "nonexistent")  # where anybody may make it, as a lock is made


FILES = {
    "rows": first(".convert/parts/*.rows"),
    "data": first(".convert/parts/*.data"),
    "last data": lambda root: sorted(root.glob(".convert/parts/*.data"))[-1:],
    "plan": first(".convert/plan.json"),
    "lock": first(".convert/lock"),
    "journal": first(".convert/shards/*.arrow"),
    "tar": first("*.tar"),
    "beton": first(".convert/*.beton"),
    "table": every(".convert/*.p[lo]*s"),
    "labels": first(".convert/labels.npy"),
    "assembling": first(".convert/assembling"),
}
DAMAGES = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "short": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "flipped": flip,
    "flipped at its start": lambda path: flip(path, 0),
    "flipped at its end": lambda path: flip(path, 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "another's": lambda path: path.write_bytes(sorted(path.parent.glob(f"*{path.suffix}"))[-1].read_bytes()),
    "a folder": folder_instead,
    "a link": link_instead,
}


@pytest.mark.parametrize("what", FILES)
def test_damaged_journals_are_made_again(tmp_path, interrupted, what):
    options, left, whole = interrupted
    for how, act in DAMAGES.items() if FILES[what](left) else ():
        if what == "tar" and how == "a folder":
            continue  # in the directory of the user: that is told
        root = tmp_path / how
        shutil.copytree(left, root)
        for path in FILES[what](root):
            act(path)
        convert_quietly(**options, out=root)
        assert sums(root) == whole, how


@pytest.mark.parametrize(
    "text", ["", "[]", "5", "null", "{}", "[" * 100_000, '{"identity": {}}', "{}".encode("utf-16"), b"\xff\xfe"]
)
def test_a_plan_that_is_none_is_written_anew(tmp_path, interrupted, text):
    options, left, whole = interrupted
    shutil.copytree(left, tmp_path / "out")
    (tmp_path / "out" / ".convert" / "plan.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    _, lines = convert_quietly(**options, out=tmp_path / "out")
    assert sums(tmp_path / "out") == whole
    assert any("plan.json was damaged" in line for line in lines)


def test_a_plan_of_another_version_is_not_touched(tmp_path, interrupted):
    options, left, _ = interrupted
    shutil.copytree(left, tmp_path / "out")
    older = json.dumps({"tool_version": "0.0.9", "command": "mlpdata convert"})
    (tmp_path / "out" / ".convert" / "plan.json").write_text(older)
    with pytest.raises(Error, match=r"unfinished conversion of another mlpdata \(0\.0\.9\)"):
        convert_quietly(**options, out=tmp_path / "out")
    assert (tmp_path / "out" / ".convert" / "plan.json").read_text() == older


def test_parts_and_shards_of_other_options_are_not_taken_for_ours(tmp_path, interrupted):
    """Without a plan nothing but the parts themselves says whose they are."""
    options, left, whole = interrupted
    shutil.copytree(left, tmp_path / "out")
    (tmp_path / "out" / ".convert" / "plan.json").unlink()
    (tmp_path / "out" / "train-000099.tar").write_bytes(b"of a run with smaller shards")
    (tmp_path / "out" / "README.md.tmp").write_bytes(b"of a run that was killed")
    other = {**options, "seed": 1}
    convert_quietly(**other, out=tmp_path / "expected")
    convert_quietly(**other, out=tmp_path / "out")
    assert sums(tmp_path / "out") == sums(tmp_path / "expected") != whole


def test_parts_swapped_and_folders_that_are_files(tmp_path, interrupted):
    options, left, whole = interrupted
    for suffixes in ((".rows",), (".rows", ".data")):
        root = tmp_path / "-".join(suffixes)
        shutil.copytree(left, root)
        for suffix in suffixes:
            one, two, *_ = sorted((root / ".convert" / "parts").glob(f"*{suffix}"))
            one.rename(one.with_suffix(".x"))
            two.rename(one)
            one.with_suffix(".x").rename(two)
        convert_quietly(**options, out=root)
        assert sums(root) == whole
    for name in ("parts", "shards"):
        shutil.copytree(left, tmp_path / name)
        (tmp_path / name / ".convert" / "shards").mkdir(exist_ok=True)
        file_instead(tmp_path / name / ".convert" / name)
        convert_quietly(**options, out=tmp_path / name)
        assert sums(tmp_path / name) == whole


def test_a_work_directory_that_is_none_is_named(tmp_path, interrupted):
    options, left, _ = interrupted
    for k, act in enumerate((lambda path: path.write_text("x"), lambda path: path.symlink_to(left / ".convert"))):
        (tmp_path / f"{k}").mkdir()
        act(tmp_path / f"{k}" / ".convert")
        with pytest.raises(Error, match=r"\.convert is not the folder that an unfinished conversion leaves"):
            convert_quietly(**options, out=tmp_path / f"{k}")
    assert (left / ".convert" / "plan.json").exists()


def test_nothing_temporary_is_left(tmp_path, interrupted):
    options, left, whole = interrupted
    shutil.copytree(left, tmp_path / "out")
    for name in ("manifest.json.tmp", "classes.txt.tmp", "train.index.parquet.tmp", "test-000000.tar"):
        (tmp_path / "out" / name).write_bytes(b"x")
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    convert_quietly(**options, out=tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "of the user"
    (tmp_path / "out" / "notes.txt").unlink()
    assert sums(tmp_path / "out") == whole


# --------------------------------------------------------------------------------------------- a source that changes


def make_source(root):
    for i in range(12):
        (root / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"class{i % 2}" / f"{i}.jpg").write_bytes(encoded(picture(20, 20, i)))


def exchange(root):
    one, two = root / "class0" / "0.jpg", root / "class1" / "1.jpg"
    one_data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(one_data)
    for path in (one, two):
        os.utime(path, ns=(1, 1))


CHANGES = {
    "exchanged": exchange,
    "cut": lambda root: os.truncate(root / "class0" / "0.jpg", 100),
    "a class gone": lambda root: shutil.rmtree(root / "class0"),
    "an image more": lambda root: shutil.copy(root / "class0" / "0.jpg", root / "class1" / "x.jpg"),
    "all gone": shutil.rmtree,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_source_that_changes_while_it_is_read(tmp_path, monkeypatch, change):
    make_source(tmp_path / "in")
    monkeypatch.setattr(run, "LocalEngine", Inline)
    count_parts = run.count_parts
    monkeypatch.setattr(run, "count_parts", lambda *args: (CHANGES[change](tmp_path / "in"), count_parts(*args))[1])
    with pytest.raises(Error, match=r"in changed while it was read, .*: delete it and run the same command again"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_source_that_is_cut_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch):
    make_source(tmp_path / "in")
    monkeypatch.setattr(run, "LocalEngine", Inline)
    convert_parts = run.convert_parts

    def cut(*args, **kwargs):
        for path in (tmp_path / "in").glob("*/*.jpg"):
            os.truncate(path, 10)
        convert_parts(*args, **kwargs)

    monkeypatch.setattr(run, "convert_parts", cut)
    with pytest.raises(Error, match=r"in changed while it was read, .*: delete it and run the same command again"):
        convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=8, out=tmp_path / "out")


def test_a_source_that_changed_between_two_runs(tmp_path, monkeypatch):
    make_source(tmp_path / "in")
    options = {"dataset": "folder", "source": str(tmp_path / "in"), "res": 8, "out": tmp_path / "out"}
    monkeypatch.setattr(run, "LocalEngine", Inline)
    with monkeypatch.context() as stop:
        stop.setattr(run, "count_parts", stopped)
        with pytest.raises(Error, match="stopped"):
            convert_quietly(**options)
    shutil.copytree(tmp_path / "in", tmp_path / "kept")  # with its times
    exchange(tmp_path / "in")
    with pytest.raises(Error, match=r"in changed after the conversion in .*out had begun: delete .*out"):
        convert_quietly(**options)
    assert not (tmp_path / "out" / "manifest.json").exists()
    shutil.rmtree(tmp_path / "in")
    shutil.copytree(tmp_path / "kept", tmp_path / "in")
    convert_quietly(**options)


def test_shards_that_are_written_beside_the_source_are_no_change_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Inline)
    data = tar_bytes({f"n01440764_{i}.JPEG": encoded(picture(20, 20, i)) for i in range(4)})
    (tmp_path / "n01440764.tar").write_bytes(data)
    (tmp_path / "n01443537.tar").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    convert_quietly(dataset="imagenet1k", source=".", res=8, out=Path("shards/out"))
    assert (tmp_path / "shards" / "out" / "manifest.json").exists()


# ------------------------------------------------------------------- a finished directory that lost something


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """(options, the directory they made)."""
    make_source(tmp_path / "in")
    monkeypatch.setattr(run, "LocalEngine", Inline)
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    options = {"dataset": "folder", "source": str(tmp_path / "in"), "res": 8, "shard_size": 5, "out": tmp_path / "out"}
    convert_quietly(**options)
    return options, tmp_path / "out"


@pytest.mark.parametrize("name", ["train-000001.tar", "train.beton", "train.index.parquet", "classes.txt"])
def test_a_finished_directory_that_lost_something_is_made_again(finished, name):
    options, root = finished
    (root / "notes.txt").write_text("of the user")
    before = sums(root)
    for how, act in (("is missing", Path.unlink), ("has 10 bytes", lambda path: os.truncate(path, 10))):
        act(root / name)
        _, lines = convert_quietly(**options)
        told = [line for line in lines if line.endswith(f"all of {root} is made again")]
        assert len(told) == 1 and f"{root / name} {how}" in told[0]
        assert sums(root) == before
    assert "nothing to do" in convert_quietly(**options)[1][-1]


def test_a_damaged_directory_of_another_conversion_is_not_touched(finished):
    options, root = finished
    (root / "train.beton").unlink()
    os.truncate(root / "classes.txt", 3)
    before = sums(root)
    with pytest.raises(Error, match="holds another conversion"):
        convert_quietly(**{**options, "seed": 7})
    assert sums(root) == before
    os.truncate(root / "manifest.json", 100)
    before = sums(root)
    with pytest.raises(Error, match=r"manifest\.json is damaged .*\); choose another --out, delete that directory, or"):
        convert_quietly(**options)
    assert sums(root) == before


def test_threads_that_cannot_be_started_are_one_line(tmp_path, monkeypatch, finished):
    """Else the digest of a beton is of what was read until then, and the manifest says so."""
    options, root = finished
    before, start = sums(root), threading.Thread.start

    def refused(thread):
        raise RuntimeError("can't start new thread")

    for where in ("mlpdata-prefetch", "mlpdata-write"):
        other = {**options, "out": tmp_path / where}
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda t, w=where: (refused if t.name.startswith(w) else start)(t))
            with pytest.raises(Error, match=r"out of memory.* run the same command again"):
                convert_quietly(**other)
        assert not (tmp_path / where / "manifest.json").exists()
        convert_quietly(**other)
        assert sums(tmp_path / where) == before


def test_a_file_that_cannot_be_hashed_at_the_end_is_named(tmp_path):
    task = finish.FileTask(tmp_path / "train.beton", True)
    _, error, _ = engines.attempt(finish.finish_file, None, task)
    assert str(error).endswith(f", at {tmp_path / 'train.beton'}; when that is mended, run the same command again")


def test_a_finished_directory_is_of_the_source_as_it_was(tmp_path):
    make_folder(tmp_path / "in", splits=("train",), per_class=4)
    options = {"dataset": "folder", "source": str(tmp_path / "in"), "res": 16, "out": tmp_path / "out"}
    convert_quietly(**options)
    shutil.copytree(tmp_path / "in", tmp_path / "copy" / "in", copy_function=shutil.copyfile)  # other times of change
    assert "nothing to do" in convert_quietly(**options | {"source": str(tmp_path / "copy" / "in")})[1][-1]
    victim = next((tmp_path / "in").rglob("*.jpg"))
    for change in (lambda: shutil.copy(victim, victim.with_name("more.jpg")), lambda: victim.write_bytes(b"x" * 99)):
        change()
        with pytest.raises(Error, match="of another source: in was another one, or has changed since;"):
            convert_quietly(**options)


def test_a_finished_directory_of_an_older_version_says_of_a_folder_but_its_name(finished):
    options, root = finished
    change_manifest(root, source_files={"in": {}})
    assert "nothing to do" in convert_quietly(**options)[1][-1]


def test_files_of_one_name_in_two_folders_are_both_on_record(tmp_path):
    for k, split in enumerate(("train", "val")):
        (tmp_path / "in" / split).mkdir(parents=True)
        rows = [{"image": {"bytes": encoded(picture(16, 16, 10 * k + i), "PNG")}, "label": i % 2} for i in range(4)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in" / split / "0000.parquet")
    manifest, _ = convert_quietly(dataset="hub", source=str(tmp_path / "in"), res=16, out=tmp_path / "out")
    assert set(manifest.source_files) == {"train/0000.parquet", "val/0000.parquet"}
