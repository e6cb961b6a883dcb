"""A contact sheet of a shard directory: some samples of some classes, before and after augmentation."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlpdata.augment.settings import Augmentation
from mlpdata.errors import Error
from mlpdata.inspect.samples import ClassSamples, draw_samples, open_loader
from mlpdata.loader.loader import Loader
from mlpdata.loader.subset import class_numbers
from mlpdata.shards.classes import read_classes
from mlpdata.system.files import check_output, make_folder
from mlpdata.system.format import plural

ROWS, COLUMNS = 10, 8
LEAST_CELL = 64  # pixels a side; smaller images are enlarged by a whole factor, so that every pixel is a square
GAP, MARGIN, HEADING = 12, 150, 52
FONT_SIZE = 13


def preview(
    root: Path,
    out: Path,
    split: str = "train",
    augment: Augmentation | None = None,
    seed: int = 0,
    classes: Sequence[str] = (),
    page: int | None = None,
) -> str:
    """Draw a contact sheet to a PNG: a row a class, some samples of each, and beside them their augmented versions.

    augment: what to show beside the stored samples. classes: numbers, or names in the source; (): some at random, or
    with a page the classes of that page (from 1) in label order. Returns the line to print. Raises Error for a bad
    directory, a class or page that is not there, and a file that is no PNG.
    """
    if out.suffix.lower() not in ("", ".png"):
        raise Error(f"the contact sheet is a PNG: call it {out.with_suffix('.png')}, not {out}")
    check_output(out)
    loader = open_loader(root, split)
    numbers, which = _choose(loader, classes, page, seed)
    samples = draw_samples(loader, numbers, COLUMNS, augment, seed)
    sheet = _sheet(samples, f"{_title(loader)}{which}")
    try:
        make_folder(out.parent)
        sheet.save(out, "PNG")
    except OSError as e:
        raise Error(f"cannot write {out}: {e.strerror or e}") from None
    what = "stored left, augmented right" if augment is not None else "as stored"
    shown = plural(len(samples), "class")
    return f"{out}: {shown} of split {loader.split}{which}, {COLUMNS} samples each at most, {what}"


def _choose(loader: Loader, classes: Sequence[str], page: int | None, seed: int) -> tuple[list[int], str]:
    """(label numbers, what to say of the choice)."""
    if classes:
        names = [name for name, _ in read_classes(loader.root, loader.manifest)] if loader.manifest else []
        wanted = [int(c) if c.isdecimal() and c not in names else c for c in classes]
        numbers = class_numbers(wanted, loader.num_classes, lambda: names, loader.root)
    else:
        numbers = np.unique(loader.labels).tolist()
        if page is None:
            return sorted(np.random.default_rng(seed).permutation(numbers)[:ROWS].tolist()), ""
    num_pages, page = -(-len(numbers) // ROWS), page or 1
    if page > num_pages:
        on_pages = f"{plural(len(numbers), 'class')} on {plural(num_pages, 'page')}"
        raise Error(f"there is no page {page}: the split has {on_pages} of {ROWS}")
    return numbers[(page - 1) * ROWS : page * ROWS], f", page {page} of {num_pages}" if num_pages > 1 else ""


def _title(loader: Loader) -> str:
    name = loader.manifest.dataset if loader.manifest else loader.root.name
    return (
        f"{name}, split {loader.split}: {plural(loader.num_samples, 'image')} of "
        f"{plural(loader.num_classes, 'class')} at {loader.shape[0]} px"
    )


def _sheet(samples: list[ClassSamples], heading: str) -> Image.Image:
    """A row of pictures for each class, its name on the left, under a heading and the titles of the columns."""
    augmented = [s.augmented for s in samples if s.augmented is not None]
    blocks = [("as stored", [s.stored for s in samples])]
    blocks += [("augmented, as training sees them", augmented)] if augmented else []
    cells = [_enlarged(rows[0][0]).width + 2 if rows else LEAST_CELL for _, rows in blocks]
    lefts = MARGIN + np.cumsum([0, *(COLUMNS * cell + GAP for cell in cells)])
    sheet = Image.new("RGB", (int(lefts[-1]), HEADING + len(samples) * max(cells) + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = _font()

    def write(x: int, y: int, text: str, width: float = np.inf) -> None:
        if isinstance(font, ImageFont.ImageFont):  # that of a Pillow without FreeType knows Latin-1 only
            text = text.encode("latin-1", "replace").decode("latin-1")
        while font.getlength(text) > width:
            text = f"{text.removesuffix('...')[:-1]}..."
        draw.text((x, y), text, fill="black", font=font)

    write(6, 6, heading)
    for (title, rows), cell, left in zip(blocks, cells, lefts.tolist(), strict=False):
        write(left, 30, title)
        for row, pictures in enumerate(rows):
            for column, picture in enumerate(pictures):
                sheet.paste(_enlarged(picture), (left + column * cell, HEADING + row * max(cells)))
    for row, sample in enumerate(samples):
        write(6, HEADING + row * max(cells) + max(cells) // 2 - 8, sample.name[:40], MARGIN - 12)
    return sheet


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, which has the letters of most languages; Pillow's own where that cannot be had."""
    found = importlib.util.find_spec("matplotlib")  # not imported, which would take longer than the sheet
    folders = (found.submodule_search_locations if found else None) or ["."]
    try:
        return ImageFont.truetype(str(Path(folders[0], "mpl-data", "fonts", "ttf", "DejaVuSans.ttf")), FONT_SIZE)
    except (ImportError, OSError):
        return ImageFont.load_default()


def _enlarged(picture: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3) enlarged by a whole factor to at least LEAST_CELL pixels or so, each pixel a square."""
    height, width = picture.shape[:2]
    factor = max(1, round(LEAST_CELL / max(height, width)))
    return Image.fromarray(picture).resize((width * factor, height * factor), Image.Resampling.NEAREST)
