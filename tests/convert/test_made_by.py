"""The command that info and README print, run as it stands, makes the same directory again."""

import shlex
import shutil

import pytest
from archives import encoded, make_beton, make_cifar, picture
from click.testing import CliRunner
from conftest import Inline, sums

from mlpdata.cli import main
from mlpdata.convert import run
from mlpdata.inspect.info import info
from mlpdata.shards.manifest import Manifest

CLASSES = [f"class {i:02d}" for i in range(25)]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The folder that holds every source, and is the working directory."""
    monkeypatch.setattr(run, "LocalEngine", Inline)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mlpdata(*words):
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 0, done.output


def check(out):
    """Run the printed command; returns it."""
    (line,) = [line for line in info(out).splitlines() if line.startswith("made by")]
    command = line.removeprefix("made by").strip()
    assert command == Manifest.load(out).made_by and f"    {command}\n" in (out / "README.md").read_text()
    program, *words = shlex.split(command)
    before = set(out.parent.glob("*"))
    assert program == "mlpdata"
    mlpdata(*words)
    made = words[words.index("--out") + 1] if "--out" in words else None
    again = out.parent / made if made else next(out.parent.glob("shards/*"))
    assert again not in before and sums(again) == sums(out)
    return command


def make_photos(folder, classes, n=4):
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for k in range(n):
            (folder / name / f"{k}.jpg").write_bytes(encoded(picture(70, 50, 10 * i + k)))
    (folder / classes[0] / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--format tar --codec png --resize crop --filter lanczos --res 20",
        "--format beton --codec jpg --quality 71 --decode exact --seed 5",
        "--limit 5 --shard-size 3",
        "--min-class-size 2 --val-per-class 1",
        "--classes 'my classes.txt' --resize longest",
    ],
)
def test_of_a_folder(here, options):
    source = make_photos(here / "my photos", CLASSES[:3])
    (here / "my classes.txt").write_text("class 02\nclass 00\n")
    mlpdata(
        "convert", "folder", "--source", source, "--max-skipped", 0.5, "--out", here / "first", *shlex.split(options)
    )
    command = check(here / "first")
    assert command.startswith("mlpdata convert folder --source 'my photos' ") and str(here) not in command


def test_of_one_split_of_a_folder(here):
    for split in ("train", "val"):
        make_photos(here / "in" / split, CLASSES[:2])
    mlpdata("convert", "folder", "--source", "in", "--split", "val", "--max-skipped", 1, "--out", here / "first")
    assert "--split val" in check(here / "first")


def test_of_files_by_a_pattern_and_of_columns(here):
    images = [encoded(picture(16, 16, i)) for i in range(6)]
    for name in ("train", "val"):
        make_beton(here / f"{name}.beton", images, list(range(6)), fields=(("my image", 2), ("my label", 1)))
    words = ["--image-column", "my image", "--label-column", "my label", "--res", 16, "--out", here / "first"]
    mlpdata("convert", "beton", "--source", here / "*.beton", *words)
    command = check(here / "first")
    assert "--source '*.beton'" in command and "--image-column 'my image'" in command


def test_of_an_official_archive_given_or_found(here, monkeypatch):
    monkeypatch.setenv("MLPDATA_HOME", str(here / "home"))
    make_cifar(here / "cifar-10-python.tar.gz")
    mlpdata("convert", "cifar10", "--source", here / "cifar-10-python.tar.gz", "--out", here / "first")
    (here / "home").mkdir()
    shutil.copy(here / "cifar-10-python.tar.gz", here / "home")
    mlpdata("convert", "cifar10", "--out", here / "found")
    assert sums(here / "found") == sums(here / "first")
    assert "--source cifar-10-python.tar.gz" in check(here / "first")


@pytest.mark.parametrize(
    "options",
    [
        "subset 'my shards' --fraction 0.5 --split-off 'dev=1' --seed 3",
        "subset 'my shards' --per-class 3 --limit 40 --dedupe exact --format tar",
        f"subset 'my shards' --classes '{','.join(CLASSES[24:2:-1])}'",
        "subset 'my shards' --classes 'my classes.txt' --shard-size 4",
        "merge 'my shards' other --classes union --codec png",
        "relabel 'my shards' --map 'my map.tsv' --drop-unmapped",
        "resize 'my shards' --res 12 --filter bicubic --decode exact --quality 80",
    ],
)
def test_of_shard_directories(here, options):
    for name, classes in (("my shards", CLASSES), ("other", ["x y"])):
        make_photos(here / f"in {name}", classes)
        codec = "jpg" if name == "other" else "png"
        words = ["--res", 24, "--max-skipped", 1, "--codec", codec, "--out", here / name]
        mlpdata("convert", "folder", "--source", here / f"in {name}", *words)
    (here / "my classes.txt").write_text("".join(f"{name}\n" for name in CLASSES[9:1:-1]))
    (here / "my map.tsv").write_text("class 00\tall\nclass 01\tall\nclass 07\tnone else\n")
    command, *words = shlex.split(options)
    mlpdata(command, *words, "--out", here / "first")
    assert f"--out 'my shards-{command}'" in check(here / "first")
    assert "in my shards" in Manifest.load(here / "first").parents[0]["command"]
