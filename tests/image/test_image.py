import io
import re
import struct
import subprocess
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from mlpdata import image
from mlpdata.choices import FILTERS, RESIZES
from mlpdata.image import codec, pillow
from mlpdata.image.resize import BAND, _bands, area_mean


def photo(width, height, seed=0):
    """A smooth random picture, like a photograph to a codec: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels, kind, **options):
    out = io.BytesIO()
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("rule", RESIZES)
@pytest.mark.parametrize("filter_", FILTERS)
def test_resize_equals_pillow_on_the_exact_decode(rule, filter_):
    pixels = photo(100, 60)
    resize = image.Resize(32, rule, filter_)
    seen, source = image.decode(encoded(pixels, "PNG"), resize)
    box, size = {
        "squash": ((0, 0, 100, 60), (32, 32)),
        "crop": ((20, 0, 80, 60), (32, 32)),
        "longest": ((0, 0, 100, 60), (32, 19)),
    }[rule]
    expected = Image.fromarray(pixels).resize(size, Image.Resampling[filter_.upper()], box=box)
    assert source == (100, 60)
    assert np.array_equal(seen, np.asarray(expected))


@pytest.mark.parametrize("rule", RESIZES)
@pytest.mark.parametrize("filter_", FILTERS)
def test_scaled_decode_is_close_to_the_exact_one(rule, filter_):
    data = encoded(photo(500, 375), "JPEG", quality=92)
    resize = image.Resize(64, rule, filter_)
    seen, source = image.decode(data, resize)
    assert source == (500, 375)
    squared, largest = image.squared_error(data, seen, resize)
    psnr = 10 * np.log10(255**2 / (squared / seen.size))
    assert psnr > 35 and largest < 60


def test_an_exact_decode_that_takes_too_much_memory_is_a_scaled_one(monkeypatch):
    data, resize = encoded(photo(400, 400), "JPEG"), image.Resize(64)
    in_full, scaled = (image.decode(data, resize, exact=exact)[0] for exact in (True, False))
    assert not np.array_equal(in_full, scaled)
    monkeypatch.setattr(codec, "MAX_DECODE_BYTES", codec.JPEG_BYTES * 400 * 400 - 1)
    assert np.array_equal(image.decode(data, resize, exact=True)[0], scaled)


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((94, 125), (0, 0, 125, 94), (64, 64)),
        ((188, 250), (31.25, 0, 219.125, 188), (64, 64)),  # the middle, its edges inside of pixels
        ((60, 100), (0, 0, 100, 60), (43, 19)),  # sizes that no band divides
        ((70, 9), (0, 0, 9, 70), (1, 64)),
        ((128, 128), (0, 0, 128, 128), (64, 64)),  # edges on pixels
        ((500, 700), (0, 0, 700, 500), (224, 224)),  # products in pieces, down and across
    ],
)
def test_area_mean_weighs_every_pixel_by_what_is_covered_of_it(shape, box, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)

    def weights(n, start, stop, m):
        edges = np.linspace(start, stop, m + 1)
        covered = np.minimum(edges[1:, None], np.arange(1, n + 1)) - np.maximum(edges[:-1, None], np.arange(n))
        return covered.clip(0) * m / (stop - start)

    (h, w), (width, height) = shape, size
    down, across = weights(h, box[1], box[3], height), weights(w, box[0], box[2], width)
    expected = np.einsum("yh,xw,hwc->yxc", down, across, pixels, optimize=True)
    seen = area_mean(pixels, box, size)
    assert seen.dtype == np.uint8 and seen.shape == (height, width, 3)
    # Rounding the result takes 0.5, and weights in 256ths of some four pixels each way up to 2 of 255.
    assert np.abs(seen - expected).max() < 2 and np.abs(seen - expected).mean() < 0.5
    # Whole numbers all the way: other orders of addition give the same.
    exact = [np.zeros((m, n), np.int64) for n, m in ((h, height), (w, width))]
    for whole, (n, start, stop, m) in zip(
        exact, ((h, box[1], box[3], height), (w, box[0], box[2], width)), strict=True
    ):
        for first, a, b, band in _bands(n, start, stop, m, 1):
            whole[first : first + BAND, a:b] = band
        assert (whole.sum(axis=1) == 256).all() and (whole >= 0).all()
    sums = np.einsum("yh,xw,hwc->yxc", *exact, pixels.astype(np.int64), optimize=True)
    assert np.array_equal(seen, (sums + (1 << 15)) >> 16)


def test_no_product_of_area_mean_is_large_enough_for_threads(monkeypatch):
    sizes = []
    matmul = np.matmul

    def recorded(a, b, out):
        sizes.append(a.shape[0] * a.shape[1] * b.shape[1])
        matmul(a, b, out=out)

    monkeypatch.setattr(np, "matmul", recorded)
    area_mean(np.zeros((900, 1200, 3), np.uint8), (0, 0, 1200, 900), (300, 400))
    assert 1 << 16 < max(sizes) <= 1 << 18


def test_area_mean_keeps_what_has_one_colour():
    for value in (0, 1, 127, 254, 255):
        seen = area_mean(np.full((97, 131, 3), value, np.uint8), (0, 0, 131, 97), (64, 64))
        assert (seen == value).all()


@pytest.mark.parametrize("rule", RESIZES)
def test_what_is_kept_is_what_resizing_leaves_alone(rule):
    resize, sizes = image.Resize(5, rule), range(1, 12)
    for width, height in ((w, h) for w in sizes for h in sizes):
        assert resize.keeps(width, height) == (resize.box_and_size(width, height)[1] == (width, height))


def test_longest_leaves_small_images_alone():
    pixels = photo(20, 30)
    seen, _ = image.decode(encoded(pixels, "PNG"), image.Resize(64, "longest"))
    assert np.array_equal(seen, pixels)


def test_size_that_fits_is_the_full_decode():
    data = encoded(photo(64, 64), "JPEG", quality=75)
    seen, _ = image.decode(data, image.Resize(64))
    assert np.array_equal(seen, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_every_mode_comes_out_as_rgb():
    rgb = photo(16, 16)
    picture = Image.fromarray(rgb)
    alpha = np.dstack([rgb, np.full((16, 16), 7, np.uint8)])
    grey16 = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    resize = image.Resize(16)

    def seen(data):
        return image.decode(data, resize)[0]

    assert np.array_equal(seen(encoded(alpha, "PNG")), rgb)  # alpha is dropped, not blended
    assert np.array_equal(seen(encoded(picture.convert("L"), "PNG"))[..., 1], np.asarray(picture.convert("L")))
    assert np.array_equal(seen(encoded(grey16, "PNG"))[..., 2], (grey16 >> 8).astype(np.uint8))
    palette = picture.quantize(16)
    assert np.array_equal(seen(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    cmyk = encoded(picture.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(seen(cmyk).astype(int) - rgb).mean() < 12
    grey = encoded(picture.convert("L"), "JPEG")
    assert np.array_equal(seen(grey)[..., 0], seen(grey)[..., 2])
    assert np.array_equal(seen(encoded(rgb, "WEBP", lossless=True)), rgb)


def test_exif_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    plain, turned = encoded(photo(40, 24), "JPEG"), encoded(photo(40, 24), "JPEG", exif=exif)
    resize = image.Resize(24, "longest")
    assert np.array_equal(image.decode(plain, resize)[0], image.decode(turned, resize)[0])


def test_a_jpeg_of_the_right_size_is_kept_without_its_exif_block():
    resize = image.Resize(32)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(photo(32, 32), "JPEG", exif=exif)
    kept, size = image.kept_jpeg(data, resize)
    assert size == (32, 32) and b"Exif" not in kept
    assert not Image.open(io.BytesIO(kept)).getexif()
    pixels = np.empty((32, 32, 3), np.uint8)
    image.decode_kept(kept, pixels)
    assert np.array_equal(pixels, simplejpeg.decode_jpeg(data))
    plain = encoded(photo(32, 32), "JPEG")
    assert image.kept_jpeg(plain, resize) == (plain, (32, 32))
    assert image.kept_jpeg(plain, image.Resize(16)) is None
    assert image.kept_jpeg(encoded(photo(32, 32), "PNG"), resize) is None
    assert image.kept_jpeg(encoded(Image.fromarray(photo(32, 32)).convert("CMYK"), "JPEG"), resize) is None
    with pytest.raises(image.ImageError):
        image.decode_kept(plain[:500], pixels)
    with pytest.raises(image.ImageError, match="16 x 16, its header says 32 x 32"):
        image.decode_kept(encoded(photo(16, 16), "JPEG"), pixels)
    with pytest.raises(image.ImageError, match="cannot decode"):
        image.decode_kept(encoded(photo(32, 32), "PNG"), pixels)  # a shard's JPEGs are JPEGs


# ------------------------------------------------------------------------------------------- what an image is


RGB = photo(24, 16)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "DIB", "TIFF", "PPM", "WEBP", "AVIF", "GIF", "MPO", "JPEG"])
def test_an_image_is_what_its_content_says(kind):
    pytest.importorskip("PIL._avif") if kind == "AVIF" else None
    options = {"WEBP": {"lossless": True}, "MPO": {"save_all": True, "append_images": [Image.fromarray(RGB[::-1])]}}
    data = encoded(RGB, kind, **options.get(kind, {}))
    assert image.format_of(data) == ("JPEG" if kind == "MPO" else kind)
    assert image.probe(data) == (24, 16, kind in ("JPEG", "MPO"))
    pixels, size = image.decode(data, image.Resize(64, "longest"))
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert size == (24, 16) and np.array_equal(pixels, expected)
    assert np.array_equal(expected, RGB) or kind in ("JPEG", "MPO", "AVIF", "GIF")


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "ICO", "SGI", "JPEG2000", "DDS", "XBM", "PDF", "ICNS"])
def test_other_formats_that_pillow_knows_are_not_read(kind):
    picture = Image.fromarray(RGB).convert("1") if kind == "XBM" else Image.fromarray(RGB)
    data = encoded(picture, kind)
    assert image.format_of(data) is None
    with pytest.raises(image.ImageError, match=r"^not an image: it is "):
        image.decode(data, image.Resize(16))


def test_no_image_starts_a_program(monkeypatch):
    """Pillow hands EPS to Ghostscript."""

    def started(*args, **kwargs):
        pytest.fail(f"a program was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr("os.system", started)
    for head in (b"", b"\xc5\xd0\xd3\xc6\x20\0\0\0\xff\0\0\0" + bytes(20)):
        eps = head + b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
        with pytest.raises(image.ImageError, match=r"it is PostScript \(EPS\)"):
            image.decode(eps, image.Resize(16))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image: it is an empty file"),
        (bytes(5000), "not an image: it is nothing but zeros"),
        (b"not an image at all", "not an image: it is text"),
        ("größer".encode(), "not an image: it is text"),
        (b"<!DOCTYPE html>\n<html>404", "not an image: it is an HTML page"),
        (b"\n <HTML lang=en>", "not an image: it is an HTML page"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "not an image: it is SVG, a format that is not read"),
        (b"<?xml version='1.0'?>\n<feed/>", "not an image: it is XML"),
        (b"<!---->" * 100, "not an image: it is text"),
        (b"%PDF-1.4\n%\xe2\xe3", "not an image: it is a PDF"),
        (b"PK\3\4" + bytes(30), "not an image: it is a ZIP archive"),
        (b"\x1f\x8b\x08" + bytes(30), "not an image: it is a gzip stream"),
        (b"a" + bytes(256) + b"ustar\0", "not an image: it is a tar archive"),
        (b"\0\5\x16\7\0\2\0\0", "not an image: it is an AppleDouble file, which macOS leaves beside a file"),
        (b"\0\0\0\x18ftypheic", "not an image: it is a HEIC image, a format that is not read"),
        (b"\0\0\0\x18ftypmp42", "not an image: it is a video or sound file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "not an image: it is a pointer of Git LFS .*"),
        (b"\1\2\3\4\5\6\7\x08\x09", "not an image: it is data of no known format, which begins with 01 02 03 04 .*"),
        (encoded(photo(64, 64), "JPEG")[:600], "cannot decode: (image file is t|T)runcated.*"),
        (encoded(photo(64, 64), "PNG")[:600], "cannot decode: image file is truncated.*"),
        (encoded(photo(64, 64), "PNG")[:30], "cannot decode: .*"),
        (encoded(photo(64, 64), "WEBP")[:50], "cannot decode: .*"),
        (encoded(photo(64, 64), "GIF")[:900], "cannot decode: .*"),
        (encoded(photo(64, 64), "TIFF")[:900], "cannot decode: .*"),
        (encoded(photo(64, 64), "PPM")[:900], "cannot decode: .*"),
        (b"\xff\xd8\xff" + bytes(100), "cannot decode: it is damaged at its beginning, .*"),
    ],
)
def test_bad_images_have_a_reason_that_is_one_line_and_the_same_in_every_run(data, reason):
    with pytest.raises(image.ImageError) as caught:
        image.decode(data, image.Resize(32))
    assert re.fullmatch(reason, str(caught.value)), caught.value
    assert " at 0x" not in str(caught.value)


ERRORS = [
    MemoryError(),
    RecursionError("deep"),
    struct.error("unpack"),
    KeyError(3),
    ValueError("a\nb"),
    OSError(5, "EIO"),
]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("where", ["open", "load"])
def test_whatever_a_plugin_raises_is_a_reason(error, where, monkeypatch):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(*((Image, "open", fails) if where == "open" else (pillow, "to_rgb", fails)))
    with pytest.raises(image.ImageError, match=r"^cannot decode: ") as caught:
        image.decode(encoded(RGB, "PNG"), image.Resize(16))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    monkeypatch.setattr(simplejpeg, "decode_jpeg", fails)
    if isinstance(error, MemoryError):
        with pytest.raises(image.ImageError, match="not enough memory"):
            image.decode(encoded(RGB, "JPEG"), image.Resize(16))


def chunk(kind, body):
    return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)


def tiff_of(tags, data):
    """A TIFF of one strip, little endian: tags {number: short}."""
    tags = {**tags, 259: 1, 273: 8 + 2 + 12 * (len(tags) + 4) + 4, 277: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def bombs():
    """Images of some bytes, or some kilobytes, that say they are large."""
    png = encoded(photo(16, 16), "PNG")
    gif, bmp, tiff = (encoded(photo(16, 16), kind) for kind in ("GIF", "BMP", "TIFF"))
    webp = encoded(photo(16, 16), "WEBP", save_all=True, append_images=[Image.fromarray(photo(16, 16, 1))])
    huge = (13_300).to_bytes(2, "little")
    tags = tiff
    for tag in (256, 257):
        entry = tags.index(struct.pack("<HH", tag, 4 if struct.pack("<HHI", tag, 4, 1) in tags else 3))
        tags = tags[: entry + 2] + struct.pack("<HII", 4, 1, 13_300) + tags[entry + 12 :]
    return {
        "PNG": png[:8] + chunk(b"IHDR", (13_300).to_bytes(4) * 2 + png[24:29]) + png[33:],
        "PNG beyond reason": png[:8] + chunk(b"IHDR", (2**31 - 1).to_bytes(4) * 2 + png[24:29]) + png[33:],
        "GIF": gif[:6] + huge * 2 + gif[10:],
        "BMP": bmp[:18] + (13_300).to_bytes(4, "little") * 2 + bmp[26:],
        "PPM": b"P6 13300 13300 255\n" + bytes(100),
        "TIFF": tags,
        "TIFF of one tile": tiff_of({256: 16, 257: 16, 258: 8, 262: 1, 322: 13_312, 323: 13_312}, bytes(99)),
        "WebP": webp[:24] + (6_000).to_bytes(3, "little") * 2 + webp[30:],
    }


@pytest.mark.parametrize("name", bombs())
def test_a_declared_size_whose_decoding_takes_gigabytes_is_not_decoded(name, monkeypatch):
    monkeypatch.setattr(pillow, "to_rgb", None)
    data = bombs()[name]
    with pytest.raises(image.ImageError, match=r"declares \d+ x \d+ pixels; at most"):
        image.decode(data, image.Resize(32))
    if name not in ("PNG beyond reason", "TIFF of one tile"):
        with pytest.raises(image.ImageError, match=r"is (13300 x 13300|6001 x 6001), not 16 x 16 pixels"):
            image.decode_exact(data, (16, 16))


def test_no_flipped_bit_of_a_png_gives_other_pixels():
    """Pillow leaves the checksums of pixels unchecked."""
    data = image.encode_png(RGB)
    for i in range(8, len(data)):
        flipped = data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :]
        try:
            assert np.array_equal(image.decode_exact(flipped), RGB), i
        except image.ImageError:
            continue


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_a_png_whose_text_unpacks_to_gigabytes_costs_nothing(kind):
    png = encoded(RGB, "PNG")
    body = (b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0") + zlib.compress(bytes(20 << 20))
    tracemalloc.start()
    try:
        image.decode(png[:33] + chunk(kind, body) + png[33:], image.Resize(16))
    except image.ImageError as e:
        assert "cannot decode: " in str(e)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


def test_pillows_settings_are_ours_while_we_decode_and_the_users_again_behind(monkeypatch):
    cut = encoded(photo(64, 64), "PNG")[:600]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(image.decode(encoded(RGB, "PNG"), image.Resize(64, "longest"))[0], RGB)
        with pytest.raises(image.ImageError, match="truncated"):
            image.decode(cut, image.Resize(32))
        # Transparency in bytes, which Pillow warns about; and one thread in it while another one comes and goes.
        palette = encoded(Image.fromarray(RGB).quantize(8), "PNG", transparency=bytes(range(8)))
        with pillow.pillow_settings:
            image.decode(palette, image.Resize(16))
            assert not ImageFile.LOAD_TRUNCATED_IMAGES
        with pytest.raises(UserWarning):
            warnings.warn("the user's own", stacklevel=1)
    assert ImageFile.LOAD_TRUNCATED_IMAGES and Image.MAX_IMAGE_PIXELS == 10


# --------------------------------------------------------------------------------------------------- right pixels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_ignored_in_every_format(orientation):
    """TIFF's plugin turns images on its own."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    keep = image.Resize(64, "longest")
    for data in (
        encoded(RGB, "PNG", exif=exif),
        encoded(RGB, "WEBP", lossless=True, exif=exif),
        encoded(RGB, "TIFF", tiffinfo={0x0112: orientation}),
        encoded(RGB, "TIFF", tiffinfo={0x0112: orientation}, compression="tiff_lzw"),
    ):
        pixels, size = image.decode(data, keep)
        assert size == (24, 16) and image.probe(data)[:2] == (24, 16)
        assert np.array_equal(pixels, RGB)
        assert np.array_equal(image.decode_exact(data, (24, 16)), RGB)


def grey_of(values):
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


def test_grey_of_many_bits_keeps_the_upper_eight():
    deep = np.random.default_rng(0).integers(0, 65536, (6, 10), np.uint16)
    twelve = deep >> 4
    packed = int("".join(f"{v:012b}" for v in twelve.ravel()), 2).to_bytes(twelve.size * 3 // 2)
    keep, upper = image.Resize(64, "longest"), deep >> 8
    big = b"P5 10 6 65535\n" + deep.astype(">u2").tobytes()
    cases = [
        (encoded(deep, "PNG"), upper),
        (encoded(deep, "TIFF"), upper),
        (encoded(deep, "TIFF", tiffinfo={262: 0}), 255 - upper),  # white is zero
        (big, upper),
        (b"P5 10 6 4095\n" + twelve.astype(">u2").tobytes(), upper),
        (tiff_of({256: 10, 257: 6, 258: 12, 262: 1, 278: 6}, packed), upper),
        (encoded(upper.astype(np.uint8), "TIFF", tiffinfo={262: 0}), upper),
    ]
    for i, (data, expected) in enumerate(cases):
        assert np.array_equal(image.decode(data, keep)[0], grey_of(expected)), i
    for values in (deep.astype(np.float32), deep.astype(np.int32)):
        with pytest.raises(image.ImageError, match="which value is white is not known"):
            image.decode(encoded(Image.fromarray(values), "TIFF"), keep)


def test_alpha_is_dropped_and_palettes_are_looked_up():
    rng, keep = np.random.default_rng(0), image.Resize(64, "longest")
    alpha = rng.integers(0, 256, RGB.shape[:2], np.uint8)
    picture, rgba = Image.fromarray(RGB), np.dstack([RGB, alpha])
    palette, bilevel = picture.quantize(16), picture.convert("1")
    looked_up = np.asarray(palette.convert("RGB"))
    grey_alpha = Image.merge("LA", (Image.fromarray(RGB[..., 0]), Image.fromarray(alpha)))
    cases = [
        (encoded(rgba, "PNG"), RGB),
        (encoded(rgba, "TIFF"), RGB),
        (encoded(rgba, "WEBP", lossless=True, exact=True), RGB),
        (encoded(grey_alpha, "PNG"), grey_of(RGB[..., 0])),
        (encoded(RGB, "PNG", transparency=tuple(RGB[0, 0].tolist())), RGB),
        (encoded(palette, "PNG"), looked_up),
        (encoded(palette, "PNG", transparency=bytes(range(0, 160, 10))), looked_up),
        (encoded(palette, "PNG", transparency=3), looked_up),
        (encoded(palette, "GIF", transparency=2), looked_up),
        (encoded(bilevel, "PNG"), grey_of(np.asarray(bilevel) * 255)),
        (encoded(bilevel, "TIFF", compression="group4"), grey_of(np.asarray(bilevel) * 255)),
        (encoded(picture.convert("CMYK"), "TIFF"), RGB),
    ]
    for i, (data, expected) in enumerate(cases):
        assert np.array_equal(image.decode(data, keep)[0], expected), i


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_many_pictures_the_first_is_taken(kind):
    colours = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(colours[0], kind, save_all=True, append_images=colours[1:], **options)
    assert (image.decode(data, image.Resize(8))[0] == (255, 0, 0)).all()


@pytest.mark.parametrize("shape", [(32, 32), (1, 1), (5, 64), (64, 3)])
def test_png_round_trip(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encode_png(pixels)))), pixels)


def test_jpeg_encoding_is_what_pillow_reads():
    pixels = photo(64, 64)
    data = image.encode_jpeg(pixels, 90)
    assert np.abs(np.asarray(Image.open(io.BytesIO(data))).astype(int) - pixels).mean() < 4
