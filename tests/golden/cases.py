"""Conversions whose bytes may not change: every kind of archive, both formats, every codec.

`sums.json` holds the SHA-256 of every file that the version named in it wrote, and `old/` whole directories of it.
Where bytes change on purpose, write both anew and say so in CHANGELOG.md:

    PYTHONPATH=.:tests python tests/golden/cases.py
"""

import hashlib
import json
import pickle
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from archives import (
    SYNSETS,
    add_member,
    bad_images,
    damaged_inside,
    encoded,
    make_beton,
    make_cifar,
    make_folder,
    make_ilsvrc,
    make_imagenet,
    make_stl10,
    make_tinyimagenet,
    make_wds,
    picture,
    tar_bytes,
)

import mlpdata
from mlpdata import image
from mlpdata.convert import Options, convert
from mlpdata.convert.derived import derive
from mlpdata.derive.derivation import Derivation, SplitOff

FOLDER = Path(__file__).parent


def versions():
    """Of whatever decides bytes besides this code."""
    return {**image.library_versions(), "index": f"pyarrow {pa.__version__}"}


# -------------------------------------------------------------------------------------------------------- archives


def make_downsampled(path):
    rng = np.random.default_rng(3)
    path.mkdir()
    names = [f"train_data_batch_{i}" for i in range(1, 11)] + ["val_data"]
    for name in names:
        batch = {"data": rng.integers(0, 256, (40, 192), dtype=np.uint8), "labels": rng.integers(1, 1001, 40).tolist()}
        (path / name).write_bytes(pickle.dumps(batch, protocol=4))


def make_parquet(path):
    path.mkdir()
    for split, n in (("train", 30), ("test", 12)):
        data = [encoded(picture(40 + i, 50, i), ("JPEG", "PNG")[i % 2]) for i in range(n)]
        rows = [{"image": {"bytes": d, "path": f"{i}"}, "label": i % 3} for i, d in enumerate(data)]
        pq.write_table(pa.Table.from_pylist(rows), path / f"{split}-00000-of-00001.parquet", row_group_size=9)


def make_mixed(path):
    """A folder of sizes above, equal to and below 32 pixels, of several kinds, damaged ones among them."""
    for i in range(90):
        folder = path / ("val" if i % 3 == 0 else "train") / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        size = ((32, 32), (90, 70), (20, 33))[i % 4 % 3]
        kind = ("JPEG", "JPEG", "PNG", "WEBP")[i // 2 % 4]
        (folder / f"{i}.{kind.lower()}").write_bytes(encoded(picture(*size, i), kind))
    whole = encoded(picture(32, 32, 500))
    (path / "train" / "class0" / "a-damaged.jpg").write_bytes(damaged_inside(whole))
    (path / "train" / "class1" / "z-damaged.jpg").write_bytes(damaged_inside(whole))
    (path / "val" / "class1" / "cut.jpg").write_bytes(whole[:200])


def make_bad(path):
    images = {f"n01440764_g{i}.JPEG": encoded(picture(60, 50, i)) for i in range(9)}
    other = {f"n01443537_g{i}.JPEG": encoded(picture(60, 50, 50 + i)) for i in range(9)}
    path.write_bytes(
        tar_bytes({"n01440764.tar": tar_bytes({**images, **bad_images()}), "n01443537.tar": tar_bytes(other)})
    )


def make_betons(path):
    """A beton of raw images and JPEGs of several sizes among other fields, and one of JPEGs."""
    fields = (("row", 0), ("photo", 2), ("target", 1), ("note", 5))
    raw = [picture((24, 40)[i % 2], 24, i) for i in range(30)]
    make_beton(
        path / "set_train.beton", [encoded(p) if i % 3 else p for i, p in enumerate(raw)], np.arange(30) % 4, fields
    )
    make_beton(path / "set_val.beton", [encoded(picture(24, 24, 50 + i)) for i in range(9)], np.arange(9) % 4, fields)


def make_clip(path):
    """Tars as CLIP benchmark lays them out, with names of the classes beside them."""
    for split, n in (("train", 14), ("test", 6)):
        (path / split).mkdir(parents=True)
        members = {}
        for i in range(n):
            image = encoded(picture(30, 26, 10 * n + i), ("JPEG", "WEBP")[split == "test"])
            members |= {f"s{i:07d}.cls": b"%d" % (i % 3), f"s{i:07d}.{'webp' if split == 'test' else 'jpg'}": image}
        (path / split / "0.tar").write_bytes(tar_bytes(members))
    (path / "classnames.txt").write_text("cat\ndog\nbarn owl\n")


def three_sizes(classes):
    for wnid, n in zip(classes, (3, 4, 5, 6, 6), strict=True):
        classes[wnid] = dict(list(classes[wnid].items())[:n])


MAKERS = {
    "cifar10.tar.gz": lambda p: make_cifar(p, rows=40),
    "cifar10-python2.tar.gz": lambda p: make_cifar(p, rows=6, python2=True),
    "cifar100.tar.gz": lambda p: make_cifar(p, "cifar100", rows=150),
    "stl10.tar.gz": make_stl10,
    "downsampled": make_downsampled,
    "tiny.zip": lambda p: make_tinyimagenet(p, per_class=20, num_val=15),
    "fall11.tar": lambda p: make_imagenet(p, per_class=8),
    "winter21.tar.gz": lambda p: make_imagenet(p, per_class=6, folder="winter21_whole/", change=three_sizes),
    "bad.tar": make_bad,
    "ilsvrc": make_ilsvrc,
    "wds": lambda p: make_wds(p, SYNSETS),
    "wds-info": lambda p: make_wds(p, SYNSETS, named=False, info=True),
    "parquet": make_parquet,
    "betons": make_betons,
    "clip": make_clip,
    "jpegs": lambda p: make_folder(p, per_class=9),
    "pngs": lambda p: make_folder(p, per_class=7, kind="PNG"),
    "webps": lambda p: make_folder(p, splits=("train",), per_class=6, kind="WEBP"),
    "mixed": make_mixed,
}

CIFAR = {"dataset": "cifar10", "source": "cifar10.tar.gz", "shard_size": 70}
TINY = {"dataset": "tinyimagenet", "source": "tiny.zip", "shard_size": 25}
JPEGS = {"dataset": "folder", "source": "jpegs", "res": 24, "shard_size": 10}
MIXED = {"dataset": "folder", "source": "mixed", "res": 32, "shard_size": 11, "max_skipped": 0.2}
IN21K = {"dataset": "imagenet21k", "res": 20, "min_class_size": 0, "val_per_class": 0, "shard_size": 16}
CASES = {
    "shapes": {"dataset": "shapes", "res": 16, "limit": 700, "shard_size": 300},
    "shapes-jpg": {"dataset": "shapes", "res": 9, "limit": 300, "codec": "jpg", "quality": 75},
    "cifar10": CIFAR,
    "cifar10-raw": {**CIFAR, "codec": "raw"},
    "cifar10-png-beton": {**CIFAR, "codec": "png", "format": "beton"},
    "cifar10-jpg": {**CIFAR, "codec": "jpg"},
    "cifar10-jpg-tar": {**CIFAR, "codec": "jpg", "format": "tar", "quality": 60},
    "cifar10-seed": {**CIFAR, "codec": "raw", "seed": 7},
    "cifar10-limit": {**CIFAR, "codec": "raw", "limit": 55},
    "cifar10-resized": {**CIFAR, "res": 20, "filter": "lanczos"},
    "cifar10-python2": {"dataset": "cifar10", "source": "cifar10-python2.tar.gz", "splits": ("test",)},
    "cifar100": {"dataset": "cifar100", "source": "cifar100.tar.gz", "codec": "raw"},
    "stl10": {"dataset": "stl10", "source": "stl10.tar.gz", "res": 96, "codec": "raw"},
    "stl10-resized": {"dataset": "stl10", "source": "stl10.tar.gz", "res": 32, "filter": "bilinear"},
    "downsampled": {"dataset": "imagenet1k", "source": "downsampled", "res": 8, "codec": "raw", "shard_size": 64},
    "tiny": TINY,
    "tiny-jpg": {**TINY, "codec": "jpg"},
    "tiny-beton": {**TINY, "format": "beton"},
    "tiny-32": {**TINY, "res": 32},
    "tiny-32-png": {**TINY, "res": 32, "codec": "png", "format": "tar"},
    "in21k": {**IN21K, "source": "fall11.tar"},
    "in21k-gzip": {**IN21K, "source": "winter21.tar.gz"},
    "in21k-filter": {**IN21K, "source": "fall11.tar", "min_class_size": 2, "val_per_class": 3},
    "in21k-gzip-filter": {**IN21K, "source": "winter21.tar.gz", "min_class_size": 5, "val_per_class": 2},
    "in21k-bad": {**IN21K, "source": "bad.tar", "max_skipped": 0.5},
    "in1k": {"dataset": "imagenet1k", "source": "ilsvrc", "res": 32, "shard_size": 9},
    "in1k-wds": {"dataset": "imagenet1k", "source": "wds", "res": 16},
    "wds": {"dataset": "hub", "source": "wds-info", "res": 16, "codec": "jpg"},
    "parquet": {"dataset": "hub", "source": "parquet", "res": 32},
    "parquet-limit": {"dataset": "hub", "source": "parquet", "res": 32, "limit": 11},
    "betons": {"dataset": "beton", "source": "betons", "res": 24, "shard_size": 20},
    "betons-jpg": {"dataset": "beton", "source": "betons", "res": 16, "codec": "jpg"},
    "clip": {"dataset": "wds", "source": "clip", "res": 16},
    "jpegs": JPEGS,
    "jpegs-crop": {**JPEGS, "resize": "crop", "filter": "bicubic"},
    "jpegs-longest": {**JPEGS, "resize": "longest", "filter": "lanczos", "codec": "jpg"},
    "jpegs-raw-longest": {**JPEGS, "resize": "longest", "codec": "raw"},
    "pngs": {"dataset": "folder", "source": "pngs", "res": 24, "filter": "bilinear"},
    "webps": {"dataset": "folder", "source": "webps", "res": 24},
    "mixed": MIXED,
    "mixed-beton": {**MIXED, "format": "beton"},
    "mixed-jpg": {**MIXED, "codec": "jpg"},
    "mixed-png": {**MIXED, "codec": "png"},
    # Of the directories of other cases.
    "subset": {"of": ("mixed",), "command": "subset", "dedupe": "exact", "fraction": 0.5, "shard_size": 5},
    "subset-classes": {"of": ("in21k",), "command": "subset", "classes": tuple(SYNSETS[3:0:-1]),
                       "split_off": SplitOff("dev", 2)},
    "merge": {"of": ("pngs", "webps"), "command": "merge", "seed": 3},
    "resize": {"of": ("tiny",), "command": "resize", "res": 32, "format": "tar"},
}  # fmt: skip
WORKERS = {"betons": 2, "cifar10": 2, "mixed": 3, "tiny": 2, "in21k-filter": 2}  # also converted by so many
# Cases whose payloads are the pixels of the archive: no library has a part in their bytes, but for the index.
EXACT = ("cifar10-raw", "cifar10-seed", "cifar10-limit", "cifar100", "stl10", "downsampled")
OLD = ("cifar10-python2", "in21k-bad", "jpegs-longest", "webps")  # cases whose directories are kept


def run(name, sources, out, **more):
    options = dict(CASES[name])
    if "of" in options:
        derive_case(options, sources, out, **more)
        return
    if "source" in options:
        options["source"] = str(sources / options["source"])
    convert(Options(**{"workers": 1, **options, **more}, out=out, quiet=True), say=lambda line: None)


def derive_case(options, sources, out, **more):
    parents = [sources / "parents" / name for name in options.pop("of")]
    for parent in parents:
        if not parent.exists():
            run(parent.name, sources, parent)
    how = {name: options.pop(name) for name in ("res", "format", "seed", "shard_size") if name in options}
    derivation = Derivation(directories=tuple(parents), **options)
    derive(derivation, out, quiet=True, say=lambda line: None, **{"workers": 1, **how, **more})


def sums(root):
    """SHA-256 of every file of a shard directory, and of what its manifest says of the data; the card says the same."""
    manifest = json.loads((root / "manifest.json").read_text())
    for of_this_machine in ("files", "image_library", "source_files", "tool_version", "manifest_sha256"):
        manifest.pop(of_this_machine, None)  # earlier versions wrote no manifest_sha256
    for parent in manifest.get("parents", ()):
        del parent["sha256"]  # of a manifest that names this machine's libraries
    found = {"manifest.json": hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()}
    for path in sorted(root.iterdir()):
        if path.name not in ("manifest.json", "README.md"):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        work, found = Path(folder), {}
        for source, make in MAKERS.items():
            make(work / source)
        for name in CASES:
            run(name, work, work / "out" / name)
            found[name] = sums(work / "out" / name)
            print(name, len(found[name]), file=sys.stderr)
        (FOLDER / "old").mkdir(exist_ok=True)
        for name in OLD:
            with tarfile.open(FOLDER / "old" / f"{name}.tar.xz", "w:xz", preset=9) as tar:
                for path in sorted((work / "out" / name).iterdir()):
                    add_member(tar, path.name, path.read_bytes())
        text = json.dumps({"mlpdata": mlpdata.__version__, "versions": versions(), "sums": found}, indent=0)
        (FOLDER / "sums.json").write_text(text + "\n")
