"""Train from a server without a copy, with a cold and a warm cache, beside the local stream tier and beside fetching.

Usage: python tests/bench/remote.py FOLDER [--samples 40000] [--codec jpg] [--limit-share 0.5]

The shards are tars of 64 px, served over HTTP by a process on this machine, whose cores it shares: a server elsewhere
would leave them. Every contestant is a process of its own that reads one epoch in batches of 1,024, its clock from the
first batch asked for to the last, after an epoch over other files. `local` is the stream tier over the same tars in a
folder, `cold` the URL with an empty cache, `warm` the URL again, `half` its third epoch with room for a share of the
tars. `fetch` is the ceiling of `cold`: four threads that get the same tars by HTTP, hash, write and sync them. Windows
have an eighth of the data, which stand for a part of larger ones. Prints one JSON row.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import harness

ROOT = Path(__file__).resolve().parents[2]
EPOCH = """
import json, resource, sys, time
import mlpdata
from mlpdata.loader import jpeg_batch, stream
jpeg_batch.batch_decoder()  # set up now, not while the clock runs
cache_bytes, epochs = int(sys.argv[2]) or None, int(sys.argv[3])
stream.WINDOW_BYTES = stream.TAR_WINDOW_BYTES = int(sys.argv[4])
for batch in mlpdata.load(sys.argv[5], "val", batch_size=256, tier="stream", format="tar"):
    pass  # threads and buffers
began = time.perf_counter()
loader = mlpdata.load(sys.argv[1], batch_size=1024, tier="stream", format="tar", cache_bytes=cache_bytes)
opened = time.perf_counter() - began
for epoch in range(epochs):
    before = loader.index.cache.fetched_bytes if loader.index.cache else 0
    started, n = time.perf_counter(), 0
    for batch in loader:
        n += len(batch.ids)
    seconds = time.perf_counter() - started
assert n == loader.num_samples
print(json.dumps({"s": seconds, "open_s": opened, "n": n,
                  "fetched": loader.index.cache.fetched_bytes - before if loader.index.cache else 0,
                  "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))
"""
FETCH = """
import hashlib, json, os, sys, time, urllib.request
from concurrent.futures import ThreadPoolExecutor
url, out, names = sys.argv[1], sys.argv[2], sys.argv[3:]
def fetch(name):
    digest = hashlib.sha256()
    with urllib.request.urlopen(f"{url}/{name}") as source, open(f"{out}/{name}", "wb") as target:
        while block := source.read(1 << 20):
            digest.update(block)
            target.write(block)
        os.fsync(target.fileno())
started = time.perf_counter()
with ThreadPoolExecutor(4) as pool:
    list(pool.map(fetch, names))
print(json.dumps({"s": time.perf_counter() - started}))
"""


class Files(BaseHTTPRequestHandler):
    """The files of a folder, with ranges."""

    protocol_version = "HTTP/1.1"

    def __init__(self, folder: Path, *args):
        self.folder = folder
        super().__init__(*args)

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = self.folder / Path(self.path).name
        if not path.is_file():
            self.send_error(404)
            return
        size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), min(int(asked[2] or size) + 1, size)) if asked else (0, size)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.name}-{size}"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "GET":
            with open(path, "rb") as f:
                while start < stop and (sent := os.sendfile(self.connection.fileno(), f.fileno(), start, stop - start)):
                    start += sent

    do_HEAD = do_GET


def serve(folder: str) -> None:
    """What the server's process runs: prints its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, Path(folder)))
    server.handle_error = lambda *_: None  # who has read enough leaves without a word
    print(server.server_port, flush=True)
    server.serve_forever()


def python(code: str, home: Path, *words: object) -> dict:
    """What a program prints, with a download folder of its own."""
    command = [sys.executable, "-c", code, *map(str, words)]
    env = {**os.environ, "MLPDATA_HOME": str(home)}
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout)


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--codec", choices=["jpg", "raw"], default="jpg")
    parser.add_argument("--limit-share", type=float, default=0.5)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    shards, home = args.folder / f"shapes-64-{args.codec}-{args.samples}", args.folder / "home"
    if not (shards / "manifest.json").exists():
        words = ["convert", "shapes", "--res", "64", "--format", "tar", "--codec", args.codec, "--quiet"]
        words += ["--limit", str(args.samples), "--shard-size", str(max(1, args.samples // 80)), "--out", str(shards)]
        subprocess.run([sys.executable, "-m", "mlpdata", *words], check=True, cwd=ROOT, stdout=sys.stderr)
    tars = sorted(shards.glob("train-*.tar"))
    total = sum(tar.stat().st_size for tar in tars)
    limit = int(args.limit_share * total)
    window = min(256 << 20, total // 8)  # small data stand for a part of large ones
    program = f"import sys; sys.path[0] = {str(Path(__file__).parent)!r}; import remote; remote.serve({str(shards)!r})"
    results: dict[str, list[dict]] = {name: [] for name in ("local", "cold", "warm", "half", "fetch")}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/shards"
            for _ in range(args.runs):
                results["local"].append(python(EPOCH, home, shards, 0, 1, window, shards))
                shutil.rmtree(home, ignore_errors=True)
                results["cold"].append(python(EPOCH, home, url, 0, 1, window, shards))
                results["warm"].append(python(EPOCH, home, url, 0, 1, window, shards))
                shutil.rmtree(home)
                results["half"].append(python(EPOCH, home, url, limit, 3, window, shards))
                results["fetch"].append(python(FETCH, home, url, home, *(tar.name for tar in tars)))
        finally:
            server.terminate()
    shutil.rmtree(home)
    n = results["local"][0]["n"]
    speeds = {name: [n / row["s"] for row in rows] for name, rows in results.items()}
    row = {
        "bench": "remote",
        "codec": args.codec,
        "samples": n,
        "tars": len(tars),
        "bytes": total,
        "window_bytes": window,
    }
    row |= {"half_limit_share": args.limit_share, "half_fetched_share": results["half"][-1]["fetched"] / total}
    row |= {"open_s": {name: results[name][-1]["open_s"] for name in ("local", "cold", "warm")}}
    row |= {"peak_mb": {name: max(r["peak_mb"] for r in results[name]) for name in ("local", "cold", "warm", "half")}}
    row |= harness.machine("numpy", "torch", "fsspec", "aiohttp")
    row |= {f"{name}_images_per_s": harness.spread(values, 0) for name, values in speeds.items()}
    row |= {
        f"{name}_to_local": harness.median_ratio(speeds[name], speeds["local"]) for name in ("cold", "warm", "half")
    }
    row |= {"cold_to_fetch": harness.median_ratio(speeds["cold"], speeds["fetch"])}
    harness.report(row)


if __name__ == "__main__":
    main()
