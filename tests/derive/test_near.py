"""Images that look alike: hashes against their definition, pairs against all pairs, and what a subset leaves out."""

import io
import json

import numpy as np
import pytest
from archives import encoded, picture
from conftest import Inline, convert_quietly, run_cli
from PIL import Image
from scipy.fft import dct

from mlpdata import Error
from mlpdata.convert import run
from mlpdata.convert.derived import derive
from mlpdata.derive import near
from mlpdata.derive.derivation import NEAR_BITS, Derivation
from mlpdata.derive.duplicates import find_near, name_groups
from mlpdata.derive.parents import open_parents
from mlpdata.inspect.report import report
from mlpdata.inspect.verify import verify
from mlpdata.shards import index
from mlpdata.shards.manifest import Manifest


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(run, "LocalEngine", Inline)


def scene(seed, size=64):
    """A smooth picture with structure at every low frequency, uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC))


def recompressed(pixels, quality=60):
    return np.asarray(Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=quality))))


def bits_between(a, b):
    return near.num_bits(near.looks_of(a).hashes ^ near.looks_of(b).hashes)


# ----------------------------------------------------------------------------------------------------------- hashes


def defined_hash(pixels):
    """pHash as it is defined, one image at a time."""
    grey = np.asarray(Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dct(dct(grey, axis=0), axis=1)[:8, :8]
    return int("".join("01"[int(bit)] for bit in (low > np.median(low)).ravel()), 2)


@pytest.mark.parametrize("size", [20, 32, 64])
def test_the_hash_is_phash(size):
    images = np.stack([scene(seed, size) for seed in range(40)])
    defined = np.array([defined_hash(image) for image in images], np.uint64)
    differing = near.num_bits(near.looks_of(images).hashes ^ defined)  # at the median, grey of 8 bits is another
    assert differing.max() <= 4 and differing.mean() < 0.5


def test_what_looks_alike_has_nearly_the_hash_and_what_does_not_has_another():
    images = np.stack([scene(seed) for seed in range(30)])
    again = np.stack([recompressed(image) for image in images])
    resized = np.stack([np.asarray(Image.fromarray(i).resize((40, 40), Image.Resampling.BOX)) for i in images])
    assert bits_between(images, again).max() <= NEAR_BITS and bits_between(images, resized).max() <= NEAR_BITS
    assert bits_between(images[:-1], images[1:]).min() > 8
    a, b = near.looks_of(images), near.looks_of(images[7:8])
    assert a.hashes[7] == b.hashes[0] and (a.colours[7] == b.colours[0]).all()  # whatever else is in the block


def test_plain_images_of_two_colours_are_not_alike():
    plain = [np.full((32, 32, 3), colour, np.uint8) for colour in (5, 250, 9, (200, 0, 0))]
    pairs = near.near_pairs(near.looks_of(np.stack(plain)), 0)
    assert pairs.rows.tolist() == [[0, 2]]


# ------------------------------------------------------------------------------------------------------------ pairs


def looks(hashes):
    return near.Looks(np.array(hashes, np.uint64), np.full((len(hashes), 3), 128, np.uint8))


def planted(n, seed=0):
    """Hashes, some of which differ from another in 0 to 9 bits."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 1 << 64, n, dtype=np.uint64)
    for i in range(0, n, 3):
        flips = sum(1 << int(bit) for bit in rng.choice(64, i % 10, replace=False))
        hashes[i] = hashes[rng.integers(n)] ^ np.uint64(flips)
    return hashes


@pytest.mark.parametrize("most_bits", [0, 1, 4, 8])
@pytest.mark.parametrize("n", [1, 2, 500, 3000])
def test_all_pairs_are_found(n, most_bits, monkeypatch):
    monkeypatch.setattr(near, "CANDIDATES", 1000)
    hashes = planted(n)
    found = near.near_pairs(looks(hashes), most_bits)
    distance = np.concatenate([near.num_bits(row ^ hashes)[None] for row in hashes])
    expected = np.argwhere(np.triu(distance <= most_bits, 1))
    assert np.array_equal(found.rows, expected)
    assert np.array_equal(found.bits, distance[expected[:, 0], expected[:, 1]])
    assert n < 500 or len(expected) > n // 40


def test_bits_are_counted_alike_without_numpys_own_count(monkeypatch):
    values = np.random.default_rng(0).integers(0, 1 << 64, 1000, dtype=np.uint64)
    counted = [int(value).bit_count() for value in values]
    assert near.num_bits(values).tolist() == counted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert near.num_bits(values).tolist() == counted


def test_too_many_pairs_are_an_error(monkeypatch):
    monkeypatch.setattr(near, "MAX_PAIRS", 100)
    with pytest.raises(Error, match="more than 100 pairs of images differ in at most 4 bits"):
        near.near_pairs(looks([7] * 50), 4)


def test_only_what_looks_like_one_that_stays_goes():
    chain = near.NearPairs(np.array([[0, 1], [1, 2], [3, 4]]), np.array([2, 2, 0], np.uint8))
    gone, kept = near.redundant(chain, np.array([0, 1, 2, 4, 3]))
    assert (gone.tolist(), kept.tolist()) == ([1, 3], [0, 4])
    gone, kept = near.redundant(chain, np.array([1, 0, 2, 3, 4]))
    assert (gone.tolist(), kept.tolist()) == ([0, 2, 4], [1, 1, 3])
    gone, _ = near.redundant(near.NearPairs(np.empty((0, 2), np.int64), np.empty(0, np.uint8)), np.arange(3))
    assert not len(gone)


# ----------------------------------------------------------------------------------------------------- directories


@pytest.fixture(scope="module")
def alike_dir(tmp_path_factory):
    """6 train and 4 val images of 2 classes: one of val again in train, and one of train twice, recompressed."""
    base = tmp_path_factory.mktemp("alike")
    for split, n in (("train", 6), ("val", 4)):
        for i in range(n):
            folder = base / "in" / split / ("cat" if i % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(encoded(scene(100 * len(split) + i), "PNG"))
    (base / "in/train/cat/leak.jpg").write_bytes(encoded(scene(301), "JPEG", quality=70))  # of val/cat/1
    (base / "in/train/dog/twin.jpg").write_bytes(encoded(scene(501), "JPEG", quality=70))  # of train/cat/1
    convert_quietly(dataset="folder", source=str(base / "in"), res=64, out=base / "out", workers=1)
    return base / "out"


def near_names(root):
    found, bits = find_near(root, Manifest.load(root), NEAR_BITS)
    groups = name_groups(root, Manifest.load(root), found, range(len(found)))
    assert len(bits) == len(found)
    return {tuple(sorted(f"{s['split']}/{s['key']}" for s in group)) for group in groups}


PAIRS = {("train/cat/leak", "val/cat/1"), ("train/cat/1", "train/dog/twin")}


def test_near_pairs_of_a_directory(alike_dir):
    assert near_names(alike_dir) == PAIRS


@pytest.mark.parametrize("options", [{"codec": "jpg"}, {"format": "tar"}, {"resize": "longest", "res": 48}])
def test_whatever_the_images_are_stored_as(alike_dir, tmp_path, options):
    source = str(alike_dir.parent / "in")
    convert_quietly(
        **{"dataset": "folder", "source": source, "res": 64, "out": tmp_path / "out", "workers": 1, **options}
    )
    assert near_names(tmp_path / "out") == PAIRS


def test_images_of_many_sizes_have_each_its_own_hash(tmp_path):
    for i, size in enumerate(((40, 64), (64, 40), (64, 64), (40, 64))):
        (tmp_path / "in/a").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/a/{i}.png").write_bytes(encoded(picture(*size, i), "PNG"))
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=64, resize="longest", out=tmp_path / "out")
    parent = open_parents((tmp_path / "out",), None)[0]
    found = near.split_looks(parent, "train")
    for key, value in zip(index.keys(tmp_path / "out", parent.manifest, "train"), found.hashes.tolist(), strict=True):
        pixels = np.asarray(Image.open(tmp_path / f"in/{key}.png"))
        assert value == near.looks_of(pixels[None]).hashes[0]


def test_a_subset_keeps_one_of_each_and_lists_the_others(alike_dir, tmp_path):
    said = []
    derivation = Derivation(command="subset", directories=(alike_dir,), dedupe="perceptual")
    manifest = derive(derivation, tmp_path / "out", quiet=True, say=said.append)
    assert not verify(tmp_path / "out", quiet=True)[1].problems
    assert {split: info.num_samples for split, info in manifest.splits.items()} == {"train": 6, "val": 4}
    assert any("2 images that look like another left out, 1 like one of another split" in x for x in said)
    skipped = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    reasons = [row["reason"] for row in skipped if "looks like" in row["reason"]]
    assert len(reasons) == 2 and any("looks like val/cat/1: " in reason for reason in reasons)
    assert "cat/leak" not in index.keys(tmp_path / "out", manifest, "train")
    assert "--dedupe perceptual" in manifest.command and not near_names(tmp_path / "out")
    derivation = Derivation(command="subset", directories=(alike_dir,), dedupe="exact")
    manifest = derive(derivation, tmp_path / "exact", quiet=True, say=said.append)
    assert manifest.splits["train"].num_samples == 8


def test_the_report_shows_them(alike_dir, tmp_path, shapes_dir):
    page = tmp_path / "page.html"
    report(alike_dir, page, near=NEAR_BITS)
    text = page.read_text()
    assert "2 pairs of images with different pixels" in text and "1 in two splits" in " ".join(text.split())
    section = text.partition("<h2>Images that look alike</h2>")[2].partition("<h2>")[0]
    assert section.count("<img") == 4 and "cat/leak" in section and "<b>in two splits</b>" in section
    report(alike_dir, page)
    assert "look alike" not in page.read_text()
    done = run_cli("report", alike_dir, "-o", page, "--near", 0)
    assert done.returncode == 0 and "differ in at most 0 of 64" in page.read_text()
    done = run_cli("report", alike_dir, "-o", page, "--near")
    assert done.returncode == 0 and "cat/leak" in page.read_text()
    assert run_cli("report", alike_dir, "-o", page, "--near", 60).returncode == 2
