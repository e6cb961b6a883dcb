"""What is installed on this machine: what mlpdata requires, what is optional, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import PIL
from packaging.requirements import Requirement

from mlpdata import image
from mlpdata.errors import printable_lines
from mlpdata.loader import jpeg_batch
from mlpdata.system.format import plural
from mlpdata.system.optional import OPTIONAL

BOTH_PILLOWS = (
    "pillow and pillow-simd are both installed and overwrite each other's files; keep one: "
    "pip uninstall -y pillow pillow-simd && pip install --no-deps pillow-simd"
)
NO_COMPILER = "none: augmentation on the CPU runs eagerly, slower (install g++ for torch.compile)"


def doctor(as_json: bool = False) -> tuple[str, bool]:
    """Returns (report, whether everything that is required works)."""
    machine = f"{platform.system()} {platform.machine()}, {plural(os.cpu_count() or 1, 'core')}"
    facts = {
        "python": f"{platform.python_version()} on {machine}",
        "device": _device(),
        "compiler": shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"),
        "jpeg": image.library_versions()["jpeg"],
        "resize": f"{image.library_versions()['resize']} (loaded from {Path(PIL.__file__).parent})",
        "jpeg batches": jpeg_batch.batch_decoder()[1],
        "required": {r.name: _version(r.name) for r in _requirements()},
        "optional": {name: _version(name) for name in OPTIONAL},
        "problems": list(_problems()),
    }
    return json.dumps(facts, indent=1) if as_json else _table(facts), not facts["problems"]


def _table(facts: dict[str, Any]) -> str:
    rows = [(name, text) for name, text in facts.items() if isinstance(text, str)]
    rows += [] if facts["compiler"] else [("compiler", NO_COMPILER)]
    rows += [("required", ", ".join(f"{name} {found or 'MISSING'}" for name, found in facts["required"].items()))]
    rows += [("optional", f"{name} {found}") for name, found in facts["optional"].items() if found]
    absent = {name: OPTIONAL[name] for name, found in facts["optional"].items() if not found}
    rows += [("optional", f"no {name}: for {what.purpose}: {what.install}") for name, what in absent.items()]
    rows += [("problem", problem) for problem in facts["problems"]] or [("well", "everything required is here")]
    return printable_lines(f"{name:<12} {text}" for name, text in rows)


def _device() -> str:
    if not importlib.util.find_spec("torch"):
        return "unknown without torch"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device; mlpdata runs on the CPU"


def _requirements() -> list[Requirement]:
    """What the installed package says it requires; nothing where the source tree is used without an installation."""
    try:
        every = map(Requirement, requires("mlpdata") or [])
    except PackageNotFoundError:
        return []
    return [r for r in every if r.marker is None or r.marker.evaluate({"extra": ""})]


def _problems():
    for requirement in _requirements():
        installed = _version(requirement.name)
        if installed is None and not (requirement.name == "pillow" and _version("pillow-simd")):
            yield f"{requirement.name} is required and not installed: pip install '{requirement}'"
        elif installed and not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name} {installed} is too old: pip install '{requirement}'"
    if _version("pillow") and _version("pillow-simd"):
        yield BOTH_PILLOWS


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
