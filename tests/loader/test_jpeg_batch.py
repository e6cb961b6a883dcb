import ctypes.util
import io
import os
import shutil
import sys
import threading

import numpy as np
import pytest
import simplejpeg
from archives import make_folder
from conftest import convert_quietly, run_cli
from PIL import Image

import mlpdata
from mlpdata import Error
from mlpdata.loader import jpeg_batch
from mlpdata.loader import reader as reader_module

H, W = 40, 56


@pytest.fixture(scope="module")
def decode():
    found, reason = jpeg_batch.batch_decoder()
    if found is None:
        if os.environ.get("MLPDATA_REQUIRE_INTEROP") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="module")
def jpeg_dir(tmp_path_factory):
    """A finished directory with JPEGs in both formats."""
    base = tmp_path_factory.mktemp("jpegs")
    make_folder(base / "in", per_class=20)
    convert_quietly(dataset="folder", source=str(base / "in"), res=32, codec="jpg", out=base / "out", shard_size=25)
    return base / "out"


def picture(seed, height=H, width=W):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def jpeg(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


def usual():
    """JPEGs of one size in every way that ordinary files come in."""
    plain = jpeg(picture(0))
    comment = b"\xff\xfe" + (300).to_bytes(2, "big") + b"\xff\xc0\xda" * 99 + b"x"  # marker codes inside a segment
    return {
        **{f"subsampling {s}": jpeg(picture(1), subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0")},
        "grey": jpeg(picture(3).convert("L")),
        "restart markers": jpeg(picture(4), restart_marker_blocks=2),
        "exif": jpeg(picture(5), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
        "comment": plain[:2] + comment + plain[2:],
        "fill bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "bytes behind the end": plain + b"\0" * 100,
    }


def unusual():
    plain = jpeg(picture(0))
    frame = plain.index(b"\xff\xc0")
    twice = bytearray(plain)
    twice[frame + 7 : frame + 9] = (2 * W).to_bytes(2, "big")
    return {
        "empty": b"",
        "two bytes": plain[:2],
        "no JPEG": b"\x89PNG" + b"\0" * 500,
        "cut in its frame header": plain[: frame + 6],
        "cut in its pixels": plain[:-300],
        "larger": jpeg(picture(0, 2 * H, 2 * W)),
        "smaller": jpeg(picture(0, H - 1, W)),
        "turned": jpeg(picture(0, W, H)),
        "twice as wide by its header": bytes(twice),
        "progressive": jpeg(picture(2), progressive=True, quality=80),
        "CMYK": jpeg(picture(0).convert("CMYK")),
        "segment that claims more than there is": plain[:2] + b"\xff\xe0\xff\xff" + plain[4:600],
        "segment without length": plain[:2] + b"\xff\xe0\0\0" + plain[4:],
    }


def run(decode, payloads, shape=(H, W)):
    sizes = np.array([len(p) for p in payloads], np.int64)
    data = np.frombuffer(b"".join(payloads), np.uint8)
    out = np.full((len(payloads), *shape, 3), 77, np.uint8)
    return decode(data, sizes.cumsum() - sizes, sizes, out), out


def test_pixels_equal_simplejpegs(decode):
    payloads = usual()
    left, out = run(decode, list(payloads.values()))
    assert not len(left), [list(payloads)[i] for i in left]
    for name, payload, pixels in zip(payloads, payloads.values(), out, strict=True):
        assert np.array_equal(pixels, simplejpeg.decode_jpeg(payload, "RGB")), name


def test_what_is_not_usual_is_left_alone_and_does_not_disturb_its_neighbours(decode):
    good, odd = jpeg(picture(9)), unusual()
    payloads = [p for bad in odd.values() for p in (bad, good)]
    left, out = run(decode, payloads)
    assert left.tolist() == list(range(0, len(payloads), 2)), [list(odd)[i // 2] for i in left]
    expected = simplejpeg.decode_jpeg(good, "RGB")
    assert all(np.array_equal(pixels, expected) for pixels in out[1::2])
    # It stays inside what it was given: an image of another size writes nothing at all.
    for name in ("larger", "smaller", "turned"):
        assert (out[2 * list(odd).index(name)] == 77).all(), name


def test_arrays_with_gaps_are_refused(decode):
    one = jpeg(picture(0))
    sizes = np.array([len(one)] * 2, np.int64)
    with pytest.raises(ValueError, match="contiguous"):
        decode(np.frombuffer(one * 2, np.uint8), np.array([0, len(one)]), sizes, np.zeros((4, H, W, 3), np.uint8)[::2])


def test_many_threads_at_once(decode):
    payloads = list(usual().values()) * 30
    _, expected = run(decode, payloads)
    results = [None] * 8

    def work(k):
        results[k] = run(decode, payloads)[1]

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(results))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(r, expected) for r in results)


# ----------------------------------------------------------------------------------------------------- the loader


@pytest.mark.parametrize("tier", ["stream", "resident"])
@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_batches_are_the_same_with_and_without(decode, jpeg_dir, monkeypatch, tier, format_):
    def batches(worth):
        monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", worth)
        loader = mlpdata.load(jpeg_dir, "train", 16, tier=tier, format=format_)
        return [(b.ids.tolist(), b.images.clone()) for b in loader]

    with_it, without = batches(0), batches(1 << 40)
    assert [ids for ids, _ in with_it] == [ids for ids, _ in without]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(with_it, without, strict=True))


def test_a_damaged_image_names_its_sample(decode, jpeg_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", 0)
    root = tmp_path / "copy"
    shutil.copytree(jpeg_dir, root)
    index = mlpdata.load(root, "train", 8, format="tar", tier="stream").index
    with open(index.files[int(index.file[7])], "r+b") as f:
        f.seek(int(index.offset[7]) + int(index.num_bytes[7]) // 2)
        f.write(b"\xff\xd9" * 40)
    for tier in ("stream", "resident"):
        with pytest.raises(Error, match=r"sample 7 at byte .* cannot be decoded"):
            list(mlpdata.load(root, "train", 8, format="tar", tier=tier))


@pytest.fixture
def fresh():
    """batch_decoder looks anew, and again when the test is over."""
    jpeg_batch.batch_decoder.cache_clear()
    yield
    jpeg_batch.batch_decoder.cache_clear()


def without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    return "numba is not installed"


def without_library(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    return "no libturbojpeg"


def with_another_library(monkeypatch):
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: ctypes.util._findSoname_ldconfig("m") or "libm.so.6")
    return "do not work"


def with_other_pixels(monkeypatch):
    real = simplejpeg.decode_jpeg
    monkeypatch.setattr(jpeg_batch.simplejpeg, "decode_jpeg", lambda *a, **k: real(*a, **k) ^ 1)
    return "other pixels"


@pytest.mark.parametrize("lacking", [without_numba, without_library, with_another_library, with_other_pixels])
def test_without_it_the_loader_goes_on_and_says_why(decode, jpeg_dir, monkeypatch, fresh, lacking):
    monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", 0)
    expected = mlpdata.load(jpeg_dir, "train", 16).arrays()[0]
    jpeg_batch.batch_decoder.cache_clear()
    with monkeypatch.context() as m:
        reason = lacking(m)
        found, said = jpeg_batch.batch_decoder()
    assert found is None and reason in said
    assert np.array_equal(mlpdata.load(jpeg_dir, "train", 16).arrays()[0], expected)


def test_doctor_says_how_batches_are_decoded(decode):
    assert f"jpeg batches {jpeg_batch.batch_decoder()[1]}" in run_cli("doctor").stdout
