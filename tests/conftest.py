"""What every test may use: fixtures, conversions without a word, commands, and waiting for a state."""

import hashlib
import json
import multiprocessing as mp
import os
import random
import re
import signal
import subprocess
import sys
import time
from operator import attrgetter
from pathlib import Path

if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: its threads spin where other processes have the cores

import pytest
from archives import make_folder
from hypothesis import HealthCheck, settings
from servers import HubServer, time_out_in_stalls_alone

from mlpdata.convert.options import Options
from mlpdata.convert.run import convert
from mlpdata.fetch import retry
from mlpdata.shards.manifest import content_sha256
from mlpdata.system import engines

# A slow machine is no failure; what fails, fails each time.
settings.register_profile(
    "mlpdata", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("mlpdata")

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


# ------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="session", autouse=True)
def signals_as_from_a_terminal():
    """What nohup or a script's `&` had this process ignore, it goes on to ignore, but not what it starts."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # no handler of this process's stays with another program


def convert_quietly(**options):
    lines = []
    manifest = convert(Options(quiet=True, **options), say=lines.append)
    return manifest, lines


@pytest.fixture(autouse=True)
def same_draws():
    """What a test draws from global generators does not depend on the tests before it."""
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if module := sys.modules.get(name):
            attrgetter(seed)(module)(0)


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """A finished directory of the procedural data set: 1,500 train and 1,500 val samples at 16 px, both formats."""
    out = tmp_path_factory.mktemp("shapes") / "shapes-16"
    convert_quietly(dataset="shapes", res=16, out=out, workers=2, limit=1500, shard_size=400)
    return out


@pytest.fixture(scope="session")
def photos_dir(tmp_path_factory):
    """A finished directory of JPEG sources at 32 px, both formats: raw beton, JPEG tars."""
    base = tmp_path_factory.mktemp("photos")
    make_folder(base / "in", per_class=20)
    convert_quietly(dataset="folder", source=str(base / "in"), res=32, out=base / "out", workers=2, shard_size=25)
    return base / "out"


@pytest.fixture
def recipe(request, tmp_path, shapes_dir):
    """The test module's own RECIPE as a file, for the shapes."""
    path = tmp_path / "tiny.yaml"
    path.write_text(request.module.RECIPE.format(shards=shapes_dir))
    return path


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Start a Hub with these repositories, and make huggingface_hub talk to it."""
    running = []

    def start(repos, gated=()):
        server = HubServer(repos, gated)
        running.append(server)
        server.__enter__()
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        return server

    monkeypatch.setattr(retry, "FIRST_PAUSE_S", 0.01)
    time_out_in_stalls_alone(monkeypatch)
    # Workers take over the shorter pauses only when forked, which the server's thread would speak against.
    monkeypatch.setattr(engines, "process_context", lambda: mp.get_context("fork"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # of the commands that tests start, and of this process:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # it may have read its variables before
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield start
    for server in running:
        server.__exit__()


@pytest.fixture(scope="module")
def s3():
    """moto's S3 with one empty bucket; the address is in the environment, where every S3 client looks for it."""
    s3fs = pytest.importorskip("s3fs", reason="object storage needs s3fs (the extra `remote`)")
    moto_server = pytest.importorskip("moto.server", reason="the S3 of these tests is moto's")
    import boto3

    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # which knows the address of another module's server
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client
    server.stop()


class Inline:
    """Stands for LocalEngine where it is not what is tested: no processes to wait for."""

    def __init__(self, num_workers, state):
        self.state = state

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, tasks, progress=None, amount=None):
        return ((task, function(self.state, task)) for task in tasks)


def change_manifest(root, **changes):
    """As if a manifest had been written with other values."""
    path = root / "manifest.json"
    values = {**json.loads(path.read_text()), **changes}
    values.pop("manifest_sha256", None)
    path.write_text(json.dumps({**values, "manifest_sha256": content_sha256(values)}))


def relist(root):
    """Have the manifest list the files as they are: what is wrong in them is then found without their checksums."""
    files = {}
    for name in json.loads((root / "manifest.json").read_text())["files"]:
        with open(root / name, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        files[name] = {"bytes": (root / name).stat().st_size, "sha256": digest}
    change_manifest(root, files=files)


HANG_S = 300  # no test waits for a time: this only tells a hang, on the slowest of machines


def run_cli(*words, timeout=HANG_S, **options):
    """Run the command line as a user does; returns the completed process, its stderr without progress."""
    command = [sys.executable, "-m", "mlpdata.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)
    done.stderr = without_progress(done.stderr)
    return done


def without_progress(text):
    """What a command says but for its lines of progress and of compiling, which only a slow machine shows."""
    slow = r"^(?!mlpdata: )(.*, after [\d:]+ (s|min|h)(, .*)?|compiling the augmentation .*)\n"
    return re.sub(slow, "", text, flags=re.MULTILINE)


def until(state, *processes):
    """Wait until state() is true and return what it gave; fails where a process ends first, and where all hang."""
    began = time.monotonic()
    while not (found := state()):
        for process in processes:
            assert process.poll() is None, process.communicate()
        if time.monotonic() - began > HANG_S:
            for process in processes:
                process.kill()
            pytest.fail("it hangs")
        time.sleep(0.005)
    return found


class Gate:
    """Holds other Python processes behind a call of a function until the test lets them go.

    env: what to start the processes with. function: "module:name"; calls: after which of a process's calls to hold it.
    before: lines of Python that the processes run first.
    """

    PROGRAM = """if True:
        import functools, importlib, os
        *owners, name = {name!r}.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module({module!r}))
        function, count = getattr(owner, name), 0
        @functools.wraps(function)
        def held(*args, **options):
            global count
            result, count = function(*args, **options), count + 1
            gate = os.path.join({folder!r}, f"gate-{{count}}")
            if os.path.exists(gate):
                open(f"{{gate}}.{{os.getpid()}}", "w").close()
                try:
                    open(gate, "rb").close()  # waits for the test to open it
                except FileNotFoundError:
                    pass
            return result
        setattr(owner, name, held)
    """

    def __init__(self, folder, function, calls=(1,), before=""):
        self.folder, self._open = folder, []
        (folder / "site").mkdir(parents=True)
        module, _, name = function.partition(":")
        program = self.PROGRAM.format(module=module, name=name, folder=str(folder))
        (folder / "site" / "sitecustomize.py").write_text(before + program)
        path = [str(folder / "site"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
        for call in calls:
            self.shut(call)

    def shut(self, call=1):
        os.mkfifo(self.folder / f"gate-{call}")

    def held(self, call=1):
        """The pids of the processes that are held after that call."""
        return [int(p.suffix[1:]) for p in self.folder.glob(f"gate-{call}.*")]

    def open(self, call=1):
        """Let all go on: those that wait, and those that come."""
        path = self.folder / f"gate-{call}"
        self._open.append(os.open(path, os.O_RDWR))  # stays open: one may be just about to wait
        path.unlink()


def sums(root):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.iterdir())}


def read_jsonl(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
