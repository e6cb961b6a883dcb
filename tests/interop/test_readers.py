"""Unmodified ffcv, webdataset, Hugging Face datasets and timm open our shards and see our pixels.

They run in `.venv-interop`, made by `make interop`, where mlpdata is not installed.
"""

import ast
import json
import shutil
import sys

import numpy as np
import pytest
from archives import encoded, make_cifar, make_folder, make_imagenet, picture
from conftest import convert_quietly, run_cli
from environment import PYTHON, need, run, run_script
from PIL import Image

import mlpdata
from mlpdata.inspect import snippets
from mlpdata.shards import beton
from mlpdata.splits import on_hub

pytestmark = pytest.mark.interop

LIBRARIES = ["ffcv", "webdataset", "datasets", "timm", "torch", "numpy"]  # the others: test_strangers.py
CODECS = ["raw", "png", "jpg"]
ORDERS = ["SEQUENTIAL", "RANDOM", "QUASI_RANDOM"]
# Classes and files that one reader or another has stumbled over.
NAMES = ["__background__", "bee\u2028hive", "nel\x85", "a\rb", "a\nb", "a\tb", "quote\"'`", "[x]", "q?*", "100%25",
         "back\\slash", " lead", "trail ", "🐝", "x" * 200, "\x1b[31m", "-dash", "a.b.c", "{a,b}", "$HOME", "é",
         "e\u0301", "~", "#", "a:b", "\u202e", "train-000000.tar", "%5F_background__", "<s>", "yes", "null", "0",
         "!!python", "- a: b"]  # fmt: skip
# Directories: of these, `j*g` is a pattern that also fits `jpg`.
PATHS = ["[D] data", "j*g", "$HOME", "a::b", "q?{x,y} '\"%20#\\é\u2028\n"]
TIMM_KEY = "jpg;png;webp;ppm"  # timm's default and ppm, which it does not look for by itself


@pytest.fixture(scope="session")
def roots(tmp_path_factory):
    """CIFAR-10 in both formats, once a codec; photographs (one with an orientation tag); a beton of several pages."""
    base = tmp_path_factory.mktemp("interop")
    make_cifar(base / "c.tar.gz", rows=150)
    for codec in CODECS:
        convert_quietly(dataset="cifar10", source=str(base / "c.tar.gz"), codec=codec, out=base / codec, shard_size=100)
    make_folder(base / "in", splits=("train", "val"), per_class=40)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = base / "in" / "train" / "cat", encoded(picture(64, 64, 1))
    (turned / "turned.jpg").write_bytes(encoded(picture(64, 64, 1), exif=exif))
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation='6'/></x:xmpmeta>"
    (turned / "xmp.jpg").write_bytes(plain[:2] + b"\xff\xe1" + (len(xmp) + 2).to_bytes(2) + xmp + plain[2:])
    (turned / "stray.jpg").write_bytes(plain[:-2] + b"\0\0\x11\x22" + plain[-2:])
    (turned / "cmyk.jpg").write_bytes(encoded(Image.fromarray(picture(64, 64, 2)).convert("CMYK")))
    (turned / "progressive.jpg").write_bytes(encoded(picture(64, 64, 3), progressive=True) + b"more")
    convert_quietly(dataset="folder", source=str(base / "in"), res=64, out=base / "photos")
    convert_quietly(dataset="folder", source=str(base / "in"), res=256, format="beton", out=base / "large")
    for split in ("train", "val"):
        for k, name in enumerate(NAMES):
            (base / "evil in" / split / name).mkdir(parents=True)
            for i in range(2):
                data = encoded(picture(16, 16, 1000 * i + 10 * k + len(split)), "PNG")
                (base / "evil in" / split / name / f"{name[:50]}{i}.png").write_bytes(data)
    convert_quietly(dataset="folder", source=str(base / "evil in"), res=16, out=base / "evil", shard_size=30)
    return base


def jobs(library):
    """Every (directory, split, options) that a library is to read."""
    if library == "ffcv":
        options = [{"order": order, "os_cache": cache} for order in ORDERS for cache in (True, False)]
        return [(c, "train", o) for c in ("raw", "jpg") for o in options] + [
            ("large", "train", {"os_cache": False}),
            ("evil", "val", {}),
        ]
    options = {"datasets": [{}, {"streaming": True}], "timm": [{"input_key": TIMM_KEY}]}.get(library, [{}])
    return [(c, split, o) for c in (*CODECS, "photos", "evil") for split in ("train", "val") for o in options]


@pytest.fixture(scope="session")
def seen(roots, tmp_path_factory):
    """A function (library, directory, split, options) -> (images, labels, keys); each library is started once."""
    folder, results = tmp_path_factory.mktemp("seen"), {}

    def run(library):
        need(library)
        # What they look for is `validation`, and that is where they find our val.
        theirs = on_hub if library in ("datasets", "timm") else str
        todo = [
            {
                "root": str(roots / name),
                "split": theirs(split),
                "options": options,
                "out": str(folder / f"{library}{i}.npz"),
            }
            for i, (name, split, options) in enumerate(jobs(library))
        ]
        run_script("read_with.py", library, home=folder / "hf", input=json.dumps(todo))
        results[library] = [np.load(job["out"]) for job in todo]

    def look_up(library, name, split, options):
        if library not in results:
            run(library)
        result = results[library][jobs(library).index((name, split, options))]
        assert "error" not in result, result["error"].item()
        return result["images"], result["labels"], result["keys"]

    return look_up


@pytest.mark.parametrize(("name", "split", "options"), jobs("ffcv"))
def test_ffcv(roots, seen, name, split, options):
    images, labels = mlpdata.load(roots / name, split, 64, format="beton").arrays()
    seen_images, seen_labels, _ = seen("ffcv", name, split, options)
    assert len(seen_images) == len(images)
    in_order = options.get("order", "SEQUENTIAL") == "SEQUENTIAL"
    place = np.arange(len(images)) if in_order else nearest(seen_images, images)
    assert np.array_equal(np.sort(place), np.arange(len(images)))  # every sample once
    assert in_order or not np.array_equal(place, np.arange(len(images)))
    assert np.array_equal(seen_labels, labels[place])
    if name == "jpg":
        # ffcv decodes with libjpeg-turbo's fast DCT, we with the exact one.
        assert np.abs(seen_images.astype(int) - images[place]).mean() < 2
    else:
        assert np.array_equal(seen_images, images[place])
    if name == "large":
        assert images.nbytes > 2 * beton.PAGE_SIZE


def nearest(images, candidates):
    """(N,) for each image the position of the candidate closest to it."""
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (images, candidates))
    return ((b * b).sum(1) - 2 * a @ b.T).argmin(1)


@pytest.mark.parametrize(
    ("library", "name", "split", "options"),
    [(library, *job) for library in ("webdataset", "datasets", "timm") for job in jobs(library)],
)
def test_tars(roots, seen, library, name, split, options):
    images, labels = mlpdata.load(roots / name, split, 64, format="tar").arrays()
    seen_images, seen_labels, keys = seen(library, name, split, options)
    assert np.array_equal(images, seen_images) and np.array_equal(labels, seen_labels)
    if library != "timm":
        assert len(set(keys.tolist())) == len(labels)


def test_hugging_faces_datasets_knows_our_splits_and_classes(roots, tmp_path):
    need("datasets")
    code = "import sys, json; from datasets import load_dataset_builder as b\n"
    code += "i = b(sys.argv[1]); print(json.dumps([i.info.features['cls'].names, sorted(i.config.data_files)]))"
    names, found = json.loads(run(["-c", code, roots / "evil"], home=tmp_path))
    assert found == ["train", "validation"]
    lines = [line for line in (roots / "evil" / "classes.txt").read_bytes().decode().split("\n") if line]
    assert [name.replace("\\", "\\\\") if r"\sl" in name else name for name in names] == lines


@pytest.fixture(scope="session")
def elsewhere(roots):
    """Directories that snippets have to fit: those above, images of several sizes, and classes of one readable name."""
    convert_quietly(
        dataset="folder", source=str(roots / "in"), res=64, resize="longest", out=roots / "longest", shard_size=50
    )
    make_imagenet(roots / "cranes.tar", synsets=["n02012849", "n03126707"], per_class=12)
    everything = {"min_class_size": 0, "val_per_class": 0}
    convert_quietly(dataset="imagenet21k", source=str(roots / "cranes.tar"), res=32, out=roots / "cranes", **everything)
    for name in PATHS:
        shutil.copytree(roots / "jpg", roots / name)
    return roots


@pytest.mark.parametrize("library", LIBRARIES)
def test_snippets_run_as_they_are_printed(elsewhere, library, tmp_path):
    names = ["jpg", "photos", "longest", PATHS[-1]]
    if library != "ffcv":  # which compiles for seconds each time, and knows no names of classes and no png
        names += ["raw", "png", "cranes", *PATHS[:-1]]
    printed = {name: snippets.snippet(elsewhere / name, library) for name in names}
    assert run_cli("snippet", elsewhere / "photos", "--for", library).stdout == printed["photos"] + "\n"
    needs_us = {name: "import mlpdata" in code for name, code in printed.items()}
    if not all(needs_us.values()):
        need(library)
    for python, ours in ((PYTHON, False), (sys.executable, True)):
        todo = [code for name, code in printed.items() if needs_us[name] == ours]
        if not todo:
            continue
        # One process for all: most of the time goes into imports.
        program = f"for code in {todo!r}:\n    exec(code, {{'__name__': '__main__'}})\n    print('=====')"
        code = f"if __name__ == '__main__':\n  {program}"
        output = run(["-c", code], python=python, with_mlpdata=ours, home=tmp_path / "hf", cwd=tmp_path)
        seen = dict(zip([name for name in names if needs_us[name] == ours], output.split("====="), strict=False))
        for name, said in seen.items():
            labels = mlpdata.load(elsewhere / name, "train", 64, res=64 if name == "longest" else None).labels
            res, n = 64 if name in ("photos", "longest") else 32, min(256, len(labels))
            wanted = {
                "datasets": f"{len(labels)} {{",
                "ffcv": f"[{n}, 3, {res}, {res}]) torch.uint8 torch.Size([{n}])",
                "timm": f"[{n}, 3, {res}, {res}]) torch.float32",
                "numpy": f"({len(labels) if ours else n}, {res}, {res}, 3) uint8 ({len(labels)},)",
            }.get(library, f"[{n}, {res}, {res}, 3]) torch.uint8 torch.Size([{n}])")
            assert wanted in said, (name, said)


def test_a_snippet_begins_with_what_to_install_for_it(elsewhere):
    """All that is imported comes with a package that the first line names."""
    brought = {"ffcv": ["torch"], "mosaicml-streaming": ["numpy", "torch"], "nvidia-dali-cuda120": ["nvidia"]}
    brought |= {"webdataset": ["numpy"]}
    for library in snippets.SNIPPETS:
        code = snippets.snippet(elsewhere / "photos", library)
        if "import mlpdata" in code:
            continue
        first = code.splitlines()[0]
        assert first.startswith("# pip install ")
        packages = first.split()[3:]
        modules = {name for package in packages for name in (package, *brought.get(package, ()))}
        modules |= {"streaming"} if "mosaicml-streaming" in packages else set()
        nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, (ast.Import, ast.ImportFrom))]
        imported = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        imported |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        assert {name.split(".")[0] for name in imported} <= modules | set(sys.stdlib_module_names), library


def test_a_snippet_in_numpy_alone_has_the_pixels(elsewhere):
    printed = run_cli("snippet", elsewhere / "photos", "--for", "numpy", "--split", "val").stdout
    images, labels = mlpdata.load(elsewhere / "photos", "val", 64).arrays()
    names = {}
    exec(printed, names)
    assert np.array_equal(names["read"](np.arange(len(labels))[::-1]), images[::-1])
    assert np.array_equal(names["labels"], labels)


def test_a_snippet_for_what_is_not_there_is_refused(elsewhere, tmp_path):
    convert_quietly(dataset="folder", source=str(elsewhere / "in"), res=16, format="tar", out=tmp_path / "tars")
    done = run_cli("snippet", tmp_path / "tars", "--for", "ffcv")
    assert done.returncode == 1 and "has no beton of split 'train'" in done.stderr and not done.stdout
    done = run_cli("snippet", elsewhere / "large", "--for", "timm")
    assert done.returncode == 1 and "has no tars of split 'train'" in done.stderr
    assert "has no tars of split 'train'" in run_cli("snippet", elsewhere / "large", "--for", "dali").stderr
    assert run_cli("snippet", elsewhere / "large", "--for", "theano").returncode == 2
    assert "mlpdata.load" in run_cli("snippet", tmp_path / "tars", "--for", "numpy").stdout  # as there is no beton
