"""Exports hold what the shard directory holds: read back by the libraries that they are for, and by our own convert."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from archives import encoded, picture
from conftest import Inline, change_manifest, convert_quietly, run_cli
from huggingface_hub import DatasetCard
from PIL import Image

import mlpdata
from mlpdata import Error
from mlpdata.datasets import SPECS
from mlpdata.export import run, samples, workdir
from mlpdata.export.options import ExportOptions
from mlpdata.export.other_format import export_shards
from mlpdata.export.record import load_record
from mlpdata.export.run import export
from mlpdata.image import encode_jpeg
from mlpdata.inspect.verify import verify
from mlpdata.shards import index
from mlpdata.shards.classes import read_classes
from mlpdata.shards.manifest import Manifest
from mlpdata.sources.credits import CREDITS
from mlpdata.splits import on_hub

sys.path.append(str(Path(__file__).parents[1] / "interop"))
import environment

READ = Path(__file__).with_name("read_with.py")
# Which library another environment has to have for a format; None: this one has it.
READERS = {
    "folder": "torchvision",
    "parquet": None,
    "arrow": None,
    "npz": None,
    "mds": "streaming",
    "litdata": "litdata",
    "tfrecord": "tensorflow",
    "tfds": "tensorflow_datasets",  # reads tfrecord
}
HUB_NAMED = ("parquet", "arrow", "tfrecord", "tfds")  # their `validation` is our `val`


def export_quietly(root, to, out, **options):
    lines = []
    record = export(ExportOptions(root=root, to=to, out=out, quiet=True, **options), say=lines.append)
    return record, lines


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def inline(monkeypatch):
    """Work in this process, where how the work is shared is not what is tested."""
    monkeypatch.setattr(run, "LocalEngine", Inline)


def files_of(out):
    """{path: SHA-256} of everything in an export."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    return {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def read_back(to, out, splits, tmp_path):
    """{split: (images, labels, class names)} as the library of a format sees them."""
    python = python_with(library) if (library := READERS[to]) else sys.executable
    results = {split: tmp_path / f"{to}-{split}.npz" for split in splits}
    theirs = on_hub if to in HUB_NAMED else str
    words = [word for split, result in results.items() for word in (theirs(split), result)]
    environment.run([READ, to, out, *words], python=python, home=tmp_path / "hf")
    seen = {split: np.load(result) for split, result in results.items()}
    return {split: (s["images"], s["labels"], json.loads(s["names"].item())) for split, s in seen.items()}


@functools.cache
def python_with(library):
    """The Python of an environment that has a library; skips the test where none has.

    Beside the environments of this folder, those are looked at whose Pythons MLPDATA_PYTHONS lists, by colons.
    """
    pythons = [environment.PYTHON, environment.ROOT / ".venv-strangers" / "bin" / "python"]
    pythons += [Path(name) for name in os.environ.get("MLPDATA_PYTHONS", "").split(":") if name]
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({library!r}) is None)"
    for python in pythons:
        if python.exists() and not subprocess.run([python, "-c", code], check=False).returncode:
            return python
    pytest.skip(f"no environment has {library}")


def in_folder_order(root, split, images, labels):
    """Samples in the order in which ImageFolder has them: by class, then by file name."""
    keys = index.keys(root, Manifest.load(root), split)
    names = [key.split("/", 1)[-1].replace("/", "_") for key in keys]
    order = sorted(range(len(keys)), key=lambda i: (labels[i], names[i]))
    return images[order], labels[order]


@pytest.mark.parametrize("to", READERS)
def test_the_librarys_reader_sees_our_samples(shapes_dir, tmp_path, to):
    form = "tfrecord" if to == "tfds" else to
    if form == "tfrecord":
        pytest.importorskip("google_crc32c")
    record, lines = export_quietly(shapes_dir, form, tmp_path / "out", file_bytes=200_000)
    assert record.splits == {"train": 1500, "val": 1500} and lines[-1].startswith("done: 3,000 images")
    seen = read_back(to, tmp_path / "out", ["train", "val"], tmp_path)
    for split, (seen_images, seen_labels, names) in seen.items():
        images, labels = mlpdata.load(shapes_dir, split, 64).arrays()
        if to == "folder":
            images, labels = in_folder_order(shapes_dir, split, images, labels)
        assert np.array_equal(seen_labels, labels) and np.array_equal(seen_images, images)
        classes = [name for _, name in read_classes(shapes_dir)]
        assert names in (classes if to != "folder" else [f"{i}-{name}" for i, name in enumerate(classes)], None)
        assert names or to in ("mds", "litdata")  # which have no place for them: classes.txt has
    assert to in ("arrow", "npz") or read_classes(tmp_path / "out") == read_classes(shapes_dir)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("to", "dataset"), [("folder", "folder"), ("parquet", "hub")])
def test_convert_gives_back_what_was_exported(photos_dir, tmp_path, to, dataset):
    """JPEGs pass through both ways."""
    out, back = tmp_path / "out", tmp_path / "back"
    export_quietly(photos_dir, to, out)
    manifest, _ = convert_quietly(dataset=dataset, source=str(out), res=32, out=back, workers=1)
    first = Manifest.load(photos_dir)
    assert manifest.tar_codec == first.tar_codec == "jpg" and manifest.num_classes == first.num_classes
    assert read_classes(back) == read_classes(photos_dir)
    for split, info in first.splits.items():
        assert manifest.splits[split].class_counts == info.class_counts
        assert jpegs(back, split) == jpegs(photos_dir, split)


def jpegs(root, split):
    """The encoded images of a split's tars, sorted."""
    manifest = Manifest.load(root)
    columns = index.columns(root, manifest, split, ["offset", "bytes"])
    files = np.repeat(manifest.splits[split].tars, manifest.splits[split].tar_lengths)
    data = {name: (root / name).read_bytes() for name in set(files)}
    extents = zip(files, columns["offset"].tolist(), columns["bytes"].tolist(), strict=True)
    return sorted(data[name][offset : offset + size] for name, offset, size in extents)


@pytest.mark.usefixtures("inline")
def test_lineage(shapes_dir, tmp_path):
    record, _ = export_quietly(shapes_dir, "parquet", tmp_path / "out", splits=("val",))
    assert record == load_record(tmp_path / "out") and record.splits == {"val": 1500}
    assert record.origin.directory == shapes_dir.name
    assert record.origin.manifest_sha256 == hashlib.sha256((shapes_dir / "manifest.json").read_bytes()).hexdigest()
    assert record.command == "mlpdata export shapes-16 --to parquet --split val --codec stored"
    files = files_of(tmp_path / "out")
    files.pop("export.json")
    assert {name: entry["sha256"] for name, entry in record.files.items()} == files


@pytest.mark.usefixtures("inline")
def test_what_the_viewer_of_the_hub_wants(shapes_dir, tmp_path):
    """Small row groups with a page index, and a card that the Hub's library reads, with licence, classes and counts."""
    export_quietly(shapes_dir, "parquet", tmp_path / "out", file_bytes=500_000)
    paths = sorted((tmp_path / "out" / "data").iterdir())
    assert [path.name for path in paths if "train" in path.name] == [
        f"train-0000{k}-of-00003.parquet" for k in range(3)
    ]
    for path in paths:
        metadata = pq.ParquetFile(path).metadata
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            assert group.num_rows <= 1024 and group.total_byte_size < 300_000_000
            assert group.column(0).has_offset_index
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "mit" and card.data.size_categories == ["1K<n<10K"]
    info = card.data.to_dict()["dataset_info"]
    assert [split["num_examples"] for split in info["splits"]] == [1500, 1500]
    assert info["features"][1]["dtype"]["class_label"]["names"]["0"] == "disc"
    assert info["download_size"] == sum(path.stat().st_size for path in paths)


def test_credits_are_of_data_sets_that_there_are():
    assert set(CREDITS) <= {spec.title for spec in SPECS.values()}


# ------------------------------------------------------------------------------------------------------ going on


class Stopped(Inline):
    """Stops after some pieces, as Ctrl-C does."""

    after = 0

    def map(self, function, tasks, progress=None, amount=None):
        for task in tasks:
            if isinstance(task, run.Piece):
                if not Stopped.after:
                    raise KeyboardInterrupt
                Stopped.after -= 1
            yield task, function(self.state, task)


@pytest.mark.parametrize("to", ["folder", "parquet", "npz", "arrow", "mds", "litdata", "tfrecord"])
def test_an_interrupted_export_goes_on_with_the_same_bytes(shapes_dir, tmp_path, monkeypatch, to):
    if to == "tfrecord":
        pytest.importorskip("google_crc32c")
    monkeypatch.setattr(run, "LocalEngine", Inline)
    export_quietly(shapes_dir, to, tmp_path / "whole", file_bytes=300_000)
    out = tmp_path / "out"
    monkeypatch.setattr(run, "LocalEngine", Stopped)
    for _ in range(2):
        Stopped.after = 1
        with pytest.raises(Error, match=r"stopped; what is done stays in .*the same command goes on"):
            export_quietly(shapes_dir, to, out, file_bytes=300_000)
        assert [path.name for path in out.iterdir()] == [".export"]
        if to == "folder" or to == "npz":
            break  # two pieces in all
    Stopped.after = 1 << 30
    _, lines = export_quietly(shapes_dir, to, out, file_bytes=300_000)
    assert any("going on" in line for line in lines)
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("inline")
def test_an_export_that_was_stopped_at_its_very_end(shapes_dir, tmp_path, monkeypatch):
    export_quietly(shapes_dir, "arrow", tmp_path / "whole")
    rename, calls = workdir.os.rename, []

    def stop(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(workdir.os, "rename", stop)
        with pytest.raises(Error, match="stopped"):
            export_quietly(shapes_dir, "arrow", tmp_path / "out")
    assert not (tmp_path / "out" / "export.json").exists()
    export_quietly(shapes_dir, "arrow", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    _, lines = export_quietly(shapes_dir, "arrow", tmp_path / "out")
    assert lines == [f"{tmp_path / 'out'} already holds exactly this: nothing to do"]


@pytest.mark.usefixtures("inline")
def test_the_machine_is_started_anew_at_the_very_end_of_an_export(shapes_dir, tmp_path, monkeypatch):
    export_quietly(shapes_dir, "arrow", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(run, "complete", interrupt)
        with pytest.raises(Error, match="stopped"):
            export_quietly(shapes_dir, "arrow", tmp_path / "out")
    monkeypatch.setattr(workdir, "boot_id", lambda: "another")
    export_quietly(shapes_dir, "arrow", tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


@pytest.mark.usefixtures("inline")
def test_an_export_that_lost_a_file_before_its_end_is_none(shapes_dir, tmp_path, monkeypatch):
    for to in ("arrow", "folder"):
        out = tmp_path / to
        with monkeypatch.context() as patch:
            patch.setattr(run, "complete", interrupt)
            with pytest.raises(Error, match="stopped"):
                export_quietly(shapes_dir, to, out)
        next(path for path in (out / ".export" / "data").rglob("*") if path.suffix in (".arrow", ".png")).unlink()
        with pytest.raises(Error, match=r"is missing; delete|images instead of .*; delete"):
            export_quietly(shapes_dir, to, out)
        assert not (out / "export.json").exists()


@pytest.mark.usefixtures("inline")
def test_a_finished_folder_that_lost_an_image_is_not_called_whole(shapes_dir, tmp_path):
    export_quietly(shapes_dir, "folder", tmp_path / "out")
    next((tmp_path / "out").rglob("*.png")).unlink()
    with pytest.raises(Error, match=r"out holds 2,999 images instead of 3,000; delete"):
        export_quietly(shapes_dir, "folder", tmp_path / "out")


def test_a_lock_that_its_holder_has_just_removed_holds_nothing(tmp_path, monkeypatch):
    out, flock = workdir.ExportDir(tmp_path / "out"), workdir.fcntl.flock

    def late(file, kind):  # the other run ends between the opening of the lock and its taking
        workdir.clean_up(out)
        flock(file, kind)

    monkeypatch.setattr(workdir.fcntl, "flock", late)
    with pytest.raises(Error, match="another export is at work"), workdir.locked(out):
        pass


@pytest.mark.usefixtures("inline")
def test_what_was_written_before_the_machine_was_started_is_written_again(shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Stopped)
    Stopped.after = 1
    with pytest.raises(Error, match="stopped"):
        export_quietly(shapes_dir, "arrow", tmp_path / "out")
    monkeypatch.setattr(workdir, "boot_id", lambda: "another")
    Stopped.after = 1 << 30
    _, lines = export_quietly(shapes_dir, "arrow", tmp_path / "out")
    assert not any("going on" in line for line in lines)


# ----------------------------------------------------------------------------------------------------- wrong uses


@pytest.mark.usefixtures("inline")
def test_wrong_uses_are_one_line_each(shapes_dir, tmp_path):
    for out, options, message in (
        (shapes_dir / "sub", {}, "lies in .*, the directory to export; choose a folder outside it"),
        (shapes_dir.parent, {}, "holds .*, the directory to export; choose another folder"),
        (tmp_path / "x", {"splits": ("test2",)}, "no split 'test2' in "),
        ("s3://bucket/x", {}, "-o s3://bucket/x: an export as arrow goes to a local folder"),
        (tmp_path / "x", {"codec": "gif"}, "'gif' is not one of stored, jpg, png"),
    ):
        with pytest.raises(Error, match=message):
            export_quietly(shapes_dir, "arrow", out, **options)
        assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    for name, message in (
        ("file", "file is a file"),
        ("file/x", "file is a file"),
        ("other", "is not empty and not an export of mlpdata"),
    ):
        with pytest.raises(Error, match=message):
            export_quietly(shapes_dir, "arrow", tmp_path / name)
    assert (tmp_path / "other" / "thesis.tex").read_text() == "x"
    export_quietly(shapes_dir, "npz", tmp_path / "done", splits=("val",))
    with pytest.raises(Error, match="it is an export for another library: give the shard directory"):
        export_quietly(tmp_path / "done", "arrow", tmp_path / "x")
    with pytest.raises(Error, match=r"holds another export .*--to npz --split val"):
        export_quietly(shapes_dir, "arrow", tmp_path / "done")
    (tmp_path / "done" / "val.npz").unlink()
    with pytest.raises(Error, match=r"val.npz is missing; delete .* and run the same command again"):
        export_quietly(shapes_dir, "npz", tmp_path / "done", splits=("val",))


@pytest.mark.usefixtures("inline")
def test_damage_does_not_get_into_an_export(photos_dir, tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for path in photos_dir.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    tar = sorted(root.glob("train-*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    with pytest.raises(Error, match=r"train-000000.tar has sha256 .*; get or convert it again"):
        export_quietly(root, "parquet", tmp_path / "out")
    tar.write_bytes(data[:-512])
    with pytest.raises(Error, match="bytes, the manifest says"):
        export_quietly(root, "parquet", tmp_path / "out2")
    (root / "manifest.json").unlink()
    with pytest.raises(Error, match="has no manifest"):
        export_quietly(root, "parquet", tmp_path / "out2")
    assert not (tmp_path / "out2").exists()


@pytest.mark.usefixtures("inline")
def test_lack_of_memory_is_no_damage_of_a_file(shapes_dir, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(samples.image, "decode_exact", fail)  # of the tars' PNGs
    with pytest.raises((MemoryError, Error)) as raised:
        export_quietly(shapes_dir, "npz", tmp_path / "out", format="tar")
    assert "decoded" not in str(raised.value) and "out of memory" in str(raised.value)


@pytest.mark.usefixtures("inline")
def test_a_full_disk(shapes_dir, tmp_path, monkeypatch):
    usage = workdir.shutil.disk_usage
    monkeypatch.setattr(workdir.shutil, "disk_usage", lambda path: usage(path)._replace(free=1000))
    with pytest.raises(Error, match=r"no space for .*out: the export takes about .* more, 1.0 kB are free"):
        export_quietly(shapes_dir, "arrow", tmp_path / "out")


# ------------------------------------------------------------------------------------------------------ odd data


@pytest.fixture
def odd_dir(tmp_path):
    """Classes whose names are no file names, in an order that is not sorted by them; one sample a class and split."""
    names = ["b", "B", "two\nlines", "émeu x", "...", "a" * 220, "-dash", " blank "]
    for split in ("train", "val"):
        for k, name in enumerate(names):
            folder = tmp_path / "in" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                (folder / f"{'ab' if i else 'AB'}.png").write_bytes(encoded(picture(16, 16, 10 * k + i), "PNG"))
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=tmp_path / "odd", workers=1)
    return tmp_path / "odd"


@pytest.mark.usefixtures("inline")
def test_odd_names_of_classes_and_files(odd_dir, tmp_path):
    _, lines = export_quietly(odd_dir, "folder", tmp_path / "out")
    assert any("each class folder begins with the label" in line for line in lines)
    classes = read_classes(odd_dir)
    for split in ("train", "val"):
        folders = sorted(path.name for path in (tmp_path / "out" / split).iterdir())
        assert len({name.casefold() for name in folders}) == len(classes) == len(folders)
        images, labels = mlpdata.load(odd_dir, split, 4).arrays()
        for label, folder in enumerate(folders):
            files = sorted((tmp_path / "out" / split / folder).iterdir())
            assert len({path.name.casefold() for path in files}) == len(files) == 2
            seen = {np.asarray(Image.open(path)).tobytes() for path in files}
            assert seen == {image.tobytes() for image in images[labels == label]}


@pytest.mark.usefixtures("inline")
def test_images_of_different_sizes(tmp_path):
    for k in range(6):
        path = tmp_path / "in" / "train" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(20 + 10 * k, 40, k), "PNG"))
    source = str(tmp_path / "in")
    convert_quietly(dataset="folder", source=source, res=32, resize="longest", out=tmp_path / "d", workers=1)
    with pytest.raises(Error, match="different sizes, which do not fit in one array; export to another format"):
        export_quietly(tmp_path / "d", "npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export_quietly(tmp_path / "d", "parquet", tmp_path / "out", format="beton")
    images = read_back("parquet", tmp_path / "out", ["train"], tmp_path)["train"]
    assert len(images[1]) == 6


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(("codec", "kind"), [("jpg", "JPEG"), ("png", "PNG")])
def test_codecs(shapes_dir, tmp_path, codec, kind):
    record, _ = export_quietly(shapes_dir, "folder", tmp_path / "out", codec=codec, splits=("val",), quality=95)
    assert record.codec == codec
    paths = sorted((tmp_path / "out" / "val").rglob("*.*"))
    assert {path.suffix for path in paths} == {f".{codec}"} and len(paths) == 1500
    images, labels = mlpdata.load(shapes_dir, "val", 64).arrays()
    images, _ = in_folder_order(shapes_dir, "val", images, labels)
    for path, image in list(zip(paths, images, strict=True))[::50]:
        with Image.open(path) as seen:
            assert seen.format == kind
            assert codec == "jpg" or np.array_equal(np.asarray(seen), image)
        assert codec == "png" or path.read_bytes() == encode_jpeg(image, 95)


@pytest.mark.usefixtures("inline")
def test_one_sample_and_a_split_of_none(tmp_path):
    for split in ("train", "val"):
        (tmp_path / "in" / split / "cat").mkdir(parents=True)
        (tmp_path / "in" / split / "cat" / "a.png").write_bytes(encoded(picture(16, 16, 0), "PNG"))
    root = tmp_path / "one"
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=16, out=root, workers=1)
    splits = json.loads((root / "manifest.json").read_text())["splits"]  # `convert` makes no empty one
    splits["val"] |= {"num_samples": 0, "class_counts": [0], "tars": [], "tar_lengths": []}
    change_manifest(root, splits=splits)
    for to in ("folder", "parquet", "npz", "arrow", "mds", "litdata"):
        record, lines = export_quietly(root, to, tmp_path / to)
        assert record.splits == {"train": 1} and lines[0] == "split val has no samples: it is left out"
    with pytest.raises(Error, match="nothing to export: no samples in split val"):
        export_quietly(root, "npz", tmp_path / "none", splits=("val",))
    assert len(read_back("parquet", tmp_path / "parquet", ["train"], tmp_path)["train"][1]) == 1


def test_a_file_that_may_not_grow_any_more(shapes_dir, tmp_path):
    """As a full disk, which nobody can fill in a test: the error is one line, nothing looks whole, and it goes on."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
    limited += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "import sys; from mlpdata.cli import main; sys.argv[0] = 'mlpdata'; main()"
    words = ["export", shapes_dir, "--to", "arrow", "-o", tmp_path / "out", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", limited, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "File too large" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out" / "export.json").exists()
    assert run_cli(*words).returncode == 0 and load_record(tmp_path / "out").splits == {"train": 1500, "val": 1500}


def test_a_missing_library_is_one_line_that_says_how_to_get_it(shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(Error, match=r"needs google-crc32c: pip install 'mlpdata\[tfrecord\]'"):
        export_quietly(shapes_dir, "tfrecord", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_other_format(tmp_path):
    """From a beton to tars and back: the same file, byte for byte; pixels proven by `verify`."""
    first = tmp_path / "first"
    convert_quietly(dataset="shapes", res=16, limit=200, format="beton", out=first, workers=1)
    for root, to, out in ((first, "tar", tmp_path / "tars"), (tmp_path / "tars", "beton", tmp_path / "back")):
        export_shards(ExportOptions(root=root, to=to, out=out, workers=1, quiet=True), say=lambda line: None)
        _, findings = verify(out, quiet=True)
        assert not findings.num_problems and Manifest.load(out).formats == [to]
    for split in ("train", "val"):
        assert (tmp_path / "back" / f"{split}.beton").read_bytes() == (first / f"{split}.beton").read_bytes()
    assert Manifest.load(tmp_path / "tars").command.startswith("mlpdata subset first --format tar")
    with pytest.raises(Error, match="--format and --file-mb are for other formats"):
        ExportOptions(root=first, to="tar", out=tmp_path / "x", format="beton")
