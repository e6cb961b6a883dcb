"""Looking at shard directories and at the installation: info, preview, doctor."""

from __future__ import annotations

import importlib.util
import os
import platform
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageDraw, ImageFont

from mlpdata import image
from mlpdata.errors import Error
from mlpdata.loader import jpeg_batch
from mlpdata.shards.manifest import Manifest, json_text, printable, read_classes, short_names, shown

SHEET_ROWS, SHEET_COLUMNS = 10, 8

# ----------------------------------------------------------------------------------------------------------- info


def info(root: Path, as_json: bool = False) -> str:
    """What a shard directory holds, for people or (the whole manifest) for programs."""
    manifest = Manifest.load(root)
    manifest.check_sizes(root)
    if as_json:
        return json_text(asdict(manifest), indent=1).rstrip()
    size = sum(f["bytes"] for f in manifest.files.values())
    rows = [
        ("data set", f"{manifest.dataset} ({manifest.release})"),
        ("classes", f"{manifest.num_classes:,}: {_some_classes(root, manifest)}"),
        ("resolution", f"{manifest.res} px, {manifest.resize}, {manifest.filter} filter"),
        (
            "formats",
            ", ".join(f"{f} ({c})" for f, c in (("beton", manifest.beton_codec), ("tar", manifest.tar_codec)) if c),
        ),
        ("size", f"{size / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("mean, std", f"{_numbers(manifest.mean)}, {_numbers(manifest.std)}"),
        ("made by", manifest.command),
        ("with", ", ".join(manifest.image_library.values())),
    ]
    if manifest.fidelity:
        f = manifest.fidelity
        rows.append(
            ("fidelity", f"{f['psnr_db']} dB, largest difference {f['max_diff']}, on {f['num_samples']} images")
        )
    for name, split in manifest.splits.items():
        counts = np.array(split.class_counts)
        shards = f", {len(split.tars)} tar shards" if split.tars else ""
        least, most = counts.min(), counts.max()
        per_class = f"{least:,} to {most:,} a class" if least < most else f"{most:,} a class"
        rows.append(
            (f"split {name}", f"{split.num_samples:,} samples, {per_class}, {split.num_skipped:,} skipped{shards}")
        )
    return "\n".join(f"{name:<12} {printable(value)}" for name, value in rows)


def _some_classes(root: Path, manifest: Manifest) -> str:
    names = [shown(readable) for _, readable in read_classes(root, manifest)]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def _numbers(values) -> str:
    return "(" + ", ".join(f"{v:.4f}" for v in values) + ")"


# -------------------------------------------------------------------------------------------------------- preview


def preview(root: Path, out: Path, split: str = "train", augment: object | None = None, seed: int = 0) -> str:
    """Draw a contact sheet to a PNG: a row a class, some samples of each, and beside them their augmented versions.

    augment: a recipe's `augment` section, its fields named as Augment's, or None. Returns the line to print.
    Raises Error for a bad directory.
    """
    import torch

    from mlpdata.augment.augment import Augment, Batch
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


# --------------------------------------------------------------------------------------------------------- doctor

OPTIONAL = {
    "torch": "loading and training",
    "webdataset": "reading our tars elsewhere",
    "datasets": "the Hub",
    "rapidgzip": "large gzip archives",
    "ffcv": "reading betons with FFCV itself: pip install 'mlpdata[ffcv]' (needs OpenCV and libturbojpeg headers)",
    "timm": "other models on our shards: pip install timm",
    "ray": "convert --engine ray: pip install 'mlpdata[ray]'",
    "s3fs": "s3:// directories: pip install 'mlpdata[remote]'",
    "tensorboard": "event files of training runs: pip install 'mlpdata[tb]'",
}


def doctor() -> tuple[str, bool]:
    """What is installed, which image library is really loaded, what is missing. Returns (report, all well)."""
    lines, well = [], True
    lines.append(
        f"python       {platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    )
    versions = image.library_versions()
    lines.append(f"jpeg         {versions['jpeg']}")
    lines.append(f"resize       {versions['resize']} (loaded from {Path(PIL.__file__).parent})")
    lines.append(f"jpeg batches {jpeg_batch.batch_decoder()[1]}")
    both = _installed("pillow") and _installed("pillow-simd")
    if both:
        well = False
        lines.append(
            "problem      pillow and pillow-simd are both installed and overwrite each other's files; keep one: "
            "pip uninstall -y pillow pillow-simd && pip install --no-deps pillow-simd"
        )
    for package, use in OPTIONAL.items():
        found = _installed(package)
        present = importlib.util.find_spec(package) is not None
        lines.append(f"{package:<12} {found or 'present' if present else f'not installed; for {use}'}")
    if importlib.util.find_spec("torch"):
        import torch

        device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device; the CPU will do"
        lines.append(f"device       {device}")
    lines.append(f"compiler     {_compiler()}")
    return "\n".join(lines), well


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _compiler() -> str:
    import shutil

    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return found or "no C++ compiler: augmentation on the CPU runs eagerly, slower (install g++ for torch.compile)"
