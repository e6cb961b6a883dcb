"""Manifests and class lists from anywhere: what does not fit is one line, and what fits comes back as it was."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from archives import encoded, picture
from conftest import Inline, change_manifest, convert_quietly, relist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

import mlpdata
from mlpdata.errors import Error
from mlpdata.inspect import info, preview, snippets, stats, verify
from mlpdata.shards import manifest
from mlpdata.shards.classes import classes_text, read_classes
from mlpdata.shards.manifest import Manifest
from mlpdata.sources.files import is_system
from mlpdata.splits import canonical


@pytest.fixture(scope="module")
def good(shapes_dir):
    """Of a version that knew no manifest_sha256: whatever is changed in it has to be found without."""
    values = json.loads((shapes_dir / "manifest.json").read_text())
    del values["manifest_sha256"]
    return json.dumps(values, indent=1)


def refused(text, match=r"manifest\.json"):
    with pytest.raises(Error, match=match) as error:
        Manifest.parse(text.encode("utf-8", "surrogatepass"), "manifest.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


ODD = [
    None,
    -1,
    10**18,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "x",
    "",
    [],
    {},
    [[]],
    True,
    [-5],
    [None] * 3,
    "y" * 9999,
]
# Where these stand nobody counts or opens anything: any whole number, any text, any object.
FREE = {"seed": (-1, 10**18, 10**30), "shard_size": (-1, 10**18, 10**30), "source_files": ({},), "source_filter": ({},),
        "image_library": ({},), "fidelity": (None,), "quality": (None,),
        "parents": ([],)} | dict.fromkeys(
            ("dataset", "release", "tool_version", "command", "source"), ("x", "", "y" * 9999))  # fmt: skip


@pytest.mark.parametrize("name", Manifest.__dataclass_fields__)
def test_other_types_and_ranges_are_refused(good, name):
    raw = json.loads(good)
    for value in ODD:
        changed = json.dumps({**raw, name: value})
        if any(value is v or (type(value) is type(v) and value == v) for v in FREE.get(name, ())):
            Manifest.parse(changed.encode(), "manifest.json")
        else:
            refused(changed)
    if name not in ("parents", "source"):  # which only some directories have
        refused(json.dumps({k: v for k, v in raw.items() if k != name}))


@pytest.mark.parametrize("name", manifest.SplitInfo.__dataclass_fields__)
def test_other_types_and_ranges_in_a_split_are_refused(good, name):
    raw = json.loads(good)
    for value in ODD:
        if (name, value) in (("num_skipped", 10**18),):
            continue
        train = {**raw["splits"]["train"], name: value}
        refused(json.dumps({**raw, "splits": {**raw["splits"], "train": train}}))


def changes(raw):
    """What is of the right types and hangs together with nothing."""
    train = raw["splits"]["train"]
    lengths = train["tar_lengths"]

    def split(**values):
        return {"splits": {**raw["splits"], "train": {**train, **values}}}

    yield split(tar_lengths=[10**12, *lengths[1:]])
    yield split(tar_lengths=[0, lengths[0] + lengths[1], *lengths[2:]])
    yield split(tar_lengths=lengths[:-1])
    yield split(tars=train["tars"][::-1])
    yield split(tars=[train["tars"][0]] * len(train["tars"]))
    yield split(beton="val.beton")
    yield split(index="val.index.parquet")
    yield split(num_samples=train["num_samples"] + 1)
    yield split(class_counts=[*train["class_counts"], 0])
    yield split(class_counts=[train["class_counts"][0] + 1, *train["class_counts"][1:]])
    yield {"num_classes": raw["num_classes"] - 1}
    yield {"beton_codec": None}
    yield {"formats": ["tar"]}
    yield {"formats": ["beton", "tar", "tar"]}
    yield {"files": {k: v for k, v in raw["files"].items() if k != "train.beton"}}
    for name in ("../x", "/etc/passwd", "a/b", "", ".", "..", ".convert", "a\0b", "\ud800", "x" * 300, "x\ny", "C:\\x",
                 "manifest.json"):  # fmt: skip
        yield {"files": {**raw["files"], name: {"bytes": 1, "sha256": "0" * 64}}}
        yield {"splits": {**raw["splits"], name: raw["splits"]["val"]}}
        yield split(tars=[name, *train["tars"][1:]])
    for entry in (None, 5, {}, {"bytes": 1}, {"sha256": "0" * 64}, {"bytes": True, "sha256": "0" * 64},
                  {"bytes": 1, "sha256": "0" * 63}, {"bytes": 1, "sha256": "A" * 64},
                  {"bytes": 10**30, "sha256": "0" * 64}):  # fmt: skip
        yield {"files": {**raw["files"], "train.beton": entry}}
    for numbers in ([1e400] * 3, [2.0] * 3, ["0.5"] * 3, [0.5] * 4):
        yield {"mean": numbers}
    for fidelity in ({}, {"num_samples": 1, "psnr_db": "x", "max_diff": 1}, {"num_samples": 1, "psnr_db": 1}):
        yield {"fidelity": fidelity}


def test_what_does_not_hang_together_is_refused(good):
    raw = json.loads(good)
    for change in changes(raw):
        refused(json.dumps({**raw, **change}))


def test_a_manifest_that_was_changed_is_refused(shapes_dir):
    """Also where what it says now would do: other mean and counts would train and list something else."""
    written = json.loads((shapes_dir / "manifest.json").read_text())
    Manifest.parse(json.dumps(dict(reversed(written.items()))).encode(), "manifest.json")  # laid out anew
    train = written["splits"]["train"]
    counts = [train["class_counts"][0] - 1, train["class_counts"][1] + 1, *train["class_counts"][2:]]
    for change in ({"mean": [0.1, 0.2, 0.3]}, {"res": 24}, {"quality": 50}, {"dataset": "cifar10"}, {"more": 1},
                   {"splits": {**written["splits"], "train": {**train, "class_counts": counts}}},
                   {"splits": {"train": train}}, {"manifest_sha256": "0" * 64}, {"manifest_sha256": 5}):  # fmt: skip
        refused(json.dumps({**written, **change}), "^manifest.json was changed after it was written: .*; get or conv")
    del written["fidelity"]
    refused(json.dumps(written), "manifest.json is damaged .*fidelity")


def test_what_is_no_manifest_is_refused(good):
    texts = ["[" * 200_000, '{"a":' * 100_000, "[]", "5", "null", "NaN", "", "\ufeff" + good, good + "x"]
    texts += [good.rstrip()[:-1] + ', "num_classes": 3}', good.replace('"res": 16', '"res": ' + "9" * 5000)]
    texts += [good.replace('"res": 16', '"res": 16.0'), good.replace('"res": 16', '"res": "16"')]
    for text in texts:
        refused(text, "manifest.json is damaged")
    refused(good.replace('"format_version": 1', '"format_version": 2'), "format version 2; this mlpdata reads 1")
    with pytest.raises(Error, match="is damaged"):
        Manifest.parse(b"\xff" + good.encode(), "manifest.json")


def test_a_manifest_without_end_and_one_that_never_comes(shapes_dir, tmp_path):
    path = tmp_path / "manifest.json"
    with open(path, "wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(Error, match="more than 32 MB"):
        Manifest.load(tmp_path)
    for make in (os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p)):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(Error, match="no regular file"):
            Manifest.load(tmp_path)
    for root in (tmp_path / "none", "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(Error, match="no shard directory"):
            Manifest.load(root)


def test_nothing_in_a_manifest_is_a_command_for_the_terminal(shapes_dir, tmp_path):
    shutil.copytree(shapes_dir, tmp_path / "copy")
    text = "a\x1b[2J\n\r\u2028\u202e\ud800"
    change_manifest(tmp_path / "copy", dataset=text, release=text, command=text, image_library={"jpeg": text})
    said = info.info(tmp_path / "copy")
    assert all(line.isprintable() for line in said.split("\n"))
    assert r"a\x1b[2J\n\r\u2028\u202e\ud800" in said
    assert json.loads(info.info(tmp_path / "copy", as_json=True))["command"] == text
    info.info(tmp_path / "copy", as_json=True).encode()


def test_a_contact_sheet_of_classes_of_any_name(shapes_dir, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    shutil.copytree(shapes_dir, root)
    names = ["🐝", "é", "日本", "a\nb", "\u2028", "x" * 300, "עברית", "e\u0301", "caf\udce9", "\x1b[31m"]
    (root / "classes.txt").write_bytes(classes_text([(n, n) for n in names]).encode())
    relist(root)
    change_manifest(
        root, classes_sha256=json.loads((root / "manifest.json").read_text())["files"]["classes.txt"]["sha256"]
    )
    preview.preview(root, tmp_path / "a.png")
    font = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()  # where FreeType is not built in
    monkeypatch.setattr(ImageDraw.ImageDraw, "getfont", lambda self: font)
    preview.preview(root, tmp_path / "b.png")
    assert Image.open(tmp_path / "a.png").size == Image.open(tmp_path / "b.png").size


# -------------------------------------------------------------------------------------------------------- classes

NAMES = ["plain", "café", "bee\u2028hive", "x\x85", "a\rb", "a\nb", "a\tb", "a\\tb", "a\\", "\\\\n", " lead", "trail ",
         "", "\x1b[31m", "__background__", "[x]?*%", "'\"", "x" * 300, "🐝", "caf\udce9", "\U000e0001", "\0",
         "a,b", ","]  # fmt: skip


def test_classes_come_back_as_they_were(tmp_path):
    for classes in ([(n, n) for n in NAMES], [(n, m or n) for n in NAMES for m in NAMES], [("", "")], [("a", "a")]):
        text = classes_text(classes)
        assert text.count("\n") == len(text.splitlines()) == len(classes)
        (tmp_path / "classes.txt").write_bytes(text.encode())
        assert read_classes(tmp_path) == classes
    assert classes_text([("n1", "tench, Tinca tinca"), ("é x", "é x"), ("b", "")]) == "n1\ttench, Tinca tinca\né x\nb\n"


@pytest.mark.parametrize("data", [b"\xff" * 10, b"\t\t\n", b"\\U99999999\n"])
def test_no_class_list(tmp_path, data):
    (tmp_path / "classes.txt").write_bytes(data)
    with pytest.raises(Error, match=r"cannot read .*classes\.txt: .*; get or convert it again"):
        read_classes(tmp_path)


def test_a_class_list_has_to_be_the_manifests(shapes_dir, tmp_path):
    shutil.copytree(shapes_dir, tmp_path / "copy")
    path = tmp_path / "copy" / "classes.txt"
    path.write_text("\n".join(reversed(path.read_text().split("\n")[:-1])) + "\n")
    with pytest.raises(Error, match=r"classes\.txt is not the class list that the manifest names"):
        info.info(tmp_path / "copy")


# ------------------------------------------------------------------------------------------------ names, end to end

NAME = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and not is_system(f"{name}/x") and canonical(name) is None
)


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(NAME, min_size=1, max_size=25, unique_by=lambda name: unicodedata.normalize("NFKC", name).casefold()))
def test_whatever_classes_and_files_are_called(tmp_path_factory, names):
    base = tmp_path_factory.mktemp("names")
    for k, name in enumerate(names):
        (base / "in" / "train" / name).mkdir(parents=True)
        (base / "in" / "train" / name / f"{name}.png").write_bytes(encoded(picture(8, 8, k), "PNG"))
    convert_quietly(dataset="folder", source=str(base / "in"), res=8, out=base / "out", workers=1, shard_size=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "LocalEngine", Inline)
        assert verify.verify(base / "out", quiet=True)[1].problems == []
    classes = [name for name, _ in read_classes(base / "out")]
    assert classes == sorted(names)
    loader = mlpdata.load(base / "out", batch_size=8, format="tar")
    for label, name in enumerate(classes):
        assert mlpdata.load(base / "out", batch_size=8, classes=[name]).labels.tolist() == [label]
    for said in (info.info(base / "out"), stats.stats(base / "out")):
        assert all(line.isprintable() for line in said.split("\n"))
    scope = {}
    exec(snippets.snippet(base / "out", "numpy"), scope)
    assert np.array_equal(scope["read"](np.arange(len(names))), loader.arrays()[0])
    assert np.array_equal(scope["labels"], loader.labels)
    exec(snippets.snippet(base / "out", "torch"), {})
