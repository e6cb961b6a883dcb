"""The contact sheet: whole pixels, the classes and the page that were asked for."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import mlpdata
from mlpdata.augment.settings import Augmentation
from mlpdata.errors import Error
from mlpdata.inspect import preview
from mlpdata.inspect.samples import draw_samples, open_loader


def test_every_stored_pixel_is_a_square(shapes_dir, tmp_path):
    preview.preview(shapes_dir, tmp_path / "a.png", classes=["3"])
    loader = open_loader(shapes_dir, "train")
    stored = draw_samples(loader, [3], preview.COLUMNS, None, 0)[0].stored
    factor = preview.LEAST_CELL // loader.shape[0]
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    for column, pixels in enumerate(stored):
        left, side = preview.MARGIN + column * (loader.shape[0] * factor + 2), loader.shape[0] * factor
        cell = sheet[preview.HEADING : preview.HEADING + side, left : left + side]
        assert np.array_equal(cell, pixels.repeat(factor, 0).repeat(factor, 1))


def test_no_name_reaches_into_the_pictures(shapes_dir, monkeypatch):
    loader = open_loader(shapes_dir, "train")
    (short,) = draw_samples(loader, [3], preview.COLUMNS, None, 0)
    sheets = [
        np.asarray(preview._sheet([dataclasses.replace(short, name=name)], "")) for name in ("a", "W" * 99, "кошка 猫")
    ]
    for sheet in sheets:
        names, gap = sheet[preview.HEADING :, : preview.MARGIN - 6], sheet[:, preview.MARGIN - 6 : preview.MARGIN]
        assert (names < 128).any() and (gap == 255).all()
    assert preview._font().getlength("as stored") > preview._font().getlength("asstored") + 3  # words stand apart


def test_samples_are_of_their_class_and_none_comes_twice(shapes_dir):
    images, labels = mlpdata.load(shapes_dir, "train", batch_size=10).arrays()
    loader = open_loader(shapes_dir, "train")
    for sample in draw_samples(loader, [7, 2], 5, Augmentation(crop_scale=None, flip=False), 1):
        own = {pixels.tobytes() for pixels in images[labels == sample.label]}
        assert {pixels.tobytes() for pixels in sample.stored} <= own
        assert len({pixels.tobytes() for pixels in sample.stored}) == len(sample.stored) == 5
        assert np.array_equal(sample.stored, sample.augmented)  # nothing is changed where nothing is asked for


def test_pages_are_all_classes_in_their_order(shapes_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(preview, "ROWS", 4)
    drawn = []
    real = preview.draw_samples
    monkeypatch.setattr(preview, "draw_samples", lambda loader, classes, *rest: drawn.extend(classes) or
                        real(loader, classes, *rest))  # fmt: skip
    for page in (1, 2, 3):
        line = preview.preview(shapes_dir, tmp_path / "a.png", page=page)
        assert f"page {page} of 3" in line
    assert drawn == list(range(10))
    with pytest.raises(Error, match="there is no page 4: the split has 10 classes on 3 pages of 4"):
        preview.preview(shapes_dir, tmp_path / "b.png", page=4)
    with pytest.raises(Error, match="has no class"):
        preview.preview(shapes_dir, tmp_path / "b.png", classes=["nonsense"])
    assert not (tmp_path / "b.png").exists()
