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
BOTH_PILLOWS = (
    "pillow and pillow-simd are both installed and overwrite each other's files; keep one: "
    "pip uninstall -y pillow pillow-simd && pip install --no-deps pillow-simd"
)
NO_COMPILER = "no C++ compiler: augmentation on the CPU runs eagerly, slower (install g++ for torch.compile)"


def doctor() -> tuple[str, bool]:
    """What is installed, which image library is really loaded, what is missing. Returns (report, all well)."""
    versions = image.library_versions()
    rows = [
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"),
        ("jpeg", versions["jpeg"]),
        ("resize", f"{versions['resize']} (loaded from {Path(PIL.__file__).parent})"),
        ("jpeg batches", jpeg_batch.batch_decoder()[1]),
    ]
    has_both = bool(_version("pillow") and _version("pillow-simd"))
    if has_both:
        rows.append(("problem", BOTH_PILLOWS))
    for package, use in OPTIONAL.items():
        present = importlib.util.find_spec(package) is not None
        rows.append((package, _version(package) or "present" if present else f"not installed; for {use}"))
    if importlib.util.find_spec("torch"):
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device; the CPU will do"
        rows.append(("device", gpu))
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    rows.append(("compiler", compiler or NO_COMPILER))
    return "\n".join(f"{name:<12} {text}" for name, text in rows), not has_both


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
