"""Readers of files that others wrote: spoilt bytes are read, or are one Error of one line; never anything else.

What is drawn is the same in every run; the slow test draws many more.
"""

import functools
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from archives import SYNSETS, encoded, picture, tar_bytes
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import mlpdata
from mlpdata import Error
from mlpdata.archive import pickles
from mlpdata.archive.blob import PlainFile
from mlpdata.archive.zip import read_directory
from mlpdata.image.jpeg import header_of
from mlpdata.shards.manifest import Manifest
from mlpdata.sources import Broken, Sample
from mlpdata.sources.imagenet import ImageNetTars
from mlpdata.sources.parquet import Parquet
from trainer import checkpoint
from trainer.recipe import load_recipe

fuzz = settings(
    max_examples=int(os.environ.get("MLPDATA_FUZZ", 60)), derandomize=True, deadline=None, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.explicit, Phase.generate],
)  # fmt: skip

# What found faults before: signs, sizes beyond 64 bits, names that lead out, ends of lines of all kinds, NUL.
WORDS = [
    b"", b"\0", b"\xff" * 8, b"\x80" + bytes(11), b"77777777777\0", b"-1", b"1e400", b"9" * 40, b"NaN", b"null", b"[]",
    b"{}", b"../../x", b"/x", "\u2028\x85\r\n".encode(), b"\xed\xa0\x80", b"[" * 3000, b"&a [*a, *a]", bytes(600),
]  # fmt: skip
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["put", "insert", "cut", "flip"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.sampled_from(WORDS), st.binary(max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def spoilt(data, edits):
    data = bytearray(data)
    for kind, place, word in edits:
        at = int(place * len(data))
        if kind == "put":
            data[at : at + len(word)] = word
        elif kind == "insert":
            data[at:at] = word
        elif kind == "cut":
            del data[at : at + 1 + len(word) ** 2]
        elif data:
            data[at] ^= 1 << len(word) % 8
    return bytes(data)


def right_or_one_line(read, kind=Error):
    try:
        return read()
    except kind as e:
        assert str(e).strip() and "\n" not in str(e) and len(str(e)) < 1000
        return None


@functools.cache
def files():
    return {
        f"{i}.{kind}": data for i in range(4) for kind, data in (("jpg", encoded(picture(40, 30, i))), ("cls", b"1"))
    }


@fuzz
@given(EDITS)
def test_foreign_tars(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("tar") / "train-000.tar"
    path.write_bytes(spoilt(tar_bytes(files()), edits))
    loader = right_or_one_line(lambda: mlpdata.load(path, batch_size=2))
    if loader is not None:
        assert loader.num_samples <= 4
        right_or_one_line(lambda: list(loader))


@fuzz
@given(EDITS)
def test_pickles(edits):
    whole = pickle.dumps({"data": np.zeros((4, 12), np.uint8), "labels": [1, 2, 3, 4]}, protocol=2)
    found = right_or_one_line(
        lambda: pickles.load(io.BytesIO(spoilt(whole, edits))), ValueError
    )  # its callers name the file
    assert found is None or isinstance(found, dict)


@fuzz
@given(EDITS)
def test_zips(tmp_path_factory, edits):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files().items():
            archive.writestr(name, data)
    path = tmp_path_factory.mktemp("zip") / "x.zip"
    path.write_bytes(spoilt(out.getvalue(), edits))
    right_or_one_line(lambda: read_directory(PlainFile(path)))


@fuzz
@given(EDITS)
def test_jpeg_headers(edits):
    data = spoilt(files()["0.jpg"], edits)
    header = header_of(data)
    assert header is None or (header.width > 0 and header.height > 0)


@fuzz
@given(EDITS)
def test_manifests(photos_dir, edits):
    whole = json.dumps(json.loads((photos_dir / "manifest.json").read_bytes())).encode()
    right_or_one_line(lambda: Manifest.parse(spoilt(whole, edits), "manifest.json"))


@fuzz
@given(EDITS)
def test_betons(photos_dir, tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("beton") / "x.beton"
    head = (photos_dir / "train.beton").read_bytes()
    path.write_bytes(spoilt(head[:4096], edits) + head[4096:])
    loader = right_or_one_line(lambda: mlpdata.load(path, batch_size=8))
    if loader is not None:
        right_or_one_line(lambda: list(loader))


@fuzz
@given(EDITS)
def test_recipes(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("recipe") / "x.yaml"
    path.write_bytes(
        spoilt(b"name: tiny\ndata: {shards: x}\nmodel: {depth: 2, width: 64}\ntrain: {epochs: 2}\n", edits)
    )
    right_or_one_line(lambda: load_recipe(path))


def read_all(source):
    """Every sample of a source. What a unit promised has come, in samples or in words on what could not be read."""
    found = []
    for unit in source.units():
        items = [item for item in source.samples(unit) if isinstance(item, Sample | Broken)]
        counted = sum(isinstance(item, Sample) or item.is_data or item.is_counted for item in items)
        assert not unit.exact or counted == unit.num_samples
        found += [item for item in items if isinstance(item, Sample)]
    assert len({(sample.split, sample.key) for sample in found}) == len(found)
    assert all(0 <= sample.label < len(source.classes) for sample in found)
    return found


@functools.cache
def tar_of_tars():
    classes = {wnid: {f"{wnid}_{i}.JPEG": encoded(picture(20, 16, 10 * c + i)) for i in range(3)}
               for c, wnid in enumerate(SYNSETS)}  # fmt: skip
    return {data: wnid for wnid, of_class in classes.items() for data in of_class.values()}, tar_bytes(
        {f"{wnid}.tar": tar_bytes(of_class) for wnid, of_class in classes.items()}
    )


@fuzz
@given(EDITS)
def test_tars_of_tars(tmp_path_factory, edits):
    wnids, whole = tar_of_tars()
    path = tmp_path_factory.mktemp("classes") / "x.tar"
    path.write_bytes(spoilt(whole, edits))
    source = right_or_one_line(lambda: ImageNetTars(path))
    for sample in (right_or_one_line(lambda: read_all(source)) or []) if source else []:
        name = source.classes[sample.label][0]
        if sample.data in wnids and name in SYNSETS:  # else the class's own name was hit
            assert name == wnids[sample.data]


@fuzz
@given(EDITS)
def test_parquet_files(tmp_path_factory, edits):
    folder = tmp_path_factory.mktemp("parquet")
    rows = [{"image": {"bytes": files()[f"{i}.jpg"]}, "label": i % 2} for i in range(4)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, write_page_checksum=True)
    (folder / "train-0.parquet").write_bytes(spoilt(out.getvalue(), edits))
    source = right_or_one_line(lambda: Parquet(folder))
    if source is not None:
        right_or_one_line(lambda: read_all(source))


@functools.cache
def plain_checkpoint():
    out = io.BytesIO()
    torch.save({"linear_in.weight": torch.zeros(8, 12), "linear_in.bias": torch.zeros(8)}, out)
    return out.getvalue()


@fuzz
@given(EDITS)
def test_checkpoints(tmp_path_factory, edits):
    path = tmp_path_factory.mktemp("checkpoint") / "x.pt"
    path.write_bytes(spoilt(plain_checkpoint(), edits))
    right_or_one_line(lambda: checkpoint.load(path))


@pytest.mark.slow
def test_many_more_examples():
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", __file__], env=os.environ | {"MLPDATA_FUZZ": "5000"},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
