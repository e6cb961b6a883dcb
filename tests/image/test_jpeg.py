"""JPEGs: what is stored as it is, and that every reader gives the same pixels for it or none at all."""

import io
import itertools
import json
import re
import tarfile
import warnings

import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from archives import encoded, picture
from conftest import convert_quietly
from PIL import Image

import mlpdata
from mlpdata import Error, image
from mlpdata.image import jpeg, pillow
from mlpdata.inspect import read_back, verify
from mlpdata.loader import jpeg_batch
from mlpdata.loader import reader as reader_module

SIZE = 48
RESIZE = image.Resize(SIZE)
PHOTO = picture(SIZE, SIZE, 1)
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:Description tiff:Orientation='6'/>"
APP0, APP1, APP2, APP13, APP14, COM = 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE


def segment(marker, body):
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body


def segments(data):
    """[marker segments with what follows them], the last one is the end marker."""
    cuts, end = [2], 2
    while data[end + 1] != 0xD9:
        start, end = end, end + 2 + int.from_bytes(data[end + 2 : end + 4])
        if data[start + 1] == 0xDA:
            end = re.compile(rb"\xff[^\x00\xd0-\xd7]").search(data, end).start()
        cuts.append(end)
    return [data[a:b] for a, b in itertools.pairwise([*cuts, len(data)])]


def without(data, marker):
    return data[:2] + b"".join(s for s in segments(data) if s[1] != marker)


def after(data, marker, more):
    return data[:2] + b"".join(s + more if s[1] == marker else s for s in segments(data))


def kept(data):
    jpeg_and_size = image.kept_jpeg(data, RESIZE)
    return jpeg_and_size and jpeg_and_size[0]


def pixels_of(data):
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    image.decode_kept(data, out)
    return out


BASE = encoded(PHOTO, quality=90)
GREY = encoded(Image.fromarray(PHOTO).convert("L"))
PROGRESSIVE = encoded(PHOTO, progressive=True)
THUMBNAIL = encoded(picture(16, 16, 2))


@pytest.mark.parametrize(
    "data", [BASE, GREY, PROGRESSIVE, encoded(PHOTO, subsampling="4:4:4", restart_marker_blocks=2)]
)
def test_plain_jpegs_are_kept_byte_for_byte(data):
    assert kept(data) == data
    assert np.array_equal(pixels_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


EXTRAS = {
    "exif": segment(APP1, b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    "xmp": segment(APP1, XMP),
    "extended xmp": segment(APP1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40)),
    "colour profile": segment(APP2, b"ICC_PROFILE\0\1\1" + bytes(300)),
    "further images": segment(APP2, b"MPF\0MM\0*\0\0\0\x08\0\0"),
    "photoshop": segment(APP13, b"Photoshop 3.0\0" + bytes(50)),
    "thumbnail": segment(APP0, b"JFXX\0\x10" + THUMBNAIL),
    "comments": segment(COM, b"\xff\xd9\xff\xda" * 10_000) * 20,
}


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize("data", [BASE, PROGRESSIVE])
def test_what_is_no_picture_is_cut_out(name, data):
    """XMP and EXIF have orientations, which some readers turn images by; the rest has megabytes."""
    assert kept(data[:2] + EXTRAS[name] + data[2:]) == data
    assert kept(after(data, APP0, EXTRAS[name])) == data


@pytest.mark.parametrize("more", [b"\0", bytes(1 << 20), b"garbage", THUMBNAIL, b"\xff\xd9"])
def test_what_is_behind_the_end_is_cut_off(more):
    assert kept(BASE + more) == BASE
    assert kept(PROGRESSIVE + more) == PROGRESSIVE


def test_a_jpeg_of_more_bytes_than_its_pixels_deserve_is_not_kept():
    tables = next(s for s in segments(BASE) if s[1] == 0xDB)
    assert kept(after(BASE, APP0, tables)) is not None
    assert kept(after(BASE, APP0, tables * 1000)) is None


def odd():
    """JPEGs that readers see differently, or may: {name: bytes}."""
    frame = BASE.index(b"\xff\xc0")
    photo = Image.fromarray(PHOTO)
    scans = segments(PROGRESSIVE)
    adobe = lambda transform: segment(APP14, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))  # noqa: E731
    ids = BASE.replace(BASE[frame + 10 : frame + 19], b"\1\x22\0\1\x11\1\3\x11\1")
    return {
        "cmyk": encoded(photo.convert("CMYK")),
        "rgb": encoded(PHOTO, keep_rgb=True),
        "adobe says rgb": after(BASE, APP0, adobe(0)),
        "adobe says rgb without jfif": without(after(BASE, APP0, adobe(0)), APP0),
        "two components of one id": ids,
        "ids of rgb": without(BASE, APP0)
        .replace(b"\1\x22\0\2\x11\1\3\x11\1", b"R\x22\0G\x11\1B\x11\1")
        .replace(b"\3\1\0\2\x11\3\x11\0\x3f\0", b"\3R\0G\x11B\x11\0\x3f\0"),
        "no huffman tables": without(BASE, 0xC4),
        "no quantisation tables": without(BASE, 0xDB),
        "progressive without its last scan": PROGRESSIVE[:2] + b"".join(scans[:-2]) + scans[-1],
        "extended": BASE[:frame] + b"\xff\xc1" + BASE[frame + 2 :],
        "12 bits": BASE[: frame + 4] + b"\x0c" + BASE[frame + 5 :],
        "no end": BASE[:-2],
        "cut short": BASE[:-200],
        "two frames": after(BASE, 0xC0, BASE[frame : frame + 19]),
        "no rows": BASE[: frame + 5] + b"\0\0" + BASE[frame + 7 :],
        "stray bytes in the header": after(BASE, APP0, b"\0\1\2"),
        "stray bytes before the end": BASE[:-2] + b"\0\0\x11\x22" + BASE[-2:],
        "cut short with an end": BASE[: len(BASE) * 3 // 4].rstrip(b"\xff") + b"\xff\xd9",
    }


WARNED_OF = ("stray bytes in the header", "stray bytes before the end", "cut short with an end")


@pytest.mark.parametrize("name", odd())
def test_odd_jpegs_are_not_kept_or_do_not_decode_strictly(name):
    data = kept(odd()[name])
    if data is not None:
        if name == "stray bytes in the header":  # which are no picture
            assert data == BASE
        else:
            assert name in WARNED_OF
            with pytest.raises(image.ImageError):
                pixels_of(data)


def test_jpegs_that_libjpeg_warns_about_are_decoded_as_pillow_does_except_strictly():
    for name in WARNED_OF:
        data = odd()[name]
        pixels, size = image.decode(data, RESIZE)
        assert size == (SIZE, SIZE)
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        with pytest.raises(image.ImageError, match="cannot decode: "):
            image.decode(data, RESIZE, strict=True)


def mutations(n, seed=0):
    """JPEGs with some bytes changed and some segments and scans dropped, doubled, renamed: of every kind, and n."""
    rng = np.random.default_rng(seed)
    bases = [BASE, GREY, PROGRESSIVE, encoded(PHOTO, restart_marker_blocks=3), encoded(PHOTO, subsampling="4:4:4")]
    for i in range(n):
        data = bytearray(bases[i % len(bases)])
        if rng.random() < 0.5:
            parts = segments(bytes(data))[:-1]
            k, how = int(rng.integers(len(parts))), rng.integers(3)
            parts[k : k + 1] = (
                [], [parts[k]] * 2, [b"\xff" + bytes([rng.integers(0xC0, 0xFF)]) + parts[k][2:]])[how]  # fmt: skip
            data = bytearray(b"\xff\xd8" + b"".join(parts) + b"\xff\xd9")
        else:
            for _ in range(int(rng.integers(1, 4))):
                data[int(rng.integers(2, len(data) if rng.random() < 0.3 else min(len(data), 700)))] = int(
                    rng.integers(256)
                )
        yield bytes(data)


def test_damaged_jpegs_have_the_same_pixels_for_every_reader_or_none(tmp_path, monkeypatch):
    payloads = [p for damaged in mutations(500) for p in (BASE, damaged)]
    path = tmp_path / "x.bin"
    path.write_bytes(b"".join(payloads))
    sizes = np.array([len(p) for p in payloads], np.int64)
    same = lambda value: np.full(len(sizes), value)  # noqa: E731

    def read(i, is_foreign, worth):
        monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", worth)
        out = np.zeros((1, SIZE, SIZE, 3), np.uint8)
        try:
            readers[is_foreign].read(np.array([i]), out)
            return out[0].tobytes()
        except Error as e:
            assert f"{path}: sample {i} at byte" in str(e) and "\n" not in str(e)
            return None

    readers = {}
    for is_foreign in (False, True):
        index = mlpdata.shards.shard_index.ShardIndex(
            files=[path], file=same(0), offset=sizes.cumsum() - sizes, num_bytes=sizes, codec=same(reader_module.JPG),
            width=same(SIZE), height=same(SIZE), label=same(0), is_foreign=is_foreign)  # fmt: skip
        readers[is_foreign] = reader_module.Reader(index, 1)
    # All in one call of the batch decoder: what one image leaves behind must not go into the next.
    at_once, (many, _) = {}, jpeg_batch.batch_decoder()
    if many is not None:
        out = np.zeros((len(payloads), SIZE, SIZE, 3), np.uint8)
        left = many(np.frombuffer(path.read_bytes(), np.uint8), sizes.cumsum() - sizes, sizes, out)
        at_once = {i: out[i].tobytes() for i in set(range(len(payloads))) - {*left.tolist()}}
        assert len(at_once) > len(payloads) // 2
    num_whole, num_kept = 0, 0
    for i in range(1, len(payloads), 2):
        data = payloads[i]
        strict = read(i, False, 1 << 40)
        assert read(i, False, 0) == strict and at_once.get(i, strict) == strict
        try:
            checked = verify._decode(read_back.StoredSample("x.tar", "jpg", data), (SIZE, SIZE, 3)).tobytes()
        except image.ImageError:
            checked = None
        assert checked == strict
        try:  # Pillow has the last word on JPEGs of others, for the loader as for a conversion
            pillow = image.decode_exact(data, (SIZE, SIZE)).tobytes()
        except image.ImageError:
            pillow = None
        foreign = read(i, True, 0)
        assert foreign == read(i, True, 1 << 40) == pillow
        assert strict in (None, pillow)
        num_whole += strict is not None
        if plain := kept(data):
            try:
                stored_pixels = pixels_of(plain).tobytes()
            except image.ImageError:
                continue
            num_kept += 1
            assert stored_pixels == image.decode_exact(plain).tobytes() == (pillow or stored_pixels)
    assert num_whole > 100 and num_kept > 100


# ------------------------------------------------------------------------------------------------ the whole of it


def write_tar(path, payloads, suffix="jpg"):
    with tarfile.open(path, "w") as archive:
        for i, payload in enumerate(payloads):
            for name, data in ((f"{i:04d}.{suffix}", payload), (f"{i:04d}.cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def foreign_images():
    photo = Image.fromarray(PHOTO)
    return {
        "jpeg": BASE,
        "png": encoded(PHOTO, "PNG"),
        "webp": encoded(PHOTO, "WEBP", lossless=True),
        "gif": encoded(photo.convert("P"), "GIF"),
        "bmp": encoded(PHOTO, "BMP"),
        "grey": GREY,
        "progressive": PROGRESSIVE,
        **{name: data for name, data in odd().items() if name in ("cmyk", "rgb", *WARNED_OF)},
    }


def test_foreign_images_are_what_they_are_whatever_their_names_in_every_tier(tmp_path, monkeypatch):
    images = foreign_images()
    expected = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in images.values()]
    for suffix in ("jpg", "png"):
        write_tar(tmp_path / f"{suffix}.tar", images.values(), suffix)
        for worth, tier in ((0, "stream"), (1 << 40, "stream"), (0, "resident"), (1 << 40, "resident")):
            monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", worth)
            for batch in mlpdata.load(tmp_path / f"{suffix}.tar", batch_size=4, tier=tier):
                for i, pixels in zip(batch.ids.tolist(), batch.images.numpy(), strict=True):
                    assert np.array_equal(pixels, expected[i]), (list(images)[i], suffix, worth, tier)
        small, _ = mlpdata.load(tmp_path / f"{suffix}.tar", batch_size=4, res=SIZE // 2).arrays()
        half = image.Resize(SIZE // 2)
        assert all(np.array_equal(small[i], image.decode(data, half)[0]) for i, data in enumerate(images.values()))


@pytest.mark.parametrize("options", [{"format": "beton", "codec": "jpg"}, {"format": "both"}])
def test_what_is_converted_is_what_is_read(tmp_path, options):
    """Whatever is odd about a JPEG: it is left out and listed, or it is there, with Pillow's pixels, for everyone."""
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    images = {**odd(), **{name: BASE[:2] + more + BASE[2:] for name, more in EXTRAS.items()}}
    for i, data in enumerate(images.values()):
        (folder / f"{i}.jpg").write_bytes(data)
    out = tmp_path / "out"
    source = str(tmp_path / "in")
    _, lines = convert_quietly(dataset="folder", source=source, res=SIZE, out=out, max_skipped=1.0, **options)
    assert any(re.match(r"warning: [2-9] JPEGs that libjpeg warns about are stored as Pillow", line) for line in lines)
    skipped = {s["source"] for s in map(json.loads, (out / "skipped.jsonl").read_text().splitlines())}
    whole = {}
    for i, (name, data) in enumerate(images.items()):
        try:
            with warnings.catch_warnings(action="ignore"):
                whole[f"a/{i}"] = name, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        except (OSError, SyntaxError, ValueError):  # what Pillow raises on damage
            assert any(source.endswith(f"a/{i}.jpg") for source in skipped), name
    assert len(whole) + len(skipped) == len(images)
    verify.verify(out)
    rows = pq.read_table(out / "train.index.parquet").to_pylist()
    assert {row["key"] for row in rows} == set(whole)
    for format_ in ("tar", "beton") if options["format"] == "both" else (options["format"],):
        loaded, _ = mlpdata.load(out, format=format_).arrays()
        codec = mlpdata.shards.manifest.Manifest.load(out)
        is_jpg = (codec.tar_codec if format_ == "tar" else codec.beton_codec) == "jpg"
        for row, pixels in zip(rows, loaded, strict=True):
            name, expected = whole[row["key"]]
            difference = np.abs(pixels.astype(int) - expected)
            # What was encoded anew, has quality 90.
            assert difference.mean() < (4 if is_jpg and name in odd() else 1e-9), name
    if options["format"] != "beton":
        with tarfile.open(next(out.glob("train-*.tar"))) as archive:
            for member in archive:
                if member.name.endswith(".jpg"):
                    data = archive.extractfile(member).read()
                    assert np.array_equal(simplejpeg.decode_jpeg(data, "RGB"), image.decode_exact(data))
                    assert b"ns.adobe" not in data and b"Exif" not in data and data.endswith(b"\xff\xd9")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_damaged_jpeg_is_an_error_at_every_size(tmp_path, share, monkeypatch):
    """Resized ones too: where Pillow would have repaired it."""
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(encoded(picture(SIZE, SIZE, i), quality=90))
    convert_quietly(dataset="folder", source=str(tmp_path / "in"), res=SIZE, out=tmp_path / "out", format="tar")
    index = mlpdata.load(tmp_path / "out", tier="stream").index
    with open(index.files[0], "r+b") as f:
        f.seek(int(index.offset[1] + index.num_bytes[1] * share))
        f.write(b"\xff\xd9" * 20)
    for worth, tier, res in itertools.product((0, 1 << 40), ("stream", "resident"), (None, 24)):
        monkeypatch.setattr(reader_module, "BATCH_DECODER_AFTER", worth)
        with pytest.raises(Error, match=r"train-000000.tar: sample 1 at byte \d+ \('a/\d.jpg'\) cannot be decoded"):
            list(mlpdata.load(tmp_path / "out", batch_size=3, tier=tier, res=res))


# ------------------------------------------------------------------------------------------------- what it costs


def declaring(data, width, height):
    frame = re.search(rb"\xff[\xc0\xc2]", data).start()
    return data[: frame + 5] + height.to_bytes(2) + width.to_bytes(2) + data[frame + 9 :]


def with_scans(data, n):
    *parts, end = segments(data)
    return data[:2] + b"".join(parts) + parts[-1] * n + end


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (declaring(with_scans(PROGRESSIVE, 600), 8000, 8000), r"has 61\d scans of 8000 x 8000 pixels"),
        (declaring(with_scans(PROGRESSIVE, 2000), 4000, 4000), r"has 20\d\d scans of 4000 x 4000 pixels"),
        (declaring(BASE, 16000, 16000), "declares 16000 x 16000 pixels"),
        (declaring(encoded(PHOTO, subsampling="4:4:4", progressive=True), 11000, 11000), "takes .* MiB of memory"),
        (declaring(encoded(Image.fromarray(PHOTO).convert("CMYK")), 9000, 9000), "declares 9000 x 9000 pixels"),
    ],
)
def test_jpegs_that_would_cost_minutes_or_gigabytes_are_refused_before_they_are_decoded(data, reason, monkeypatch):
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(pillow, "to_rgb", None)
    with pytest.raises(image.ImageError, match=reason):
        image.decode(data, RESIZE)


def test_the_header_of_a_jpeg_with_a_large_one_is_read():
    """The first scan marker may stand in a thumbnail, before the image's own header."""
    for more in (EXTRAS["thumbnail"], segment(APP1, bytes(60_000))):
        data = BASE[:2] + more + BASE[2:]
        head = jpeg.header_of(data)
        assert (head.width, head.height, head.frame, head.is_clean) == (SIZE, SIZE, 0xC0, False)
        assert image.probe(data) == (SIZE, SIZE, True)
    assert jpeg.header_of(BASE[:100]) is None and jpeg.header_of(b"\xff\xd8\xff") is None
