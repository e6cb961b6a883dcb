"""Whatever a path or a class is called, what is printed of it is one line that a terminal takes for text."""

import io
import signal
from pathlib import Path

import pytest
from archives import encoded, picture
from click.testing import CliRunner

from mlpdata.cli import main
from mlpdata.errors import Error, printable, printable_lines
from mlpdata.system.progress import Progress

ODD = "odd\nLINE\x1b[2J\r"
SHOWN = r"odd\nLINE\x1b[2J\r"
RECIPE = """\
data: {shards: plain}
model: {depth: 1, width: 8}
train: {epochs: 1, batch_size: 4, device: cpu}
log: {tensorboard: false}
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """Run a command in this process and return what it printed; every line of that is looked at."""
    base = tmp_path_factory.mktemp("names")
    for split in ("train", "val"):
        for i, name in enumerate((ODD, f"{ODD}2")):
            (base / ODD / split / name).mkdir(parents=True)
            for k in range(4):
                (base / ODD / split / name / f"{k}.png").write_bytes(encoded(picture(20, 20, 10 * i + k), "PNG"))
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(*words):
        done = CliRunner().invoke(main, list(map(str, words)), catch_exceptions=False)
        for line in done.output.split("\n"):
            assert line.isprintable() and not line.startswith("LINE"), (words, done.output)
        return done.output

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)
        yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_every_command_prints_names_as_text(commands):
    shards = Path(f"shards{ODD}")
    convert = ("convert", "folder", "--source", ODD, "--res", 16, "--workers", 1, "--out", shards)
    assert SHOWN in commands(*convert) and "nothing to do" in commands(*convert)
    assert SHOWN in commands("info", shards) and SHOWN in commands("verify", shards)
    assert SHOWN in commands("stats", shards) and SHOWN in commands("snippet", shards, "--for", "numpy")
    assert SHOWN in commands("preview", shards, "-o", f"{ODD}.png")
    assert SHOWN in commands("report", shards, "-o", f"{ODD}.html")
    assert SHOWN in commands("export", shards, "--to", "folder", "-o", f"export{ODD}")
    assert SHOWN in commands("subset", shards, "--classes", ODD, "--workers", 1, "--out", f"subset{ODD}")
    assert "both" in commands("bench", shards, "--seconds", 0.1, "--batch-size", 4, "--device", "cpu")
    Path("plain").symlink_to(shards)  # texts in recipes are of one line
    Path("tiny.yaml").write_text(RECIPE)
    commands("train", "tiny.yaml")
    run = Path(f"run{ODD}")
    run.symlink_to("runs/tiny")
    assert SHOWN in commands("eval", run, "--shards", shards, "--per-class", "--predictions", f"{ODD}.parquet")
    assert SHOWN in commands("predict", run, Path(ODD, "val", ODD, "0.png"))
    (shards / "train.beton").unlink()
    assert SHOWN in commands("info", shards)


def test_lines_of_a_text_stay_lines():
    assert printable_lines(["a", "b\nc"]) == "a\nb\\nc"
    assert printable("é\u2028\udce9") == str(Error("é\u2028\udce9")) == r"é\u2028\udce9"


def test_progress_shows_its_title_as_text(monkeypatch):
    monkeypatch.setattr("sys.stderr", shown := io.StringIO())
    progress = Progress(f"fetching {ODD}", 10, unit="file")
    progress.add(1)
    progress._show("", "")
    assert shown.getvalue().startswith(f"fetching {SHOWN}: 1 of 10 files") and shown.getvalue().count("\n") == 1
