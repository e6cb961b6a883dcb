"""Tiny archives in the official layouts, made here: no test needs a file that is not in the repository."""

import gzip
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image
from scipy.io import savemat

from mlpdata.shards import beton
from mlpdata.sources import Broken, ClassFilter, TooSmall


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


def add_member(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


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


def make_stl10(path, change=None):
    """A small stl10_binary.tar.gz; returns {split: (uint8 (N, 96, 96, 3), labels from 0)}."""
    rng = np.random.default_rng(5)
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    files, expected = {"class_names.txt": "\n".join(names).encode() + b"\n", "fold_indices.txt": b"0 1\n"}, {}
    for theirs, ours, n in (("train", "train", 30), ("test", "val", 20)):
        images, found = rng.integers(0, 256, (n, 96, 96, 3), dtype=np.uint8), rng.integers(0, 10, n)
        # In the file each channel is a plane of columns.
        files[f"{theirs}_X.bin"] = images.transpose(0, 3, 2, 1).tobytes()
        files[f"{theirs}_y.bin"] = (found + 1).astype(np.uint8).tobytes()
        expected[ours] = (images, found)
    files["unlabeled_X.bin"] = b"\0" * (3 * 96 * 96)
    if change:
        change(files)
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            add_member(tar, f"stl10_binary/{name}", data)
    return expected


def make_ilsvrc(folder, num_val=12, per_class=4):
    """The three official files, small: returns the wnid of each val image."""
    folder.mkdir()
    make_imagenet(folder / "ILSVRC2012_img_train.tar", per_class=per_class)
    truth = [SYNSETS[i * 3 % 5] for i in range(num_val)]
    ids = {wnid: 40 - i for i, wnid in enumerate(SYNSETS)}  # not in the order of the wnids, as in the devkit
    val = {f"ILSVRC2012_val_{i + 1:08d}.JPEG": encoded(picture(50, 40, 900 + i)) for i in range(num_val)}
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val))
    rows = [(ids[w], w, 0) for w in SYNSETS] + [(1001, "n00001740", 5)]
    synsets = np.array(rows, dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    lines = "".join(f"{ids[w]}\n" for w in truth).encode()
    devkit = {
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": lines,
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
    }
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar_bytes(devkit)))
    return truth


def read(source):
    """{key: (bytes, class, split)} and the Broken, read as a worker does: from a pickled copy of the source."""
    units, copy = source.units(), pickle.loads(pickle.dumps(source))
    found, broken = {}, []
    for unit in units:
        for s in copy.samples(unit):
            if isinstance(s, Broken):
                broken.append(s)
            elif not isinstance(s, TooSmall):
                assert s.key not in found and "." not in s.key
                found[s.key] = (s.data, source.classes[s.label][0], s.split or unit.split)
    return found, broken


def expected(classes, split="train"):
    return {
        name.removesuffix(".JPEG"): (data, wnid, split)
        for wnid, files in classes.items()
        for name, data in files.items()
    }


EVERYTHING = {"min_class_size": 0, "val_per_class": 0}  # not the data set's own filter


def filtered(**options):
    return ClassFilter(**options)


def make_wds(folder, class_list, per_tar=10, num_tars=3, val=True, named=True, info=False):
    """Tars as timm's mirrors have them; returns {key: (JPEG, wnid, split)}."""
    folder.mkdir()
    rng, want, table = random.Random(0), {}, {}
    for split, files in {"train": num_tars, "validation": 1 if val else 0}.items():
        names = [f"imagenet-{split}-{i:04d}.tar" for i in range(files)]
        for name in names:
            members = {}
            for _ in range(per_tar):
                label = rng.randrange(len(class_list))
                wnid, number = class_list[label], len(want)
                key = f"{wnid}_{number}" if named and split == "train" else f"{split}_{number:08d}"
                image = encoded(picture(40, 30, number))
                record = {"label": label, "width": 40, "height": 30}
                if named:
                    record["filename"] = f"{wnid}/{key}.JPEG"
                members |= {f"{key}.cls": str(label).encode(), f"{key}.jpg": image}
                members[f"{key}.json"] = json.dumps(record).encode()
                want[key] = (image, wnid, "train" if split == "train" else "val")
            (folder / name).write_bytes(tar_bytes(members))
        table[split] = {"name": split, "num_samples": per_tar * files, "filenames": names}
        table[split]["shard_lengths"] = [per_tar] * files
    if info:
        (folder / "_info.json").write_text(json.dumps({"splits": table}))
    return want


BETON_PAGE = 1 << 21  # the smallest that ffcv takes


def make_beton(path, images, labels, fields=(("image", 2), ("label", 1))):
    """A beton as ffcv lays it out, with any fields, a random order of images in it, and of its allocation table.

    images: arrays for raw images, bytes for JPEGs. fields: (name, type id); others than the first of each are zeros.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    n, rng = len(images), np.random.default_rng(0)
    table = np.dtype([(f"f{i}", beton.FIELD_METADATA[kind]) for i, (_, kind) in enumerate(fields)], align=True)
    header, meta = np.zeros((), beton.HEADER), np.zeros(n, table)
    descriptors = np.zeros(len(fields), beton.FIELD)
    for row, (name, kind) in zip(descriptors, fields, strict=True):
        row["type_id"], row["name"][: len(name)] = kind, np.frombuffer(name.encode(), np.uint8)
    kinds = [kind for _, kind in fields]
    image, label = f"f{kinds.index(2)}", f"f{kinds.index(1)}"
    at = -(-(header.nbytes + descriptors.nbytes + meta.nbytes) // BETON_PAGE) * BETON_PAGE
    data, rows = bytearray(), []
    for i in rng.permutation(n).tolist():
        payload = images[i].tobytes() if isinstance(images[i], np.ndarray) else images[i]
        if len(data) % BETON_PAGE + len(payload) > BETON_PAGE:
            data += bytes(-len(data) % BETON_PAGE)
        is_raw = isinstance(images[i], np.ndarray)
        width, height = images[i].shape[1::-1] if is_raw else Image.open(io.BytesIO(images[i])).size
        meta[image][i] = (is_raw, width, height, at + len(data))
        rows.append((i, at + len(data), len(payload)))
        data += payload
    meta[label] = labels
    data += bytes(-len(data) % BETON_PAGE)
    header["version"], header["num_fields"], header["page_size"] = 2, len(fields), BETON_PAGE
    header["num_samples"], header["alloc_table_ptr"] = n, at + len(data)
    front = header.tobytes() + descriptors.tobytes() + meta.tobytes()
    path.write_bytes(front + bytes(at - len(front)) + data + np.array(rows, beton.ALLOCATION).tobytes())
    return path
