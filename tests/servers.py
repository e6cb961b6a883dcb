"""Servers on 127.0.0.1 for the tests: files by HTTP with every fault a download meets."""

import base64
import hashlib
import json
import mmap
import select
import socket
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


class FileServer:
    """Serves `files` (path -> bytes) with ranges and ETags.

    faults: taken one a request, in order. Each is None, or a function (handler, body) -> body that may send an answer
    of its own and return None, or set handler.cut / handler.stall to stop the body after so many bytes, or handler.hold
    to (so many bytes, a state): the rest is sent once the state is true.
    sent: body bytes that went out. requests: (method, path, headers) of every request.
    stalled: by the client's port, whether it waits for what will never come; also forked processes see it.
    real_timeouts: whether `time_out_in_stalls_alone` does not speak of it.
    """

    running: dict = {}  # noqa: RUF012 - port -> server

    def __init__(self, files=None, ranges=True, tags=True, bytes_per_s=None):
        self.files, self.faults, self.ranges, self.tags = dict(files or {}), [], ranges, tags
        self.bytes_per_s = bytes_per_s
        self.sent, self.requests, self.closing = 0, [], threading.Event()
        self.lock, self.stalled, self.real_timeouts = threading.Lock(), mmap.mmap(-1, 1 << 16), False
        outer = self

        class Handler(_Handler):
            server_state = outer

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.httpd.daemon_threads = True
        self.httpd.handle_error = lambda *_: None  # clients that are killed leave without a word
        self.url = f"http://127.0.0.1:{self.httpd.server_port}"

    def __enter__(self):
        self.running[self.httpd.server_port] = self
        threading.Thread(target=self.httpd.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        del self.running[self.httpd.server_port]
        self.httpd.shutdown()
        self.httpd.server_close()

    def hit(self, path):
        """Whether faults apply to a path."""
        return True

    def find(self, handler, path):
        """The body of a path, or None; raises Answered where it has answered by itself."""
        return self.files.get(path)


class Answered(Exception):
    """The request has been answered already."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: FileServer
    cut = stall = hold = None
    extra: dict = {}  # noqa: RUF012 - headers that `find` wants sent

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        state = self.server_state
        self.cut = self.stall = self.hold = None
        self.extra = {}
        path = unquote(urlsplit(self.path).path)
        with state.lock:
            state.requests.append((self.command, self.path, dict(self.headers)))
            fault = state.faults.pop(0) if state.faults and self.command == "GET" and state.hit(path) else None
        try:
            body = state.find(self, path)
            if body is None:
                self.answer(404)
                return
            if fault is not None:
                body = fault(self, body)
                if body is None:
                    return
            self._serve(state, body)
        except Answered:
            return
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def _serve(self, state, body):
        tag = f'"{hashlib.md5(body).hexdigest()}"'
        start, stop, status = 0, len(body), 200
        asked = self.headers.get("Range", "")
        if asked and state.ranges and self.headers.get("If-Range", tag) == tag:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last) + 1 if last else len(body), len(body)), 206
            if start >= len(body):
                self.answer(416, Content_Range=f"bytes */{len(body)}")
                return
        self.send_response(status)
        self.send_header("Content-Length", str(stop - start))
        if state.tags:
            self.send_header("ETag", tag)
        self.send_header("Last-Modified", formatdate(1e9, usegmt=True))
        if state.ranges:
            self.send_header("Accept-Ranges", "bytes")
        for name, value in self.extra.items():
            self.send_header(name, value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        end = stop
        if self.cut is not None or self.stall is not None:
            end = min(stop, start + (self.cut if self.cut is not None else self.stall))
        step = 1 << 16
        for at in range(start, end, step):
            if self.hold and at - start >= self.hold[0]:
                self._wait(self.hold[1])
            piece = body[at : min(at + step, end)]
            with state.lock:
                state.sent += len(piece)
            self.wfile.write(piece)
            if state.bytes_per_s:
                time.sleep(len(piece) / state.bytes_per_s)
        if self.stall is not None and end < stop:
            port = self.client_address[1]
            state.stalled[port] = 1
            self._wait(lambda: False)
            state.stalled[port] = 0
        if end < stop:
            self.close_connection = True

    def _wait(self, state):
        """Until a state is true, the client is gone, or the server ends."""
        while not state() and not self.server_state.closing.is_set():
            if select.select([self.connection], [], [], 0.005)[0] and not self.connection.recv(1, socket.MSG_PEEK):
                return


def time_out_in_stalls_alone(monkeypatch):
    """Clients in this process, and in its forks, wait for a FileServer however slow the machine is; where it stalls,
    they time out at once."""
    readinto = socket.SocketIO.readinto

    def patient(self, buffer):
        server = FileServer.running.get(self._sock.getpeername()[1])
        while server and not server.real_timeouts and not select.select([self._sock], [], [], 0.005)[0]:
            # What it sent before it stalled is there already.
            if server.stalled[self._sock.getsockname()[1]] and not select.select([self._sock], [], [], 0)[0]:
                raise TimeoutError("timed out")
        return readinto(self, buffer)

    monkeypatch.setattr(socket.SocketIO, "readinto", patient)


# ---------------------------------------------------------------------------------------------------------- faults


def cut(after):
    """Close the connection after so many bytes of the body."""

    def fault(handler, body):
        handler.cut = after
        return body

    return fault


def stall(after):
    """Send nothing more after so many bytes of the body, and keep the connection."""

    def fault(handler, body):
        handler.stall = after
        return body

    return fault


def held(after, state):
    """Send what comes after so many bytes of the body once state() is true."""

    def fault(handler, body):
        handler.hold = after, state
        return body

    return fault


def status(code, **headers):
    """Answer with a status of trouble."""

    def fault(handler, body):
        handler.answer(code, b"trouble", **headers)

    return fault


def replaced(new):
    """Serve another file than before, on this request."""
    return lambda handler, body: new


# ------------------------------------------------------------------------------------------------------ fake Hub


class HubServer(FileServer):
    """The part of the Hugging Face Hub that huggingface_hub calls, over repositories in memory.

    repos: OWNER/NAME -> {path: bytes}. gated: names that want the token. Every commit keeps its own tree.
    """

    TOKEN = "hf_test"

    def __init__(self, repos=None, gated=()):
        super().__init__()
        self.commits, self.gated, self.objects = {}, set(gated), {}
        for name, files in (repos or {}).items():
            self.commit(name, files)

    def commit(self, name, files):
        """Make a commit that changes these files; returns its hash."""
        history = self.commits.setdefault(name, [])
        tree = {**(history[-1][1] if history else {}), **files}
        tree = {path: data for path, data in tree.items() if data is not None}
        sha = hashlib.sha1(
            repr([(p, hashlib.sha1(d).hexdigest()) for p, d in sorted(tree.items())]).encode()
        ).hexdigest()
        history.append((sha, tree))
        return sha

    def tree(self, name, revision="main"):
        history = self.commits.get(name, [])
        if revision == "main" and history:
            return history[-1]
        return next((c for c in history if c[0] == revision), None)

    def hit(self, path):
        return not path.startswith("/api/")

    def find(self, handler, path):
        parts = path.strip("/").split("/")
        allowed = handler.headers.get("Authorization") == f"Bearer {self.TOKEN}"
        if handler.command == "POST" or handler.command == "PUT":
            self.post(handler, path, parts)
            raise Answered
        if parts[0] == "datasets":
            name, revision, file = "/".join(parts[1:3]), parts[4], "/".join(parts[5:])
            self.check(handler, name, revision, not allowed and name in self.gated)
            sha, tree = self.tree(name, revision)
            handler.extra = {"X-Repo-Commit": sha}
            if file not in tree:
                handler.answer(404, b"", X_Error_Code="EntryNotFound")
                raise Answered
            return tree[file]
        if parts[:2] == ["api", "datasets"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            revision = rest[1] if len(rest) > 1 else "main"
            self.check(handler, name, revision, False)
            if rest[:1] == ["auth-check"]:
                self.check(handler, name, "main", not allowed and name in self.gated)
                self.json(handler, {})
            sha, tree = self.tree(name, revision)
            if rest[:1] == ["tree"]:
                query = parse_qs(urlsplit(handler.path).query)
                self.json(handler, self.listed(tree, "/".join(rest[2:]), "true" in query.get("recursive", [])))
            siblings = [{"rfilename": p} for p in tree]
            gated = "auto" if name in self.gated else False
            self.json(
                handler, {"id": name, "sha": sha, "siblings": siblings, "gated": gated, "private": False, "tags": []}
            )
        return None

    def listed(self, tree, folder, recursive):
        """What the Hub lists of a folder: files, and sub-folders where it does not go into them."""
        below = {p: d for p, d in sorted(tree.items()) if not folder or p.startswith(f"{folder}/")}
        start = len(folder) + 1 if folder else 0
        if recursive:
            return [self.entry(p, d) for p, d in below.items()]
        folders = dict.fromkeys(p[: p.index("/", start)] for p in below if "/" in p[start:])
        files = [self.entry(p, d) for p, d in below.items() if "/" not in p[start:]]
        return [{"type": "directory", "path": p, "size": 0, "oid": git_oid(p.encode())} for p in folders] + files

    @staticmethod
    def entry(path, data):
        return {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}

    def check(self, handler, name, revision, closed):
        if name not in self.commits:
            handler.answer(401, b"", X_Error_Code="RepoNotFound")
        elif closed:
            handler.answer(403, b"", X_Error_Code="GatedRepo")
        elif self.tree(name, revision) is None:
            handler.answer(404, b"", X_Error_Code="RevisionNotFound")
        else:
            return
        raise Answered

    def json(self, handler, value):
        handler.answer(200, json.dumps(value).encode(), Content_Type="application/json")
        raise Answered

    # ------------------------------------------------------------------------------------------------ uploading

    def post(self, handler, path, parts):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if handler.command == "PUT":  # the storage that LFS objects go to
            self.objects[parts[-1]] = body
            handler.answer(200)
        elif parts[4:5] != ["paths-info"] and handler.headers.get("Authorization") != f"Bearer {self.TOKEN}":
            handler.answer(401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.commits:
                handler.answer(409, json.dumps({"error": "exists", "url": f"{self.url}/datasets/{name}"}).encode())
            else:
                self.commit(name, {".gitattributes": b""})
                self.json(handler, {"url": f"{self.url}/datasets/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self.json(handler, {"errors": [], "warnings": []})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = []
            for o in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.url}/storage/{o['oid']}"}}
                objects.append({**o, **({} if o["oid"] in self.objects else {"actions": upload})})
            self.json(handler, {"transfer": "basic", "objects": objects})
        elif parts[4] == "paths-info":
            _, tree = self.tree("/".join(parts[2:4]), parts[5])
            asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
            self.json(handler, [self.entry(p, tree[p]) for p in asked if p in tree])
        elif parts[4] == "preupload":
            _, tree = self.tree("/".join(parts[2:4]))
            files = []
            for f in json.loads(body)["files"]:
                mode = "lfs" if f["path"].endswith((".tar", ".beton", ".parquet")) else "regular"
                held = tree.get(f["path"])
                oid = None if held is None else hashlib.sha256(held).hexdigest() if mode == "lfs" else git_oid(held)
                files.append({"path": f["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.json(handler, {"files": files})
        elif parts[4] == "commit":
            files = {}
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "deletedFile":
                    files[value["path"]] = None
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
            sha = self.commit("/".join(parts[2:4]), files)
            url = f"{self.url}/datasets/{'/'.join(parts[2:4])}/commit/{sha}"
            self.json(handler, {"success": True, "commitOid": sha, "commitUrl": url})
        else:
            handler.answer(404)


def git_oid(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
