import ctypes.util
import io
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import threading

import numpy as np
import pytest
import simplejpeg
import torch
from archives import make_folder
from conftest import convert_quietly, run_cli
from PIL import Image

import mlpdata
from mlpdata import Error
from mlpdata.augment.chroma import to_ycc420
from mlpdata.loader import jpeg_batch
from mlpdata.loader import reader as reader_module
from trainer.plan import plan

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


# -------------------------------------------------------------------------------------------------- luma and chroma


def coded_planes(seed, height=H - 8, width=W - 8):
    """A JPEG in 4:2:0 and the planes that it codes: of flat blocks, so that nothing is lost."""
    rng = np.random.default_rng(seed)

    def blocks(height, width):
        return rng.integers(0, 256, (height // 8, width // 8), np.uint8).repeat(8, 0).repeat(8, 1)

    y, cb, cr = blocks(height, width), blocks(height // 2, width // 2), blocks(height // 2, width // 2)
    return simplejpeg.encode_jpeg_yuv_planes(y, cb, cr, quality=100), y[..., None], np.stack([cb, cr], 2)


def run_planes(decode, payloads, height=H - 8, width=W - 8):
    sizes = np.array([len(p) for p in payloads], np.int64)
    data, n = np.frombuffer(b"".join(payloads), np.uint8), len(payloads)
    luma = np.full((n, height, width, 1), 77, np.uint8)
    chroma = np.full((n, (height + 1) // 2, (width + 1) // 2, 2), 77, np.uint8)
    return decode(data, sizes.cumsum() - sizes, sizes, luma, chroma), luma, chroma


def test_planes_are_those_that_are_coded(decode):
    jpegs, luma, chroma = zip(*map(coded_planes, range(20)), strict=True)
    left, found_luma, found_chroma = run_planes(decode, jpegs)
    assert not len(left)
    assert np.array_equal(found_luma, np.stack(luma)) and np.array_equal(found_chroma, np.stack(chroma))


def test_grey_has_luma_and_no_colour(decode):
    grey, coloured = jpeg(picture(3, H - 8, W - 8).convert("L")), coded_planes(0)[0]
    left, luma, chroma = run_planes(decode, [coloured, grey, coloured])
    assert not len(left) and (chroma[1] == 128).all() and np.array_equal(chroma[0], chroma[2])
    assert np.array_equal(luma[1], simplejpeg.decode_jpeg(grey, "Gray"))


def test_planes_of_what_has_no_such_planes_are_left_alone(decode):
    size = H - 8, W - 8
    good, luma, chroma = coded_planes(0)
    frame, adobe = good.index(b"\xff\xc0"), b"\xff\xee\0\x0eAdobe\0d\0\0\0\0\0"
    named_rgb = bytearray(good)
    for k, name in enumerate(b"RGB"):
        named_rgb[frame + 10 + 3 * k] = name
    odd = {
        **{f"subsampling {s}": jpeg(picture(1, *size), subsampling=s) for s in ("4:4:4", "4:2:2")},
        "CMYK": jpeg(picture(0, *size).convert("CMYK")),
        "progressive": jpeg(picture(2, *size), progressive=True, subsampling="4:2:0"),
        "Adobe's segment": good[:2] + adobe + good[2:],
        "Adobe's segment behind the frame": good[: good.index(b"\xff\xda")] + adobe + good[good.index(b"\xff\xda") :],
        "components R, G, B": bytes(named_rgb),
        "another size": coded_planes(1, 48, 48)[0],
        "cut in its frame header": good[: frame + 12],
        "cut in its pixels": jpeg(picture(5, *size), subsampling="4:2:0")[:-300],
        "empty": b"",
    }
    left, found_luma, found_chroma = run_planes(decode, [p for bad in odd.values() for p in (bad, good)])
    assert left.tolist() == list(range(0, 2 * len(odd), 2)), [list(odd)[i // 2] for i in left]
    assert all(np.array_equal(found, luma) for found in found_luma[1::2])
    assert all(np.array_equal(found, chroma) for found in found_chroma[1::2])
    odd_size = jpeg(picture(0, 33, 31), subsampling="4:2:0")
    assert run_planes(decode, [odd_size], 33, 31)[0].tolist() == [0]


def test_machine_code_is_compiled_once(decode, tmp_path):
    program = (
        "from mlpdata.loader import jpeg_batch; print(*(code.cache_hits for code in "
        "jpeg_batch.batch_decoder()[0].machine_code))"
    )

    def hits():
        environ = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
        return done.stdout.split(), sorted(path.name for path in tmp_path.rglob("*.nb*"))

    (first, files), second = hits(), hits()
    assert first == ["0", "0"] and second == (["1", "1"], files) and len(files) == 4


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


@pytest.mark.parametrize("format_", ["beton", "tar"])
def test_every_tier_gives_the_coded_planes(decode, jpeg_dir, format_):
    options = {"batch_size": 16, "format": format_, "pixels": "ycc420"}
    loaders = {tier: mlpdata.load(jpeg_dir, "train", tier=tier, **options) for tier in ("resident", "pinned", "stream")}
    assert all(ours.pixels == "ycc420" and "as the JPEGs are coded" in ours.tier_reason for ours in loaders.values())
    luma, chroma = (store.numpy() for store in loaders["resident"]._tier.stores)
    index = loaders["resident"].index
    for i in range(len(index)):
        with open(index.files[int(index.file[i])], "rb") as f:
            f.seek(int(index.offset[i]))
            payload = f.read(int(index.num_bytes[i]))
        assert np.array_equal(luma[i], simplejpeg.decode_jpeg(payload, "Gray"))
        left, own_luma, own_chroma = run_planes(decode, [payload], 32, 32)
        assert not len(left) and np.array_equal(own_luma[0], luma[i]) and np.array_equal(own_chroma[0], chroma[i])
    exact = mlpdata.load(jpeg_dir, "train", 16, format=format_).arrays()[0]
    for ours in loaders.values():
        for batch in ours._tier.batches(ours._steps(0, ours._tier.blocks, range(len(ours)))):
            rows = slice(None) if batch.rows is None else batch.rows.numpy()  # of a store, in the resident tier
            assert np.array_equal(batch.images.numpy()[rows], luma[batch.ids.numpy()])
            assert np.array_equal(batch.chroma.numpy()[rows], chroma[batch.ids.numpy()])
        for batch in ours:  # without augmentation they come as RGB, which is nearly what libjpeg makes of them
            assert abs(batch.images.numpy().astype(int) - exact[batch.ids.numpy()]).mean() < 1


def test_planes_without_the_batch_decoder_come_from_rgb(jpeg_dir, monkeypatch):
    monkeypatch.setattr(jpeg_batch, "batch_decoder", lambda: (None, "switched off"))
    resident = mlpdata.load(jpeg_dir, "train", 16, pixels="ycc420", tier="resident")
    luma, chroma = to_ycc420(torch.tensor(mlpdata.load(jpeg_dir, "train", 16).arrays()[0]))
    assert torch.equal(resident._tier.stores[0], luma) and torch.equal(resident._tier.stores[1], chroma)
    stream = mlpdata.load(jpeg_dir, "train", 16, pixels="ycc420", tier="stream")
    assert stream.pixels == "rgb" and "stay RGB" in stream.tier_reason


@pytest.mark.parametrize(
    ("quality", "res", "which"), [(95, 32, "JPEGs in 4:2:0"), (90, 33, "images of even height and width"), (90, 32, "")]
)
def test_what_has_no_coded_planes_is_streamed_as_rgb_and_the_plan_knows(decode, tmp_path, quality, res, which):
    make_folder(tmp_path / "in", kind="PNG")
    out, codec = tmp_path / "out", "jpg"
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=res, codec=codec, quality=quality, out=out)
    ours = mlpdata.load(out, "train", 4, pixels="ycc420", tier="stream")
    assert ours.pixels == ("rgb" if which else "ycc420")
    assert f"only {which} are streamed as ycc420" in ours.tier_reason if which else "coded" in ours.tier_reason
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: some\ndata:\n  shards: {out}\nmodel:\n  depth: 1\n  width: 8\n")
    text = plan(recipe, ["data.pixels=ycc420", "data.tier=stream", "train.device=cpu", "train.batch_size=100"])
    assert (" as RGB," if which else " as luma and half-resolution chroma,") in text
    assert "some: 12 images, fewer than one batch of 100" in text  # which is no reason to say nothing


def test_planes_of_mixed_codecs_are_one_image_each(decode, tmp_path, monkeypatch):
    """JPEGs with other subsampling among those in 4:2:0: their planes are made from their RGB pixels."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    with tarfile.open(tmp_path / "train-000.tar", "w") as tar:
        for i in range(20):
            kind = "444" if i % 5 == 2 else "420"
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(np.roll(small, i, 0)), 90, colorsubsampling=kind)
            for name, body in ((f"{i:03d}.jpg", data), (f"{i:03d}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    images = mlpdata.load(tmp_path, "train", 4).arrays()[0]
    ours = mlpdata.load(tmp_path, "train", 4, pixels="ycc420", tier="resident")
    luma, chroma = ours._tier.stores
    from_rgb = to_ycc420(torch.tensor(images))
    for i in range(2, 20, 5):
        assert torch.equal(luma[i], from_rgb[0][i]) and torch.equal(chroma[i], from_rgb[1][i])
    assert not torch.equal(chroma[0], from_rgb[1][0])


def test_a_damaged_image_names_its_sample(decode, jpeg_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", 0)
    root = tmp_path / "copy"
    shutil.copytree(jpeg_dir, root)
    index = mlpdata.load(root, "train", 8, format="tar", tier="stream").index
    with open(index.files[int(index.file[7])], "r+b") as f:
        f.seek(int(index.offset[7]) + int(index.num_bytes[7]) // 2)
        f.write(b"\xff\xd9" * 40)
    for tier, pixels in itertools.product(("stream", "resident"), ("rgb", "ycc420")):
        with pytest.raises(Error, match=r"sample 7 at byte .* cannot be decoded"):
            list(mlpdata.load(root, "train", 8, format="tar", tier=tier, pixels=pixels))


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
