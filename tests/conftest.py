"""Tiny archives in the official layouts, made here: no test needs a file that is not in the repository."""

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch: its threads spin where other processes have the cores

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

from mlpdata.convert.run import Options, convert

# A slow machine is no failure.
settings.register_profile("mlpdata", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mlpdata")

ROOT = Path(__file__).resolve().parents[1]
REAL_DATA = ROOT.parent / "shared" / "data"


def picture(width, height, seed):
    """A smooth random picture: uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind="JPEG", **options):
    out = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(out, kind, **options)
    return out.getvalue()


def damaged_inside(jpeg):
    """A JPEG with whole headers and a whole end that no reader decodes: three codes of one bit in a Huffman table."""
    at = jpeg.index(b"\xff\xc4") + 5
    count = sum(jpeg[at : at + 16])
    return jpeg[:at] + bytes([3, *[0] * 14, count - 3]) + jpeg[at + 16 :]


# ---------------------------------------------------------------------------------------------------------- CIFAR


def python2_pickle(batch):
    """A protocol-2 pickle as Python 2 wrote CIFAR's: text and array bytes alike as 8-bit strings."""

    class Pickler(pickle._Pickler):
        dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - that is how pickle does it

        def save_string(self, text):
            data = text.encode("latin1") if isinstance(text, str) else text
            self.write(b"T" + len(data).to_bytes(4, "little") + data)  # BINSTRING
            self.memoize(text)

        dispatch[str] = save_string
        dispatch[bytes] = save_string

    out = io.BytesIO()
    Pickler(out, 2).dump(batch)
    return out.getvalue()


def cifar_rows(n, seed):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def make_cifar(path, layout="cifar10", rows=30, python2=False, change=None):
    """Write a small CIFAR archive; returns {split: (uint8 (N, 32, 32, 3), labels)} in archive order."""
    dump = python2_pickle if python2 else lambda batch: pickle.dumps(batch, protocol=2)
    if layout == "cifar10":
        folder, names = "cifar-10-batches-py", [f"class{i}" for i in range(10)]
        batches = {f"data_batch_{i}": ("train", i) for i in range(1, 6)} | {"test_batch": ("val", 9)}
        meta, label_key, names_key = "batches.meta", "labels", "label_names"
    else:
        folder, names = "cifar-100-python", [f"fine{i}" for i in range(100)]
        batches = {"train": ("train", 1), "test": ("val", 2)}
        meta, label_key, names_key = "meta", "fine_labels", "fine_label_names"
    expected, files = {"train": ([], []), "val": ([], [])}, {}
    for name, (split, seed) in batches.items():
        data = cifar_rows(rows, seed)
        labels = np.random.default_rng(seed + 100).integers(0, len(names), rows).tolist()
        batch = {"data": data, label_key: labels, "filenames": [f"{i}.png" for i in range(rows)]}
        if layout == "cifar100":
            batch["coarse_labels"] = [0] * rows
        files[name] = dump(batch)
        expected[split][0].append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        expected[split][1].extend(labels)
    files[meta] = dump({names_key: names, "num_vis": 3072})
    files["readme.html"] = b"<html>"
    if change:
        change(files)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {split: (np.concatenate(images), labels) for split, (images, labels) in expected.items()}


# --------------------------------------------------------------------------------------------------- TinyImageNet

WNIDS = ["n02124075", "n01443537", "n04067472"]  # not sorted, as in the real file


def make_tinyimagenet(path, per_class=6, num_val=5, change=None):
    """Write a small tiny-imagenet-200.zip; returns {split: {key: (JPEG bytes, label)}}."""
    rank = {w: i for i, w in enumerate(sorted(WNIDS))}
    files, expected = {}, {"train": {}, "val": {}}
    files["wnids.txt"] = "\n".join(WNIDS).encode() + b"\n"
    files["words.txt"] = b"n01443537\tgoldfish, Carassius auratus\nn02124075\tEgyptian cat\nn99999999\tother\n"
    seed = 0
    for wnid in WNIDS:
        files[f"train/{wnid}/{wnid}_boxes.txt"] = b"x\t0\t0\t1\t1\n"
        for i in range(per_class):
            seed += 1
            data = encoded(picture(64, 64, seed), quality=75)
            if i == 2:
                data = encoded(Image.fromarray(picture(64, 64, seed)).convert("L"), quality=75)
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = data
            expected["train"][f"{wnid}_{i}"] = (data, rank[wnid])
    lines = []
    for i in range(num_val):
        wnid = WNIDS[i % 3]
        data = encoded(picture(64, 64, 1000 + i), quality=75)
        files[f"val/images/val_{i}.JPEG"] = data
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n")
        expected["val"][f"val_{i}"] = (data, rank[wnid])
    files["val/val_annotations.txt"] = "".join(lines).encode()
    files["test/images/test_0.JPEG"] = encoded(picture(64, 64, 5000))
    if change:
        change(files)
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, data) in enumerate(files.items()):
            packed = zipfile.ZIP_DEFLATED if name.endswith(".txt") or i % 5 == 0 else zipfile.ZIP_STORED
            archive.writestr(f"tiny-imagenet-200/{name}", data, packed)
    return expected


# --------------------------------------------------------------------------------------------------------- folder


def make_folder(root, splits=("train", "val"), classes=("cat", "dog", "émeu x"), per_class=4, kind="JPEG"):
    """Class sub-folders of pictures of several sizes; returns {split: {relative path: bytes}}."""
    written = {}
    seed = 0
    suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    for split in splits:
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(per_class):
                seed += 1
                data = encoded(picture(40 + 20 * (i % 6), 90 - 10 * (i % 6), seed), kind)
                (folder / f"img.{i}.{suffix}").write_bytes(data)
                written.setdefault(split, {})[f"{split}/{name}/img.{i}.{suffix}"] = data
    return written


# ------------------------------------------------------------------------------------------------------- ImageNet

SYNSETS = ["n01440764", "n01443537", "n01484850", "n01491361", "n01494475"]  # of ILSVRC2012, so of every list


def tar_bytes(files, format_=tarfile.USTAR_FORMAT):
    """A tar of {name: bytes}."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format_) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def class_images(wnid, n, seed=0, size=(80, 60)):
    """{file name: JPEG} of one class, as ImageNet names its files."""
    return {f"{wnid}_{i * 7 % 1000}.JPEG": encoded(picture(*size, seed + i)) for i in range(n)}


def make_imagenet(path, per_class=6, synsets=SYNSETS, folder="", change=None):
    """A tar of class tars like fall11_whole.tar; `folder` goes before their names. A .gz is packed in one stream.

    change: called with {wnid: {file: JPEG}} before it is written. Returns that.
    """
    classes = {wnid: class_images(wnid, per_class, 100 * i) for i, wnid in enumerate(synsets)}
    if change:
        change(classes)
    data = tar_bytes({f"{folder}{wnid}.tar": tar_bytes(files) for wnid, files in classes.items()})
    path.write_bytes(gzip.compress(data, 6) if path.suffix == ".gz" else data)
    return classes


def bad_images():
    """{file name: bytes} of everything that goes wrong with images; those that are no images say so in their names."""
    good = encoded(picture(90, 70, 1))
    sixteen = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    return {
        "n01440764_1.JPEG": good,
        "n01440764_2_bad.JPEG": good[: len(good) // 3],
        "n01440764_3_bad.JPEG": b"",
        "n01440764_4_bad.JPEG": b"this is no image at all" * 40,
        "n01440764_5.JPEG": encoded(picture(50, 50, 2), "PNG"),
        "n01440764_6.JPEG": encoded(Image.fromarray(picture(64, 48, 3)).convert("CMYK")),
        "n01440764_7.JPEG": encoded(Image.fromarray(sixteen), "PNG"),
        "n01440764_8_bad.JPEG": _huge_png(),
        "n01440764_9.JPEG": encoded(Image.fromarray(picture(33, 31, 4)).convert("L")),
    }


def _huge_png():
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


# ------------------------------------------------------------------------------------------------------- fixtures


def convert_quietly(**options):
    lines = []
    manifest = convert(Options(quiet=True, **options), say=lines.append)
    return manifest, lines


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


class Inline:
    """Stands for LocalEngine where it is not what is tested: no processes to wait for."""

    def __init__(self, num_workers, state):
        self.state = state

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, function, tasks, tick=None):
        return ((task, function(self.state, task)) for task in tasks)


def change_manifest(root, **changes):
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


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
    """Run the command line as a user does; returns the completed process."""
    command = [sys.executable, "-m", "mlpdata.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


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
