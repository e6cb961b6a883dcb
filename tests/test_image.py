import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from mlpdata import image


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


@pytest.mark.parametrize("rule", image.RESIZES)
@pytest.mark.parametrize("filter_", image.FILTERS)
def test_resize_equals_pillow_on_the_exact_decode(rule, filter_):
    pixels = photo(100, 60)
    resize = image.Resize(32, rule, filter_)
    seen, source = image.decode(encoded(pixels, "PNG"), resize)
    box, size = {
        "squash": ((0, 0, 100, 60), (32, 32)),
        "crop": ((20, 0, 80, 60), (32, 32)),
        "longest": ((0, 0, 100, 60), (32, 19)),
    }[rule]
    expected = Image.fromarray(pixels).resize(size, image.FILTERS[filter_], box=box)
    assert source == (100, 60)
    assert np.array_equal(seen, np.asarray(expected))


@pytest.mark.parametrize("rule", image.RESIZES)
@pytest.mark.parametrize("filter_", image.FILTERS)
def test_scaled_decode_is_close_to_the_exact_one(rule, filter_):
    data = encoded(photo(500, 375), "JPEG", quality=92)
    resize = image.Resize(64, rule, filter_)
    seen, source = image.decode(data, resize)
    assert source == (500, 375)
    squared, largest = image.squared_error(data, seen, resize)
    psnr = 10 * np.log10(255**2 / (squared / seen.size))
    assert psnr > 35 and largest < 60


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
    seen = image.area_mean(pixels, box, size)
    assert seen.dtype == np.uint8 and seen.shape == (height, width, 3)
    # Rounding the result takes 0.5, and weights in 256ths of some four pixels each way up to 2 of 255.
    assert np.abs(seen - expected).max() < 2 and np.abs(seen - expected).mean() < 0.5
    # Whole numbers all the way: other orders of addition give the same.
    exact = [np.zeros((m, n), np.int64) for n, m in ((h, height), (w, width))]
    for whole, (n, start, stop, m) in zip(
        exact, ((h, box[1], box[3], height), (w, box[0], box[2], width)), strict=True
    ):
        for first, a, b, band in image._bands(n, start, stop, m, 1):
            whole[first : first + image.BAND, a:b] = band
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
    image.area_mean(np.zeros((900, 1200, 3), np.uint8), (0, 0, 1200, 900), (300, 400))
    assert 1 << 16 < max(sizes) <= 1 << 18


def test_area_mean_keeps_what_has_one_colour():
    for value in (0, 1, 127, 254, 255):
        seen = image.area_mean(np.full((97, 131, 3), value, np.uint8), (0, 0, 131, 97), (64, 64))
        assert (seen == value).all()


@pytest.mark.parametrize("rule", image.RESIZES)
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


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image: it is text"),
        (encoded(photo(64, 64), "JPEG")[:600], "cannot decode"),
        (encoded(photo(64, 64), "PNG")[:600], "cannot decode"),
        (b"\xff\xd8\xff" + bytes(100), "cannot decode"),
    ],
)
def test_bad_images_have_a_reason(data, reason):
    with pytest.raises(image.ImageError, match=reason) as caught:
        image.decode(data, image.Resize(32))
    assert "\n" not in str(caught.value)


def test_a_declared_size_beyond_reason_is_not_decoded():
    head = encoded(photo(16, 16), "PNG")
    bomb = head[:16] + (50_000).to_bytes(4, "big") * 2 + head[24:]
    with pytest.raises(image.ImageError, match=r"50000 x 50000|decode"):
        image.decode(bomb, image.Resize(32))


@pytest.mark.parametrize("shape", [(32, 32), (1, 1), (5, 64), (64, 3)])
def test_png_round_trip(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encode_png(pixels)))), pixels)


def test_jpeg_encoding_is_what_pillow_reads():
    pixels = photo(64, 64)
    data = image.encode_jpeg(pixels, 90)
    assert np.abs(np.asarray(Image.open(io.BytesIO(data))).astype(int) - pixels).mean() < 4
