"""Fetching and verifying a file against curl and md5sum, from a server on this machine, with interleaved repeats.

    python tests/bench/download.py --megabytes 1000

- ours: `fetch` with size and MD5 known: range by range into a part file, journal, checksum, fsync, rename
- curl: `curl -o FILE URL && md5sum FILE && sync FILE`: the same bytes, checksum and disk, nothing to resume

Prints one JSON row. Both share the cores with the server.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import multiprocessing
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import harness

from mlpdata.fetch.download import RemoteFile, fetch


class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def copyfile(self, source, outputfile):
        self.connection.sendfile(source)


def serve(folder: Path, pipe) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    pipe.send(server.server_port)
    server.serve_forever()


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if not shutil.which("curl"):
        raise SystemExit("there is no curl here to compare with")
    seconds: dict[str, list[float]] = {"ours": [], "curl": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "served").mkdir()
        digest = hashlib.md5()
        with open(folder / "served" / "file.bin", "wb") as f:
            for _ in range(args.megabytes):
                block = os.urandom(1_000_000)
                f.write(block)
                digest.update(block)
        ours, theirs = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(folder / "served", theirs), daemon=True)
        server.start()
        url = f"http://127.0.0.1:{ours.recv()}/file.bin"
        wanted = RemoteFile(name="file.bin", urls=(url,), num_bytes=args.megabytes * 1_000_000, md5=digest.hexdigest())
        for k in range(args.repeats):
            started = time.perf_counter()
            fetch(wanted, folder / f"ours-{k}", quiet=True)
            seconds["ours"].append(time.perf_counter() - started)
            shutil.rmtree(folder / f"ours-{k}")
            path = folder / "curl.bin"
            started = time.perf_counter()
            subprocess.run(["curl", "-s", "-o", path, url], check=True)
            subprocess.run(["md5sum", path], check=True, capture_output=True)
            subprocess.run(["sync", path], check=True)
            seconds["curl"].append(time.perf_counter() - started)
            path.unlink()
        server.terminate()
    rates = {name: [args.megabytes / s for s in times] for name, times in seconds.items()}
    harness.report({
        "bench": "download",
        "megabytes": args.megabytes,
        **harness.machine("requests", "urllib3"),
        **{f"{name}_mb_per_s": harness.spread(r, 1) for name, r in rates.items()},
        "ratio_to_curl": round(statistics.median(rates["ours"]) / statistics.median(rates["curl"]), 2),
    })  # fmt: skip


if __name__ == "__main__":
    main()
