"""A contact sheet of a shard directory: some samples of some classes, before and after augmentation."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlpdata.augment.settings import Augmentation
from mlpdata.errors import Error
from mlpdata.shards.classes import read_classes, short_names

SHEET_ROWS, SHEET_COLUMNS = 10, 8


def preview(root: Path, out: Path, split: str = "train", augment: Augmentation | None = None, seed: int = 0) -> str:
    """Draw a contact sheet to a PNG: a row a class, some samples of each, and beside them their augmented versions.

    augment: a recipe's `augment` section, its fields named as Augment's, or None. Returns the line to print.
    Raises Error for a bad directory.
    """
    import torch

    from mlpdata.augment.augment import Augment
    from mlpdata.augment.batch import Batch
    from mlpdata.loader.loader import load

    if out.suffix.lower() not in ("", ".png"):
        raise Error(f"the contact sheet is a PNG: call it {out.with_suffix('.png')}, not {out}")
    loader = load(root, split, batch_size=1, shuffle=False, tier="stream")
    rng = np.random.default_rng(seed)
    present = np.unique(loader.labels)
    classes = np.sort(rng.permutation(present)[:SHEET_ROWS])
    ids = np.stack([rng.choice(np.flatnonzero(loader.labels == c), SHEET_COLUMNS) for c in classes])
    images = loader.read(ids.reshape(-1))
    blocks = [images]
    if augment is not None:
        shared = {f.name for f in fields(augment)} & {f.name for f in fields(Augment)} - {"compile", "mean", "std"}
        visible = Augment(**{name: getattr(augment, name) for name in shared}, compile=False)
        flat = torch.from_numpy(ids.reshape(-1))
        batch = Batch(torch.from_numpy(images), torch.from_numpy(loader.labels[ids.reshape(-1)]), flat)
        after = visible.apply(batch, epoch=0, seed=seed).images
        blocks.append((after.permute(0, 2, 3, 1) * 255).round().clamp(0, 255).byte().numpy())
    names = [str(c) for c in range(loader.num_classes)]  # of what is no shard directory
    if loader.manifest is not None:
        names = short_names(read_classes(loader.root, loader.manifest))
    sheet = _sheet(blocks, [names[c] for c in classes])
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        sheet.save(out, "PNG")
    except OSError as e:
        raise Error(f"cannot write {out}: {e.strerror or e}") from None
    what = "stored left, augmented right" if augment is not None else "as stored"
    return f"{out}: {len(classes)} classes of split {loader.split}, {SHEET_COLUMNS} samples each, {what}"


def _sheet(blocks: list[np.ndarray], names: list[str]) -> Image.Image:
    """Blocks of (rows * columns, H, W, 3) uint8 side by side, with a name left of each row."""
    cell, gap, margin = 66, 12, 130
    width = margin + len(blocks) * (SHEET_COLUMNS * cell + gap)
    sheet = Image.new("RGB", (width, len(names) * cell + gap), "white")
    draw = ImageDraw.Draw(sheet)
    if isinstance(draw.getfont(), ImageFont.ImageFont):  # that of a Pillow without FreeType knows Latin-1 only
        names = [name.encode("latin-1", "replace").decode("latin-1") for name in names]
    for row, name in enumerate(names):
        draw.text((6, row * cell + cell // 2), name[:20], fill="black")
        for k, block in enumerate(blocks):
            for column in range(SHEET_COLUMNS):
                picture = Image.fromarray(block[row * SHEET_COLUMNS + column])
                picture = picture.resize((cell - 2, cell - 2), Image.Resampling.NEAREST)
                sheet.paste(picture, (margin + k * (SHEET_COLUMNS * cell + gap) + column * cell, gap // 2 + row * cell))
    return sheet
