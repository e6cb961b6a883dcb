import hashlib
import io
import json
import multiprocessing as mp
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from archives import add_member, encoded, make_cifar, make_stl10, picture
from conftest import HANG_S, convert_quietly, run_cli, until
from servers import FileServer, cut, held, replaced, stall, status, time_out_in_stalls_alone

from mlpdata import Error, datasets
from mlpdata.archive import url
from mlpdata.fetch import http, official, retry, transfer
from mlpdata.fetch.download import RemoteFile, fetch
from mlpdata.fetch.login import Login, parse_headers
from mlpdata.inspect.catalogue import catalogue
from mlpdata.sources import stl10
from mlpdata.system import engines

ROOT = Path(__file__).parents[2]

DATA = np.random.default_rng(0).bytes(3_000_000)
OTHER = np.random.default_rng(1).bytes(2_500_000)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The same manners as ever, in a hundredth of the time."""
    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    time_out_in_stalls_alone(monkeypatch)
    # Workers take over the shorter pauses only when forked, which the server's thread would speak against.
    monkeypatch.setattr(engines, "process_context", lambda: mp.get_context("fork"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
    with FileServer({"/a.bin": DATA}) as running:
        yield running


SIZE, MD5 = len(DATA), hashlib.md5(DATA).hexdigest()


def wanted(server, name="a.bin", size=SIZE, md5=MD5, mirrors=()):
    return RemoteFile(name=name, urls=(f"{server.url}/{name}", *mirrors), num_bytes=size, md5=md5)


def fetched(what, folder, **options):
    lines = []
    path = fetch(what, folder, say=lines.append, quiet=True, **options)
    assert sorted(p.name for p in folder.iterdir()) == [f".{what.name}.lock", what.name]
    return path.read_bytes(), lines


# ------------------------------------------------------------------------------------------------- the right file


def test_a_file_is_fetched_once_and_then_checked(server, tmp_path):
    assert fetched(wanted(server), tmp_path)[0] == DATA
    assert fetched(wanted(server), tmp_path)[0] == DATA
    assert server.sent == len(DATA) and len(server.requests) == 1


@pytest.mark.parametrize(
    "faults",
    [
        [cut(1_000_000), cut(0), cut(500_000)],
        [stall(700_000), stall(0)],
        [status(503), status(429, Retry_After="0"), status(500)],
        [cut(100), status(503), stall(100), status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
    ],
    ids=["cut", "stalled", "busy", "all of it"],
)
def test_faults_that_pass_cost_no_byte_twice(server, tmp_path, faults):
    server.faults = list(faults)
    data, lines = fetched(wanted(server), tmp_path)
    assert data == DATA and not server.faults
    assert server.sent == len(DATA)
    assert len(lines) == len(faults) and all("trying again in" in line and "\n" not in line for line in lines)


def test_retry_after_is_honoured(server, tmp_path):
    server.faults = [status(429, Retry_After="1")]
    started = time.monotonic()
    fetched(wanted(server), tmp_path)
    assert time.monotonic() - started >= 1
    server.faults = [status(503, Retry_After="86400")]
    with pytest.raises(Error, match=r"503 .*; the server asks to come back in 86,400 s"):
        fetch(wanted(server), tmp_path / "x")


def test_a_later_call_fetches_only_what_is_missing(server, tmp_path):
    server.faults = [cut(1_200_000)] + [status(503)] * 5
    with pytest.raises(Error, match=r"503 .*; gave up after 5 attempts"):
        fetch(wanted(server), tmp_path)
    assert not (tmp_path / "a.bin").exists()
    assert server.sent == 1_200_000
    data, lines = fetched(wanted(server), tmp_path)
    assert data == DATA and server.sent == len(DATA)
    assert any("going on at 1,200,000 of 3,000,000" in line for line in lines)


@pytest.mark.parametrize("tags", [True, False])
@pytest.mark.parametrize("md5", [True, False])
def test_a_file_that_changed_is_begun_anew(server, tmp_path, tags, md5):
    server.tags = tags
    what = wanted(server, size=None, md5=None)
    server.faults = [cut(1_200_000), replaced(OTHER)]
    server.faults += [replaced(OTHER)] * 2
    data, lines = (
        fetched(what, tmp_path)
        if not md5
        else fetched(wanted(server, size=None, md5=hashlib.md5(OTHER).hexdigest()), tmp_path)
    )
    assert data == OTHER
    assert any("starting again" in line for line in lines)


def test_a_file_that_became_shorter_is_begun_anew(server, tmp_path):
    server.faults = [cut(2_900_000)] + [replaced(OTHER)] * 3
    server.tags = False
    assert fetched(wanted(server, size=None, md5=None), tmp_path)[0] == OTHER


def test_a_server_without_ranges_is_asked_for_the_whole(server, tmp_path):
    server.ranges = False
    server.faults = [cut(1_000_000)]
    data, lines = fetched(wanted(server), tmp_path)
    assert data == DATA
    assert any("does not go on in the middle; starting again" in line for line in lines)
    server.faults = [cut(1_000_000)] * 50
    with pytest.raises(Error, match="could not be had in one piece in 5 attempts"):
        fetch(wanted(server), tmp_path / "x")


def test_a_body_without_a_length(server, tmp_path):
    def chunked(handler, body):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for at in range(0, len(body), 100_000):
            piece = body[at : at + 100_000]
            handler.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n")
            if handler.cut and at > 1_000_000:
                handler.close_connection = True
                return
        handler.wfile.write(b"0\r\n\r\n")

    def cut_short(handler, body):
        handler.cut = 1
        return chunked(handler, body)

    server.faults = [chunked]
    assert fetched(wanted(server), tmp_path / "a")[0] == DATA
    server.faults = [cut_short, chunked]
    assert fetched(wanted(server), tmp_path / "b")[0] == DATA


def test_mirrors_go_on_with_what_the_first_gave(server, tmp_path):
    with FileServer({"/m.bin": DATA}) as mirror:
        server.faults = [cut(1_000_000)] + [status(503)] * 5
        data, lines = fetched(wanted(server, mirrors=[f"{mirror.url}/m.bin"]), tmp_path)
        assert data == DATA
        assert server.sent == 1_000_000 and mirror.sent == 2_000_000
        assert any("trying the next mirror" in line for line in lines)


def test_bytes_of_a_bad_mirror_are_not_kept(server, tmp_path):
    with FileServer({"/a.bin": OTHER + DATA[len(OTHER) :]}) as bad:
        bad.faults = [cut(1_000_000)] + [status(503)] * 5
        what = wanted(bad, mirrors=[f"{server.url}/a.bin"])
        data, lines = fetched(what, tmp_path)
        assert data == DATA
        assert any("some of it was of an earlier attempt; starting again" in line for line in lines)


@pytest.fixture
def company(monkeypatch):
    """Any connection is slow, and ranges are small."""
    monkeypatch.setattr(transfer, "SLOW_AFTER_S", 0.0)
    monkeypatch.setattr(transfer, "SLOW_BYTES_PER_S", float("inf"))
    monkeypatch.setattr(transfer, "SPLIT_BYTES", 100_000)
    monkeypatch.setattr(http, "CHUNK_BYTES", 1 << 14)


def missing(folder):
    """(start, stop) of what has not arrived, as the journal says."""
    path = folder / "a.bin.part.json"
    return json.loads(path.read_text())["missing"] if path.exists() else [[0, SIZE]]


def num_bytes(ranges):
    return sum(stop - start for start, stop in ranges)


def test_a_slow_connection_gets_company(server, tmp_path, monkeypatch, company):
    monkeypatch.setattr(transfer, "SAVE_EVERY_S", 0.0)
    refused, read, chunks = [], [], http.Response.chunks

    def refuse(handler, body):  # the first companion is sent away: the others take its part
        refused.append(1)
        handler.answer(403)

    def counted(self):
        for chunk in chunks(self):
            read.append(len(chunk))
            yield chunk

    monkeypatch.setattr(http.Response, "chunks", counted)
    # The slow one goes on once the others have fetched all but the piece that is too small for two.
    server.faults = [held(5 << 16, lambda: num_bytes(missing(tmp_path)) < 2 * transfer.SPLIT_BYTES), refuse]
    data, lines = fetched(wanted(server), tmp_path)
    assert data == DATA and refused
    assert "this is slow; going on with 4 connections" in lines[0]
    assert sum(read) < len(DATA) + len(server.requests) * http.CHUNK_BYTES  # none reads on where its stretch has ended


def test_ranges_of_several_connections_are_resumed(server, tmp_path, monkeypatch, company):
    chunks = http.Response.chunks

    def failing(self):
        for number, chunk in enumerate(chunks(self)):
            if number >= 2 and len(server.requests) >= 4:
                raise Error("no more today")
            yield chunk

    server.faults = [held(5 << 16, lambda: len(server.requests) >= 4)]
    with monkeypatch.context() as patch, pytest.raises(Error, match="no more today"):
        patch.setattr(http.Response, "chunks", failing)
        fetch(wanted(server), tmp_path, quiet=True)
    monkeypatch.setattr(transfer, "SLOW_BYTES_PER_S", 0.0)
    ranges = missing(tmp_path)
    assert len(ranges) > 1 and num_bytes(ranges) < SIZE
    with FileServer({"/a.bin": DATA}) as again:
        # Another host with the same checksum, as a mirror is.
        data, _ = fetched(wanted(again), tmp_path)
        assert data == DATA
        assert again.sent == num_bytes(ranges)


def test_a_server_that_offers_ranges_and_does_not_serve_them_gets_one_connection(server, tmp_path, company):
    def ignore_range(handler, body):
        del handler.headers["Range"]
        return body

    server.faults = [held(5 << 16, lambda: len(server.requests) >= 2)] + [ignore_range] * 50
    data, lines = fetched(wanted(server), tmp_path)
    assert data == DATA
    assert [line for line in lines if "does not go on in the middle" in line] == lines[1:] and len(lines) == 2


def test_a_connection_to_the_file_before_its_change_writes_nothing_into_the_new_one(server, tmp_path, company):
    new = DATA[::-1]

    def change(handler, body):
        server.files["/a.bin"] = new
        return new

    def begun_anew():
        return sum("Range" not in headers for _, _, headers in server.requests) == 2

    server.faults = [held(5 << 16, begun_anew), change]  # the first goes on with the old body
    data, lines = fetched(wanted(server, size=None, md5=None), tmp_path)
    assert data == new and begun_anew()
    assert any("has changed on the server; starting again" in line for line in lines)


# ---------------------------------------------------------------------------------------------------- one clear line


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([status(404)], "the server answers 404 Not Found"),
        ([status(410)], "the server answers 410 Gone"),
        ([status(403)], "403 Forbidden; it wants a login"),
        ([status(401)], "401 Unauthorized; it wants a login"),
        ([replaced(b"<html>log in</html>")], "has 19 bytes instead of 3,000,000"),
        ([replaced(OTHER + DATA[len(OTHER) :])], r"has MD5 \w+ instead of \w+; it has been deleted"),
        ([status(302, Location="/a.bin")] * 100, "(?i)redirects"),
        ([status(503)] * 5, "503 Service Unavailable; gave up after 5 attempts"),
        ([stall(0)] * 5, "nothing arrived in time; gave up after 5 attempts"),
        ([cut(0)] * 5, "the connection was cut; gave up after 5 attempts"),
    ],
)
def test_what_does_not_pass_is_one_line(server, tmp_path, monkeypatch, faults, message):
    if "in time" in message:
        server.real_timeouts = True
        monkeypatch.setattr(http, "STALL_S", 0.3)
    server.faults = list(faults)
    with pytest.raises(Error, match=message) as caught:
        fetch(wanted(server), tmp_path)
    assert "\n" not in str(caught.value) and "127.0.0.1" in str(caught.value)
    assert not (tmp_path / "a.bin").exists()
    monkeypatch.setattr(http, "STALL_S", HANG_S)
    server.faults = []
    assert fetched(wanted(server), tmp_path)[0] == DATA


def test_without_a_network_a_download_says_what_to_do_by_hand(tmp_path):
    archive = official.Archive(name="a.bin", url="http://nowhere.invalid/a.bin")
    with pytest.raises(Error, match=r"^cannot fetch http.*; or get a.bin by other means and put it into .*here$"):
        official.download([archive], tmp_path / "here", say=str, quiet=True)


def test_nobody_there(tmp_path):
    with pytest.raises(Error, match=r"(?i)refused.*gave up"):
        fetch(RemoteFile(name="a", urls=("http://127.0.0.1:9/a",)), tmp_path)
    with pytest.raises(Error, match="cannot fetch"):
        fetch(RemoteFile(name="a", urls=("http://[::bad/a",)), tmp_path)


def test_another_file_in_its_place_is_left_alone(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(Error, match=r"is there, but has 4 bytes instead of 3,000,000"):
        fetch(wanted(server), tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == b"mine" and not server.requests


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Error, match=r"cannot make the folder .*file is a file"):
        fetch(wanted(server), tmp_path / "file" / "x")


def test_no_space(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(Error, match="no space for"):
        fetch(wanted(server), tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"url": 1}', b'{"url":"u","tag":"","size":9,"missing":[[0,99]]}'])
def test_a_damaged_journal_costs_what_had_arrived(server, tmp_path, damage):
    (tmp_path / "a.bin.part").write_bytes(DATA[:1000])
    (tmp_path / "a.bin.part.json").write_bytes(damage)
    assert fetched(wanted(server), tmp_path)[0] == DATA


@pytest.mark.parametrize(
    "journal",
    [
        {"tag": "a\r\nX: y"},
        {"tag": 5},
        {"url": None},
        {"size": 1e300},
        {"size": True},
        {"missing": [["0", "9"]]},
        {"missing": [[0]]},
        {"missing": 7},
        {"missing": [[-5, 10]]},
        {"missing": [[0, 10**30]]},
    ],
    ids=str,
)
def test_a_journal_of_somebody_else_is_not_believed(server, tmp_path, journal):
    (tmp_path / "a.bin.part").write_bytes(OTHER)
    right = {"url": f"{server.url}/a.bin", "tag": "", "size": len(OTHER), "missing": [[5, 10]]}
    (tmp_path / "a.bin.part.json").write_text(json.dumps(right | journal))
    assert fetched(wanted(server), tmp_path)[0] == DATA


# ---------------------------------------------------------------------------------------------------------- hostile


def endless(head, body=b"x" * 65536):
    """A fault: an answer that is `head` and then `body` over and over, until the client goes."""

    def fault(handler, _):
        handler.wfile.write(head)
        while not handler.server_state.closing.is_set():
            handler.wfile.write(body)
        handler.close_connection = True

    return fault


def answered(status, **headers):
    lines = [f"HTTP/1.1 {status} OK", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin1")


def test_a_body_that_never_ends_is_bounded(server, tmp_path, monkeypatch):
    server.faults = [endless(answered(200))]
    with pytest.raises(Error, match="gives more than 3,000,000 bytes and does not say how many there are"):
        fetch(wanted(server), tmp_path)
    assert not list(tmp_path.glob("*.part*"))
    free = SimpleNamespace(free=transfer.SPARE_BYTES + (8 << 20))
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: free)
    server.faults = [endless(answered(200))]
    with pytest.raises(Error, match=r"gives more than .* bytes and does not say"):
        fetch(wanted(server, size=None, md5=None), tmp_path)
    assert not list(tmp_path.glob("*.part*"))


def test_reading_in_place_takes_no_more_than_it_asked_for(server):
    size = len(DATA)
    server.faults = [endless(answered(206, Content_Range=f"bytes 0-65535/{size}"), DATA[: 64 << 10])]
    blob = url.UrlFile(f"{server.url}/a.bin")
    assert blob.size == size and blob.read_at(0, 100) == DATA[:100]
    server.faults = [endless(answered(206, Content_Range=f"bytes 1000000-1065535/{size}"), DATA[1_000_000:2_000_000])]
    assert blob.read_at(1_000_000, 10) == DATA[1_000_000:1_000_010]
    whole = answered(200, Content_Length=1 << 40)
    server.faults = [endless(whole)]
    with pytest.raises(Error, match="serves no ranges"):
        url.UrlFile(f"{server.url}/a.bin")
    for at in (0, 2_000_000):
        blob.close()
        server.faults = [endless(whole)]
        with pytest.raises(Error, match=r"serves no ranges|has changed on the server"):
            blob.read_at(at, 10)


@pytest.mark.parametrize(
    "head",
    [
        answered(200, Content_Length="9" * 5000),
        answered(200, Content_Length="-5"),
        answered(206, Content_Range="bytes 0-9/" + "9" * 5000),
        answered(206, Content_Range="bytes 9-0/0"),
        answered(503, Retry_After="9" * 5000),
        answered(503, Retry_After="Wed, 99 Foo 99999 99:99:99 GMT"),
        answered(302, Location="http://[::1"),
        answered(302, Location="\x00\x01"),
        answered("404 \x1b[2J\x07"),
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(5000)) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00" * 100,
    ],
)
def test_absurd_heads_are_one_line(server, tmp_path, head):
    def fault(handler, _):
        handler.wfile.write(head)
        handler.close_connection = True

    for ask in (lambda: fetch(wanted(server), tmp_path), lambda: url.UrlFile(f"{server.url}/a.bin")):
        server.faults = [fault] * 40
        with pytest.raises(Error) as raised:
            ask()
        assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_an_absurd_etag_is_not_sent_back(server, tmp_path):
    def fault(handler, body):
        handler.extra = {"ETag": '"' + "e" * 60_000 + '"'}
        handler.cut = 1_000_000
        return body

    server.tags, server.faults = False, [fault]
    assert fetched(wanted(server), tmp_path)[0] == DATA
    assert all(len(headers.get("If-Range", "")) < 100 for _, _, headers in server.requests)


def test_servers_that_drip_are_given_up(server, tmp_path, monkeypatch):
    server.faults = [endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n")] * 5
    with monkeypatch.context() as patch, pytest.raises(Error, match="no whole answer in time; gave up"):
        patch.setattr(http, "HEAD_S", 0.2)
        fetch(wanted(server), tmp_path)
    monkeypatch.setattr(http, "DRIP_S", -1.0)  # every piece is late
    monkeypatch.setattr(http, "DRIP_BYTES", 1 << 40)  # whatever comes is too little
    server.faults = [endless(answered(200, Content_Length=SIZE), b"x" * 1000)] * 9
    with pytest.raises(Error, match=r"bytes arrived in .*gave up"):
        monkeypatch.setattr(retry, "GAIN_BYTES", 1 << 40)
        fetch(wanted(server), tmp_path)


def test_a_byte_at_a_time_is_no_progress(server, tmp_path):
    server.faults = [cut(1)] * 5
    with pytest.raises(Error, match="gave up after 5 attempts"):
        fetch(wanted(server), tmp_path)


# ----------------------------------------------------------------------------------------------------------- login


def test_headers_and_cookies_go_to_their_host_only(server, tmp_path):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tabc\n")
    login = Login(headers={"X-Key": "secret"}, cookies=cookies)
    with FileServer({"/a.bin": DATA}) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        server.faults = [status(302, Location=f"{elsewhere}/a.bin")]
        fetched(wanted(server), tmp_path / "x", login=login)
        _, _, first = server.requests[0]
        assert first["X-Key"] == "secret" and first["Cookie"] == "session=abc"
        assert "X-Key" not in other.requests[0][2] and "Cookie" not in other.requests[0][2]
    (tmp_path / "bad.txt").write_text("hello")
    for name in ("bad.txt", "none.txt"):
        with pytest.raises(Error, match=f"cannot read --cookies .*{name}"):
            Login(cookies=tmp_path / name).session(server.url)
    with pytest.raises(Error, match="'nonsense' is no header"):
        parse_headers(("nonsense",))


def test_mirrors_are_sent_no_secret(server, tmp_path, monkeypatch):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tabc\n")
    login = Login(headers={"X-Key": "secret", "Authorization": "Bearer x"}, cookies=cookies)
    secrets = {"X-Key", "Authorization", "Cookie"}
    with FileServer() as first, FileServer() as last:  # of the same host, as two services of one machine are
        monkeypatch.setenv("MLPDATA_MIRROR", first.url)
        archive = official.Archive(name="a.bin", url=f"{server.url}/a.bin", mirrors=(f"{last.url}/a.bin",), md5=MD5)
        server.faults = [status(404)]
        with pytest.raises(Error, match="404"):
            official.download([archive], tmp_path / "x", login=login, say=str, quiet=True)
        assert secrets <= set(server.requests[0][2])
        for mirror in (first, last):
            assert mirror.requests and not secrets & set(mirror.requests[0][2])
        # Nor the servers that one is sent on to, however often: cookies are put on anew at every step.
        first.files, last.files = {"/b": b"", "/c": b""}, {"/d": DATA}
        server.faults = [status(302, Location=f"{first.url}/b")]
        first.faults = [status(302, Location=f"{first.url}/c"), status(307, Location=f"{last.url}/d")]
        monkeypatch.delenv("MLPDATA_MIRROR")
        official.download([archive], tmp_path / "y", login=login, say=str, quiet=True)
        assert all(not secrets & set(headers) for _, _, headers in (*first.requests, *last.requests))
    no_address = official.Archive(name="a.bin", mirrors=(f"{server.url}/a.bin",), md5=MD5)
    official.download([no_address], tmp_path / "z", login=login, say=str, quiet=True)
    assert not secrets & set(server.requests[-1][2])


def test_cookies_of_another_kind_are_one_line(server, tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "fields").write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\tnever\n")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with open(tmp_path / "huge", "wb") as f:
        f.truncate(1 << 40)
    for name in ("binary", "fields", "folder", "fifo", "huge"):
        with pytest.raises(Error, match=f"cannot read --cookies .*{name}"):
            fetch(wanted(server), tmp_path / "x", Login(cookies=tmp_path / name))
    for line in ("X: a\0b", "X: a\x1b[2J", "X: a\nY: b"):
        with pytest.raises(Error, match="is no header"):
            parse_headers((line,))


def test_proxy_variables_are_honoured(tmp_path, monkeypatch):
    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *_):
            pass

    seen = []
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    fetch(RemoteFile(name="a", urls=("http://data.example/a",)), tmp_path, quiet=True)
    proxy.shutdown()
    proxy.server_close()
    assert seen == ["http://data.example/a"] and (tmp_path / "a").read_bytes() == b"ok"


# ------------------------------------------------------------------------------------------------------- processes

FETCH = """
import sys
from pathlib import Path
from mlpdata.fetch import http
from mlpdata.fetch.download import RemoteFile, fetch
http.STALL_S = 300.0
url, md5, folder = sys.argv[1:]
file = RemoteFile(name="a.bin", urls=(url,), md5=md5)
fetch(file, Path(folder), say=lambda line: print(line, flush=True), quiet=True)
"""


def start(server, folder):
    words = [sys.executable, "-c", FETCH, f"{server.url}/a.bin", hashlib.md5(DATA).hexdigest(), str(folder)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_one_file_once(server, tmp_path):
    server.bytes_per_s = 3_000_000
    both = [start(server, tmp_path) for _ in range(2)]
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert server.sent == len(DATA)
    assert sum("another process is fetching a.bin" in text for text in said) <= 1
    assert (tmp_path / "a.bin").read_bytes() == DATA


def test_killed_in_the_middle_then_again(server, tmp_path):
    server.faults = [stall(1_500_000)]
    process = start(server, tmp_path)
    until((tmp_path / "a.bin.part.json").exists, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "a.bin").exists()
    left, sent = num_bytes(missing(tmp_path)), server.sent
    data, _ = fetched(wanted(server), tmp_path)
    assert data == DATA
    assert server.sent - sent == left < len(DATA)


# ----------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """A server with a small CIFAR-10 archive, and a spec that knows its size and checksum."""
    make_cifar(tmp_path / "made.tar.gz")
    data = (tmp_path / "made.tar.gz").read_bytes()
    with FileServer({"/mirror/cifar-10-python.tar.gz": data}) as running:
        monkeypatch.setenv("MLPDATA_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("MLPDATA_MIRROR", f"{running.url}/mirror")
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        official = datasets.SPECS["cifar10"].archives[0]
        small = replace(official, num_bytes=len(data), md5=hashlib.md5(data).hexdigest())
        monkeypatch.setitem(datasets.SPECS, "cifar10", replace(datasets.SPECS["cifar10"], archives=(small,)))
        yield running


def test_convert_fetches_what_is_not_there(archive, tmp_path):
    manifest, lines = convert_quietly(dataset="cifar10", out=tmp_path / "a", workers=2)
    assert manifest.splits["train"].num_samples == 150
    assert any("not there yet: fetching it" in line for line in lines)
    again, _ = convert_quietly(dataset="cifar10", out=tmp_path / "b", workers=2)
    assert again.files == manifest.files
    assert len(archive.requests) == 1
    assert "(here: cifar-10-python.tar.gz)" in catalogue()


def test_download_of_the_wrong_file_is_one_line(archive, tmp_path):
    official = run_cli("download", "cifar10", "--quiet")  # the real size and checksum
    assert official.returncode == 1 and "bytes instead of 170,498,071" in official.stderr
    assert "Traceback" not in official.stderr and official.stderr.count("\n") == 1
    assert not (tmp_path / "home" / "cifar-10-python.tar.gz").exists()


def test_dry_run_and_only(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = run_cli("download", "cifar100", "--dry-run", "--to", tmp_path)
    assert done.returncode == 0
    assert "would fetch https://" in done.stdout and "(169 MB)" in done.stdout and str(tmp_path) in done.stdout
    done = run_cli("download", "imagenet1k", "--dry-run", "--only", "real.json", "--to", tmp_path)
    assert done.returncode == 0 and "real.json" in done.stdout and "train.tar" not in done.stdout
    done = run_cli("download", "imagenet1k", "--only", "x.tar")
    assert done.returncode == 1 and "there is no file 'x.tar'" in done.stderr
    assert not list(tmp_path.iterdir())
    done = run_cli("download", "shapes")
    assert done.returncode == 1 and "has no archive to download" in done.stderr


def test_imagenet_says_which_file_from_where_to_where_and_how_large(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLPDATA_HOME", str(tmp_path))
    only = ("--only", "ILSVRC2012_img_train.tar", "--only", "ILSVRC2012_img_val.tar")
    for words in (["download", "imagenet1k", *only], ["convert", "imagenet1k"]):
        done = run_cli(*words)
        assert done.returncode == 1 and done.stderr.count("\n") == 1
        for part in (
            "ILSVRC2012_img_train.tar",
            "147,897,477,120 bytes",
            "https://image-net.org",
            str(tmp_path),
            "--cookies",
        ):
            assert part in done.stderr
    done = run_cli("convert", "imagenet21k")
    assert done.returncode == 1 and "fall11_whole.tar" in done.stderr and str(tmp_path) in done.stderr


def test_a_login_fetches_imagenet(tmp_path, monkeypatch):
    def guarded(handler, body):
        if handler.headers.get("Cookie") == "session=abc":
            return body
        handler.answer(403)

    with FileServer({"/d/ILSVRC2012_img_val.tar": DATA}) as running:
        running.faults = [guarded] * 2
        spec = datasets.get("imagenet1k").archives
        val = replace(spec[0].beside[0], url=f"{running.url}/d/ILSVRC2012_img_val.tar", num_bytes=SIZE, md5=MD5)
        lines = []
        with pytest.raises(Error, match="403 Forbidden; it wants a login"):
            official.download([val], tmp_path, login=Login(headers={"X": "y"}), say=lines.append, quiet=True)
        login = Login(headers={"Cookie": "session=abc"})
        official.download([val], tmp_path, login=login, say=lines.append, quiet=True)
        assert "checksum right" in lines[-1]


# -------------------------------------------------------------------------------------------------- read in place


@pytest.fixture
def tar_of_tars(tmp_path):
    """A small fall11_whole.tar with two classes, and its bytes."""
    path = tmp_path / "fall11_whole.tar"
    with tarfile.open(path, "w") as outer:
        for c, wnid in enumerate(("n01440764", "n01443537")):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for i in range(8):
                    add_member(tar, f"{wnid}_{i}.JPEG", encoded(picture(300, 200, 10 * c + i)))
            add_member(outer, f"{wnid}.tar", inner.getvalue())
    return path


def test_a_tar_behind_a_url_gives_the_same_directory_as_on_disk(tar_of_tars, tmp_path):
    data = tar_of_tars.read_bytes()
    options = {"dataset": "imagenet21k", "res": 32, "workers": 2, "min_class_size": 0, "val_per_class": 0}
    local, _ = convert_quietly(source=str(tar_of_tars), out=tmp_path / "a", **options)
    with FileServer({"/fall11_whole.tar": data}) as running:
        running.faults = [None, cut(3000), status(503)]
        remote, _ = convert_quietly(source=f"{running.url}/fall11_whole.tar", out=tmp_path / "b", **options)
        assert running.sent < 5 * len(data) + 10 * (64 << 10)
    assert remote == local
    assert [p for p in tmp_path.rglob("*.tar") if p.name.startswith("fall11")] == [tar_of_tars]


def test_a_url_is_read_piece_by_piece(monkeypatch):
    monkeypatch.setattr(url, "PIECE_BYTES", 400_000)
    with FileServer({"/a.bin": DATA}) as running:
        blob = pickle.loads(pickle.dumps(url.UrlFile(f"{running.url}/a.bin")))
        assert blob.size == SIZE
        running.sent = 0
        blob.will_read(100_000, 2_000_000)
        for at in [*range(100_000, 2_100_000, 300_000), 100_000]:
            size = min(300_000, 2_100_000 - at)
            assert blob.read_at(at, size) == DATA[at : at + size]
        assert running.sent == 2_000_000
        for at, size in ((SIZE - 10, 100), (SIZE, 5), (0, 3), (2_500_000, 450_000), (2_950_000, 50_000)):
            assert blob.read_at(at, size) == DATA[at : at + size]
        running.faults = [cut(100), stall(50), status(500)]
        assert blob.read_at(1_000_000, 200_000) == DATA[1_000_000:1_200_000]
        blob.close()


@pytest.mark.parametrize(
    ("options", "faults", "message"),
    [
        ({"ranges": False}, [], "serves no ranges: it cannot be read in place; download it first"),
        ({}, [None, None, replaced(OTHER)], "has changed on the server while it was read"),
        ({}, [status(404)], "404 Not Found"),
        ({}, [status(503)] * 5, "gave up after 5 attempts"),
        ({}, [replaced(b"\x1f\x8b" + DATA)] * 3, "gzip stream, which cannot be read in place; download it first"),
    ],
)
def test_what_cannot_be_read_in_place_is_one_line(tar_of_tars, tmp_path, options, faults, message):
    data = tar_of_tars.read_bytes()
    with FileServer({"/fall11_whole.tar": data}, **options) as running:
        running.faults = list(faults)
        with pytest.raises(Error, match=message) as caught:
            convert_quietly(
                dataset="imagenet21k", source=f"{running.url}/fall11_whole.tar", out=tmp_path / "x", res=16, workers=1
            )
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x" / "manifest.json").exists()


def test_another_archive_behind_a_url_is_fetched_to_the_cache(archive, tmp_path):
    address = f"{archive.url}/mirror/cifar-10-python.tar.gz"
    for out in ("a", "b"):
        convert_quietly(dataset="cifar10", source=address, out=tmp_path / out, workers=1)
    assert len(archive.requests) == 1
    assert len(list((tmp_path / "home" / "urls").rglob("cifar-10-python.tar.gz"))) == 1


# --------------------------------------------------------------------------------------------------------- STL-10


def test_stl10(tmp_path, monkeypatch):
    monkeypatch.setattr(stl10, "ROWS_A_UNIT", 7)
    expected = make_stl10(tmp_path / "stl10_binary.tar.gz")
    source = pickle.loads(pickle.dumps(stl10.Stl10(tmp_path / "stl10_binary.tar.gz")))
    assert source.classes[3] == ("cat", "cat")
    for split, (images, found) in expected.items():
        samples = [s for unit in source.units() if unit.split == split for s in source.samples(unit)]
        assert np.array_equal(np.stack([s.data for s in samples]), images)
        assert [s.label for s in samples] == found.tolist()
        assert len({s.key for s in samples}) == len(samples)
    manifest, _ = convert_quietly(
        dataset="stl10", source=str(tmp_path), out=tmp_path / "out", res=96, codec="png", workers=1
    )
    assert manifest.splits["val"].num_samples == 20 and manifest.res == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda files: files.pop("test_y.bin"), "lacks test_y.bin"),
        (
            lambda files: files.update({"train_y.bin": b"\1"}),
            "train_X.bin has 30 images and 0 bytes, train_y.bin 1 labels",
        ),
        (lambda files: files.update({"train_y.bin": b"\0" * 30}), "labels outside 1 to 10"),
    ],
)
def test_stl10_damage_is_one_line(tmp_path, change, message):
    make_stl10(tmp_path / "s.tar.gz", change)
    with pytest.raises(Error, match=message):
        stl10.Stl10(tmp_path / "s.tar.gz")


def test_stl10_other_files(tmp_path):
    make_stl10(tmp_path / "s.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "s.tar.gz").read_bytes()[:200_000])
    (tmp_path / "text.tar.gz").write_bytes(b"hello" * 300)
    for name in ("cut.tar.gz", "text.tar.gz", "none.tar.gz", "."):
        with pytest.raises(Error):
            stl10.Stl10(tmp_path / name)
