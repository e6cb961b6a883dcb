import gzip
import os

import pytest

from mlpdata import Error
from mlpdata.archive.gzip import GzipFile
from mlpdata.sources import Source, files


def some_tree(root):
    for name in ("a/1.jpg", "a/b/2.jpg", "c/3.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_stamps_of_a_folder_tell_every_change(tmp_path):
    root = some_tree(tmp_path / "root")

    def cut():
        (root / "a/b/2.jpg").write_bytes(b"x")

    def exchange():
        status = (root / "c/3.jpg").stat()
        (root / "c/3.jpg").write_bytes(b"C/3.JPG")  # as long as it was
        os.utime(root / "c/3.jpg", ns=(status.st_atime_ns, status.st_mtime_ns + 1))

    def rename():
        (root / "a/1.jpg").rename(root / "a/4.jpg")

    def move():
        (root / "a/4.jpg").rename(root / "c/4.jpg")

    seen = [files.stamp(str(root))]
    changes = (cut, exchange, rename, move, lambda: (root / "c/5.jpg").write_bytes(b""), (root / "a/e").mkdir)
    for change in changes:
        assert files.stamp(str(root)) == seen[-1]
        change()
        seen.append(files.stamp(str(root)))
    assert len(set(seen)) == len(changes) + 1
    (root / "c/Thumbs.db").write_bytes(b"looked at in a file manager")
    assert files.stamp(str(root)) == seen[-1]


def test_stamps_are_of_local_files_only(tmp_path):
    class Local(Source):
        files = [str(tmp_path / "x"), "http://host/y.tar", "hf:owner/name"]  # noqa: RUF012
        units = samples = None

    (tmp_path / "x").write_bytes(b"12")
    os.utime(tmp_path / "x", ns=(5, 7))
    Local.__abstractmethods__ = frozenset()
    assert Local().stamps() == {str(tmp_path / "x"): "2 bytes, changed at 7 ns"}
    (tmp_path / "x").unlink()
    assert "No such file" in Local().stamps()[str(tmp_path / "x")]


def test_links_are_followed_and_loops_refused(tmp_path):
    root = some_tree(tmp_path / "root")
    (root / "d").symlink_to(root / "a")
    (root / "e").symlink_to(root / "a")  # twice is no loop
    (root / "lost").symlink_to(tmp_path / "nowhere")
    (root / "self").symlink_to(root / "self")
    os.mkfifo(root / "pipe")
    found = [
        (f"{below}/{e.name}", files.why_no_file(e))
        for below, entries in files.tree(str(root))
        for e in entries
        if not files.is_folder(e)
    ]
    assert [name for name, reason in found if not reason] == [
        "a/1.jpg",
        "a/b/2.jpg",
        "c/3.jpg",
        "d/1.jpg",
        "d/b/2.jpg",
        "e/1.jpg",
        "e/b/2.jpg",
    ]
    assert [(name, reason) for name, reason in found if reason] == [
        ("/lost", "a link that leads nowhere: No such file or directory"),
        ("/pipe", "no file but a FIFO"),
        ("/self", "a link that leads nowhere: Too many levels of symbolic links"),
    ]
    (root / "a/b/around").symlink_to(root)
    with pytest.raises(Error, match=r"around.* a loop; remove the link$"):
        list(files.tree(str(root)))


def test_links_of_links_end(tmp_path, monkeypatch):
    """Thirty folders of two links each to the next: 2^30 paths."""
    for i in range(30):
        (tmp_path / f"{i}").mkdir()
        for name in "ab":
            (tmp_path / f"{i}" / name).symlink_to(tmp_path / f"{i + 1}")
    (tmp_path / "30").mkdir()
    monkeypatch.setattr(files, "MAX_LINKS", 20)
    with pytest.raises(Error, match="is linked to from more than 20 places"):
        list(files.tree(str(tmp_path / "0")))


def test_a_forked_process_may_forget_an_open_gzip_stream(tmp_path):
    """Its threads stay behind: to destroy it in the child was to wait for ever."""
    (tmp_path / "x.gz").write_bytes(gzip.compress(os.urandom(1 << 20)))
    stream = GzipFile(tmp_path / "x.gz")
    stream.read_at(0, 100)
    pid = os.fork()
    if pid == 0:
        stream = None
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    stream.close()
