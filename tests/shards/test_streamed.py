"""Training from elsewhere without a copy: tars are fetched as they are wanted, verified, and kept up to a limit."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import HANG_S, convert_quietly, run_cli, until
from servers import FileServer, HubServer, cut, replaced, stall, status

import mlpdata
from mlpdata import Error
from mlpdata.fetch import retry, transfer
from mlpdata.inspect.bench import bench
from mlpdata.inspect.info import info
from mlpdata.loader import stream
from mlpdata.loader.memory_plan import Machine, Needs, SplitSize, plan_memory
from mlpdata.shards import remote, streamed, tar_cache, tar_room
from mlpdata.shards.manifest import Manifest
from mlpdata.system.format import format_bytes
from trainer.plan import plan

LOAD = {"batch_size": 32, "tier": "stream", "num_threads": 2}
PROGRAM = """if True:
    import json, sys
    import mlpdata
    from mlpdata.loader import stream
    stream.TAR_WINDOW_BYTES = 1
    loader = mlpdata.load(sys.argv[1], batch_size=32, tier="stream", cache_bytes=int(sys.argv[2]))
    sums = [int(batch.images.sum()) for batch in loader]
    print(json.dumps({"sums": sums, "fetched": loader.index.cache.fetched_bytes}))
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A directory of 12 train tars and 4 val tars of 50 samples and 129 kB each."""
    out = tmp_path_factory.mktemp("streamed") / "shapes-16"
    convert_quietly(dataset="shapes", res=16, out=out, workers=2, limit=600, shard_size=50)
    return out


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of the test's own; windows of two tars."""
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(stream, "TAR_WINDOW_BYTES", 1)
    yield tmp_path / "home"


@pytest.fixture
def hub(serve, shards):
    """The server of a repository me/x that holds the directory; faults only meet tars."""
    server = serve({"me/x": {p.name: p.read_bytes() for p in shards.iterdir()}})
    server.hit = lambda path: path.endswith(".tar")
    return server


def tar_bytes(shards, split="train"):
    manifest = Manifest.load(shards)
    return [manifest.files[name]["bytes"] for name in manifest.splits[split].tars]


def bytes_on_disk(home):
    with tar_room.locked(home / "stream" / ".lock"):  # else what comes and what went for it may both be counted
        tars = tar_room.list_tars(home / "stream")
    return sum({(t.folder, t.path.name.removesuffix(".part")): t.num_bytes for t in tars}.values())  # moving ones twice


def epoch(loader):
    """(ids, pixels) of an epoch."""
    batches = list(loader)
    return np.concatenate([b.ids.numpy() for b in batches]), np.concatenate([b.images.numpy() for b in batches])


def put(s3, shards, prefix, but=()):
    for path in shards.iterdir():
        if path.name not in but:
            s3.upload_file(str(path), "bucket", f"{prefix}/{path.name}")
    return f"s3://bucket/{prefix}"


@pytest.mark.usefixtures("hub")
def test_info_reads_the_manifest_and_the_class_list_alone(s3, shards, home):
    url = put(s3, shards, "info", but={p.name for p in shards.iterdir()} - {"manifest.json", "classes.txt"})
    for address in (url, "hf:me/x"):
        assert info(address) == info(shards) and info(address, as_json=True) == info(shards, as_json=True)
    assert not home.exists()
    s3.put_object(Bucket="bucket", Key="info/classes.txt", Body=b"other\n")
    with pytest.raises(Error, match=f"^{url}/classes.txt is not the class list that the manifest names"):
        info(url)


def test_stats_and_snippet_fetch_no_shards(s3, hub, shards, home):
    files = {p.name for p in shards.iterdir() if p.suffix in (".tar", ".beton")}
    url = put(s3, shards, "stats", but=files)
    for address in (url, "hf:me/x"):
        done = run_cli("stats", address)
        assert done.returncode == 0 and done.stdout == run_cli("stats", shards).stdout, done.stderr
        num_bytes = sum(p.stat().st_size for p in shards.iterdir() if p.name not in {*files, "manifest.json"})
        assert done.stderr.startswith(f"fetching {format_bytes(num_bytes)} in ") and ", no shards\n" in done.stderr
        again = run_cli("stats", address, "--json")
        assert again.stdout == run_cli("stats", shards, "--json").stdout and "fetching" not in again.stderr
        done = run_cli("snippet", address, "--for", "webdataset")
        place = next(home.glob("stream/*")).name
        assert done.returncode == 0 and done.stderr.startswith(f"first: mlpdata pull {address}, ")
        assert f"{home}/shards/" in done.stdout and done.stderr.count("\n") == 1 and place
        shutil.rmtree(home / "stream")
    assert not (home / "shards").exists()
    code = run_cli("snippet", "hf:me/x", "--for", "numpy").stdout
    assert run_cli("pull", "hf:me/x").returncode == 0
    done = run_cli("snippet", "hf:me/x", "--for", "numpy")
    assert done.stdout == code and not done.stderr
    read = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert read.returncode == 0 and "uint8" in read.stdout, read.stderr


@pytest.mark.usefixtures("hub")
def test_nothing_is_copied_for_a_command_that_is_wrong(home):
    for words in (["export", "hf:me/x", "--to", "nonsense", "-o", "out"], ["subset", "hf:me/x"],
                  ["preview", "hf:me/x", "-o", "x.png", "--page", "0"]):  # fmt: skip
        done = run_cli(*words)
        assert done.returncode == 2 and "copying" not in done.stderr
    assert not home.exists()


# --------------------------------------------------------------------------------------------------------- the order


def test_batches_are_those_of_the_directory_in_an_order_that_repeats(s3, hub, shards, home):
    url, sizes = put(s3, shards, "order"), tar_bytes(shards)
    local = mlpdata.load(shards, batch_size=32, format="tar", tier="stream", num_threads=2)
    small = mlpdata.load(url, cache_bytes=sum(sizes[:4]) + 100, **LOAD)
    assert small.tier == "stream" and "streamed from s3://bucket/order: of " in small.tier_reason
    assert f"are kept in {home}/stream/s3--bucket--order-" in small.tier_reason
    first, second = epoch(small), epoch(small)
    for ids, images in (first, second):
        assert sorted(ids.tolist()) == list(range(600))
        assert np.array_equal(images, local.read(ids))
    assert not np.array_equal(first[0], second[0])
    # The window is of two tars, whose samples are mixed.
    assert len({int(i) // 50 for i in first[0][:100]}) == 2 < len({int(i) // 50 for i in first[0][:101]})
    assert np.unique(np.diff(first[0][:100])).size > 30
    # Any state of the cache, any limit, any place of the same directory.
    fetched = small.index.cache.fetched_bytes
    assert fetched > sum(sizes)
    for root, options in ((url, {"cache_bytes": 10**9}), (url, {"cache_bytes": 10**9}), ("hf:me/x", {})):
        other = mlpdata.load(root, **LOAD, **options)
        assert np.array_equal(epoch(other)[0], first[0]) and np.array_equal(epoch(other)[0], second[0])
    assert np.array_equal(other.order(1), second[0])
    warm = mlpdata.load(url, **LOAD)
    epoch(warm)
    assert not warm.index.cache.fetched_bytes


def test_ranks_share_the_batches_of_one_process(hub, shards):
    whole = mlpdata.load("hf:me/x", **LOAD)
    ranks = [mlpdata.load("hf:me/x", **LOAD, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert batch.ids.tolist() == parts[0].ids.tolist() + parts[1].ids.tolist()


def test_a_state_goes_on_anywhere(hub, shards):
    loader = mlpdata.load("hf:me/x", **LOAD)
    epoch(loader)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    saved = json.loads(json.dumps(loader.state_dict()))
    assert saved["blocks"] == [0, 2]
    rest = [batch.ids.tolist() for batch in batches]
    for root, options in (
        ("hf:me/x", {"tier": "stream"}),
        (shards, {"tier": "stream", "format": "tar"}),
        (shards, {"tier": "resident"}),
    ):
        other = mlpdata.load(root, batch_size=32, **options)
        other.load_state_dict(saved)
        assert [batch.ids.tolist() for batch in other] == rest
    copy = mlpdata.load(shards, batch_size=32, tier="stream")
    next(iter(copy))
    loader.load_state_dict(copy.state_dict())  # an order by blocks of bytes
    assert len(list(loader)) == len(rest) + 4


@pytest.mark.parametrize("subset", [0.2, [599, 3, 3, 70], slice(120, 260), 7])
@pytest.mark.parametrize("shuffle", [True, False])
def test_subsets_are_streamed(hub, shards, subset, shuffle):
    options = {"subset": subset, "shuffle": shuffle, "seed": 3}
    loader, local = mlpdata.load("hf:me/x", **LOAD, **options), mlpdata.load(shards, batch_size=32, **options)
    ids, images = epoch(loader)
    assert sorted(ids.tolist()) == sorted(local.ids.tolist())
    assert np.array_equal(images, local.read(ids))
    if not shuffle:
        assert np.array_equal(ids, local.ids)


def test_what_needs_no_window_is_there_too(hub, shards):
    """Random access, a torch Dataset with workers, names, other tiers over a folder that has no tars."""
    loader, local = mlpdata.load("hf:me/x", "test", **LOAD), mlpdata.load(shards, "test", batch_size=32)
    assert loader.classes == local.classes and loader.index.files[0].name == "val-000000.tar"
    ids = np.array([590, 4, 77])
    assert np.array_equal(loader.read(ids), local.read(ids))
    from torch.utils.data import DataLoader

    batches = list(DataLoader(loader.dataset(), 40, num_workers=2, multiprocessing_context="fork"))
    assert np.array_equal(np.concatenate([images for images, _ in batches]).transpose(0, 2, 3, 1), local.arrays()[0])
    kept = mlpdata.load(loader.root, "test", batch_size=32, tier="resident", check=True)
    assert np.array_equal(kept.arrays()[0], local.arrays()[0]) and "read once from hf:me/x@" in kept.tier_reason


# -------------------------------------------------------------------------------------------------------- the limit


def test_the_limit_holds_at_any_moment(hub, shards, home, monkeypatch):
    sizes, seen = tar_bytes(shards), []
    make_room, limit = tar_cache.TarCache._make_room, sum(sizes[:3]) + 1000

    def watched(self, *args):
        result = make_room(self, *args)
        seen.append(bytes_on_disk(home))
        return result

    monkeypatch.setattr(tar_cache.TarCache, "_make_room", watched)
    train = mlpdata.load("hf:me/x", cache_bytes=limit, **LOAD)
    val = mlpdata.load("hf:me/x", "val", cache_bytes=limit, **LOAD)
    for _ in range(2):
        for loader in (train, val):
            for _ in loader:
                seen.append(bytes_on_disk(home))
    assert max(seen) <= limit and max(seen) > limit - sizes[0]


def test_a_limit_below_the_window_is_one_line(hub, shards):
    sizes = tar_bytes(shards)
    for limit, what in ((sizes[0] - 1, "a tar of it"), (sizes[0] + 1, "2 tars, which are shuffled together,")):
        with pytest.raises(Error, match=f"cannot be streamed: {what} may (have|take) .* raise cache_bytes"):
            mlpdata.load("hf:me/x", cache_bytes=limit, **LOAD)
    with pytest.raises(Error, match="cache_bytes must be a whole number"):
        mlpdata.load("hf:me/x", cache_bytes=0, **LOAD)


def kept_tar(root, folder, name, used, num_bytes=10, part=False):
    path = root / folder / (tar_room.PARTS if part else "") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    os.utime(path, (used, used))
    return path


def test_what_makes_room_first(tmp_path):
    """Directories that nobody has open, oldest use first; then the tar that was used last; then what is held."""
    (tmp_path / "a").mkdir()
    names = [
        kept_tar(tmp_path, folder, name, used)
        for folder, name, used in (("idle", "1.tar", 5), ("idle", "2.tar", 3), ("a", "3.tar", 4), ("a", "4.tar", 6))
    ]
    held = kept_tar(tmp_path, "a", "5.tar", 9)
    dead = kept_tar(tmp_path, "a", "6.tar.part", 5, part=True)
    alive = kept_tar(tmp_path, "a", "7.tar.part", 5, part=True)
    in_use = tar_room.opened(tmp_path / "a")
    with open(held) as f, tar_room.locked(alive.with_name("7.tar.lock")):
        fcntl.flock(f, fcntl.LOCK_SH)
        removed = [tar.path for tar in tar_room.removed(tar_room.list_tars(tmp_path), held_too=False)]
        assert removed == [names[1], names[0], names[3], dead, names[2]]
        assert not (tmp_path / "idle").exists()
        assert [tar.path for tar in tar_room.removed(tar_room.list_tars(tmp_path), held_too=True)] == [held]
    in_use.close()
    assert [tar.path for tar in tar_room.list_tars(tmp_path)] == [alive]


def test_half_of_the_tars_are_found_where_there_is_room_for_half(hub, shards, monkeypatch):
    """Where the least recently used went first, one in seven would be."""
    sizes = tar_bytes(shards)
    loader = mlpdata.load("hf:me/x", cache_bytes=sum(sizes[:8]) + 1000, **LOAD)
    epoch(loader)
    cold = loader.index.cache.fetched_bytes
    for _ in range(8):
        epoch(loader)
    assert loader.index.cache.fetched_bytes - cold < 0.65 * 8 * sum(sizes)


def test_a_changed_tar_is_fetched_again(hub, shards, home):
    loader = mlpdata.load("hf:me/x", **LOAD)
    first = epoch(loader)
    one, two, three = sorted(home.rglob("train-*.tar"))[:3]
    data = bytearray(one.read_bytes())
    data[len(data) // 2] ^= 1
    one.write_bytes(data)
    two.write_bytes(two.read_bytes()[:-1])
    three.unlink()
    three.symlink_to("/dev/zero")
    index = loader.root / "train.index.parquet"
    index.write_bytes(index.read_bytes()[:-9] + b"123456789")
    (loader.root / streamed.ORIGIN).write_text("hf:me/x@0000")
    again = mlpdata.load("hf:me/x", **LOAD)
    assert all(np.array_equal(a, b) for a, b in zip(epoch(again), first, strict=True))
    assert again.index.cache.fetched_bytes == sum(tar_bytes(shards)[:3])


# -------------------------------------------------------------------------------------------------- many processes


def start(limit):
    command = [sys.executable, "-c", PROGRAM, "hf:me/x", str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return json.loads(out)


def sums_of_an_epoch():
    """Of the pixels of every batch, as this process has them, with a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLPDATA_HOME", os.environ["MLPDATA_HOME"] + "-own")
        return [int(batch.images.sum()) for batch in mlpdata.load("hf:me/x", **LOAD)]


def test_two_processes_fetch_every_tar_once(hub, shards, home):
    expected = sums_of_an_epoch()
    hub.requests.clear()
    total = sum(tar_bytes(shards))
    results = [finished(p) for p in [start(10**9) for _ in range(2)]]
    assert results[0]["sums"] == results[1]["sums"] == expected
    assert sum(result["fetched"] for result in results) == total
    fetched = [path for _, path, _ in hub.requests if path.endswith(".tar")]
    assert sorted(fetched) == sorted({*fetched})


def test_two_processes_keep_to_a_limit(hub, shards, home):
    expected = sums_of_an_epoch()
    limit, most = sum(tar_bytes(shards)[:3]) + 1000, 0  # less than the two want at a time
    processes, at_work = [start(limit), start(limit)], True
    while at_work:
        at_work = any(process.poll() is None for process in processes)  # the last look is at what they leave
        time.sleep(0.01)
        if (home / "stream" / ".lock").exists():
            with tar_room.locked(home / "stream" / ".lock"):  # no room is set aside meanwhile
                tars = tar_room.list_tars(home / "stream")
            # A tar may move to its place while the folder is listed.
            most = max(most, sum({tar.path.name.removesuffix(".part"): tar.num_bytes for tar in tars}.values()))
    assert [finished(process)["sums"] for process in processes] == [expected, expected]
    assert 0 < most <= limit


def test_a_killed_process_leaves_nothing_that_counts(hub, shards, home):
    expected = sums_of_an_epoch()
    hub.faults = [None] * 3 + [stall(70_000)] * 100
    process = start(10**9)
    until(lambda: list(home.rglob("*.tar.part.json")), process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    hub.faults = []
    sizes = {p.name: p.stat().st_size for p in shards.glob("*.tar")}
    assert list(home.rglob("*.tar.part"))
    for path in home.glob("stream/*/*.tar"):
        assert path.stat().st_size == sizes[path.name] and path.read_bytes() == (shards / path.name).read_bytes()
    assert [int(batch.images.sum()) for batch in mlpdata.load("hf:me/x", **LOAD)] == expected
    assert not list(home.rglob("*.part"))


# ----------------------------------------------------------------------------------------------------------- faults


def test_faults_that_pass_change_nothing(hub, shards):
    expected = mlpdata.load(shards, batch_size=32)
    hub.faults = [cut(100), status(503), stall(20), None, status(429, Retry_After="0"), cut(2000), stall(0)]
    ids, images = epoch(mlpdata.load("hf:me/x", **LOAD))
    assert not hub.faults and np.array_equal(images, expected.read(ids))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ([status(503)] * 1000, r"train-\d+\.tar: the server answers 503 .*; gave up after 5 attempts"),
        ([status(403)] * 1000, r"train-\d+\.tar: the server answers 403"),
        ([status(404)] * 1000, r"train-\d+\.tar: the server answers 404"),
        ([replaced(b"short")] * 1000, r"train-\d+\.tar has 5 bytes instead of [\d,]+"),
        ([lambda handler, body: bytes(len(body))] * 1000, r"gave has SHA256 \w+ instead of \w+; it has been deleted"),
        ([stall(10)] * 1000, r"gave up after 5 attempts"),
    ],
)
def test_faults_that_last_are_one_line(hub, shards, home, fault, message):
    loader = mlpdata.load("hf:me/x", **LOAD)
    hub.faults = list(fault)
    with pytest.raises(Error, match=message) as caught:
        epoch(loader)
    assert "\n" not in str(caught.value)
    hub.faults = []
    assert not list(home.glob("stream/*/*.tar"))
    assert len(epoch(loader)[0]) == 600  # the same loader goes on when the server does


def test_one_tar_that_is_missing_or_another(s3, shards):
    url = put(s3, shards, "holes", but=["train-000007.tar"])
    loader = mlpdata.load(url, **LOAD)
    with pytest.raises(Error, match=r"s3://bucket/holes lacks .*train-000007\.tar$"):
        epoch(loader)
    data = (shards / "train-000007.tar").read_bytes()
    for other, message in (
        (data[:-1], r"train-000007\.tar has [\d,]+ bytes instead of"),
        (data[:-1] + b"x", r"train-000007\.tar gave has SHA256 \w+ instead of"),
    ):
        s3.put_object(Bucket="bucket", Key="holes/train-000007.tar", Body=other)
        with pytest.raises(Error, match=message):
            epoch(mlpdata.load(url, **LOAD))
    s3.put_object(Bucket="bucket", Key="holes/train-000007.tar", Body=data)
    assert len(epoch(loader)[0]) == 600


def test_a_full_disk_and_a_folder_that_cannot_be_written(hub, shards, home, tmp_path, monkeypatch):
    def full(fd, data, at):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    loader = mlpdata.load("hf:me/x", **LOAD)
    with monkeypatch.context() as patch, pytest.raises(Error, match=rf"cannot keep tars .* in {home}/.*: No space"):
        patch.setattr(transfer.os, "pwrite", full)
        epoch(loader)
    assert len(epoch(loader)[0]) == 600
    monkeypatch.setenv("MLPDATA_HOME", "/proc/none")
    with pytest.raises(Error, match=r"cannot keep hf:me/x@\w+ in /proc/none/stream/.*"):
        mlpdata.load("hf:me/x", **LOAD)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "file"))
    with pytest.raises(Error, match=r"cannot make the folder .*/file/stream/.*: .*/file is a file"):
        mlpdata.load("hf:me/x", **LOAD)


@pytest.fixture
def held(hub):
    """(what holds a request, those that wait, those that were answered): no answer before the test's end."""
    release, waiting, answered = threading.Event(), [], []

    def hold(handler, body):
        waiting.append(body)
        release.wait(HANG_S)
        answered.append(body)
        return body

    yield hold, waiting, answered
    release.set()


def test_leaving_an_epoch_waits_for_no_server(hub, held, shards, monkeypatch):
    hold, waiting, answered = held
    monkeypatch.setattr("mlpdata.fetch.http.STALL_S", HANG_S)
    loader = mlpdata.load("hf:me/x", **LOAD)
    hub.faults = [None] * 4 + [hold] * 100
    batches = iter(loader)
    for _ in range(3):  # the thread that prepares batches then waits for the second window
        next(batches)
    until(lambda: waiting)
    batches.close()
    assert not answered


def test_an_interrupt_waits_for_no_server(hub, held):
    hold, waiting, answered = held
    hub.faults = [hold] * 100
    process = start(10**9)
    until(lambda: waiting, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=HANG_S)
    # After it, a thread of huggingface_hub may still write that it tries again.
    assert process.returncode and "KeyboardInterrupt" in err.splitlines() and not answered


# ------------------------------------------------------------------------------------------------------ the choice


def test_a_copy_is_made_where_it_fits(hub, shards, home, monkeypatch):
    lines = []
    folder = streamed.local_directory("hf:me/x", "auto", 10**6, lines.append)
    assert folder.parent == home / "stream"
    assert "as a copy takes" in lines[0] and "cache_bytes allows 1.0 MB" in lines[0]
    loader = mlpdata.load("hf:me/x", batch_size=32, cache_bytes=10**6)
    assert ", as a copy does not fit: of 1.5 MB in tars, at most 1.0 MB are kept in" in loader.tier_reason
    free = shutil.disk_usage(home)
    with monkeypatch.context() as patch:
        patch.setattr(streamed.shutil, "disk_usage", lambda path: free._replace(free=10**6))
        assert streamed.local_directory("hf:me/x", "auto", None, lines.append) == folder
        assert "1.0 MB of the disk are free" in lines[-1]
    copy = streamed.local_directory("hf:me/x")
    assert copy.parent == home / "shards"
    assert streamed.local_directory("hf:me/x", "auto", 10**6) == copy  # which is here by now
    assert streamed.local_directory("hf:me/x", "stream") == folder
    assert streamed.local_directory(shards, "stream") == shards


def test_betons_are_not_streamed(serve, hub, tmp_path, shards):
    with pytest.raises(Error, match=r"hf:me/x@\w+ cannot be streamed as a beton, .*; its tars are streamed$"):
        mlpdata.load("hf:me/x", format="beton", **LOAD)
    convert_quietly(dataset="shapes", res=16, out=tmp_path / "b", workers=1, limit=50, format="beton")
    hub.commit("me/beton", {p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()})
    with pytest.raises(Error, match=r"it has no tars: `mlpdata export --to tar`"):
        mlpdata.load("hf:me/beton", **LOAD)
    copy = mlpdata.load("hf:me/beton", batch_size=10)
    with pytest.raises(Error, match="its blocks is 0, not 1 to 50"):  # tars, which it has not
        copy.load_state_dict({**copy.state_dict(), "blocks": [0, 2], "step": 1})


def test_bench_and_plan_and_train_know_the_network(hub, shards, tmp_path):
    row = json.loads(bench("hf:me/x", tier="stream", cache_bytes=450_000, batch_size=32, seconds=0.1, as_json=True))
    assert "streamed from hf:me/x@" in row["tier_reason"]
    recipe = Path(__file__).parents[2] / "recipes" / "shapes.yaml"
    settings = ["data.shards=hf:me/x", "data.tier=stream", "train.epochs=1", "train.batch_size=32"]
    table = plan(recipe, [*settings, "data.cache_bytes=5000000"])
    assert "images/s in the first epoch" in table and "100% of the tars" in table and "the network" not in table
    table = plan(recipe, [*settings, "data.cache_bytes=500000"])
    assert "32% of the tars; the others are fetched in every epoch" in table and "the network" in table
    with pytest.raises(Error, match="cache_bytes"):
        plan(recipe, [*settings, "data.cache_bytes=0"])
    sets = [word for setting in (*settings, "data.cache_bytes=5000000") for word in ("--set", setting)]
    done = run_cli("train", recipe, *sets, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_network_is_the_bottleneck_where_it_is():
    split = SplitSize(num_samples=1000, shape=(16, 16, 3), file_bytes=10**6, fetched_share=0.5)
    machine = Machine(device="CPU", device_bytes=None, host_bytes=10**9, cores=2, network=1e5)
    planned = plan_memory(split, machine, Needs(images_per_s=1e4), tier="stream")
    assert planned.limits["the network"] == 200 and planned.bottleneck == "the network"
    all_kept = plan_memory(replace(split, fetched_share=0.0), machine, Needs(images_per_s=1e4), tier="stream")
    assert "the network" not in all_kept.limits


def test_a_private_repository_is_streamed_with_its_token(serve, shards, monkeypatch):
    serve({"me/x": {p.name: p.read_bytes() for p in shards.iterdir()}}, gated=["me/x"])
    with pytest.raises(Error, match="me/x is gated"):
        mlpdata.load("hf:me/x", **LOAD)
    monkeypatch.setenv("HF_TOKEN", HubServer.TOKEN)
    assert len(epoch(mlpdata.load("hf:me/x", **LOAD))[0]) == 600


# ------------------------------------------------------------------------------------------------------ web servers


@pytest.mark.parametrize("ranges", [True, False])
def test_a_web_server_of_any_kind_is_read(shards, ranges):
    """One without ranges, such as Python's own, gives whole files to whoever asks for a range."""
    with FileServer({f"/x/{p.name}": p.read_bytes() for p in shards.iterdir()}, ranges=ranges) as server:
        copy = remote.local_copy(f"{server.url}/x/")
        assert Manifest.load(copy).files == Manifest.load(shards).files
        assert max(path.stat().st_size for path in copy.iterdir()) > 8 << 20  # of several requests
        ids, pixels = epoch(mlpdata.load(f"{server.url}/x", **LOAD))
    local, want = epoch(mlpdata.load(shards, batch_size=32, shuffle=False))
    order = np.argsort(ids)
    assert np.array_equal(ids[order], local) and np.array_equal(pixels[order], want)


def test_what_is_wrong_with_a_web_server_is_said(shards, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    with FileServer({"/page/manifest.json": b"<!DOCTYPE html>"}) as server:
        with pytest.raises(Error, match=r"/none has no manifest\.json; it is not a finished shard directory"):
            remote.local_copy(f"{server.url}/none")
        with pytest.raises(Error, match=r"/page/manifest.json gives a web page; .* has to be the address"):
            remote.local_copy(f"{server.url}/page")
        with pytest.raises(Error, match="a web server takes no files; convert to a local directory"):
            convert_quietly(dataset="shapes", limit=10, out=f"{server.url}/new")
    with pytest.raises(Error, match=r"manifest.json: Connection refused; gave up after"):
        remote.local_copy(f"{server.url}/none")
