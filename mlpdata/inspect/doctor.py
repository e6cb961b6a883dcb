"""What is installed on this machine, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import PIL

from mlpdata import image
from mlpdata.loader import jpeg_batch

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
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return found or "no C++ compiler: augmentation on the CPU runs eagerly, slower (install g++ for torch.compile)"
