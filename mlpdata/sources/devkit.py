"""The labels of ILSVRC2012's val images, from the devkit beside them or from Kaggle's LOC_val_solution.csv.

The devkit holds a MATLAB matrix, which scipy parses in C: a damaged one can end the process, or keep it busy for ever.
So another process reads it, whose time and memory are bounded.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import posixpath
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from mlpdata import splits
from mlpdata.errors import Error, first_line, reading
from mlpdata.labels import WNID
from mlpdata.sources.keys import shown

DEVKIT, SOLUTION = "ILSVRC2012_devkit_t12.tar.gz", "LOC_val_solution.csv"
VAL_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.(?i:jpe?g)")
TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
MAX_DEVKIT_BYTES = 64 << 20  # unpacked; the real one has 7 MB
MAX_LIST_BYTES = 16 << 20  # the real lists have 0.2 and 2 MB
READ_META = """
import io, json, resource, sys
for kind, most in ((resource.RLIMIT_AS, 2 << 30), (resource.RLIMIT_CPU, 60)):
    try:
        resource.setrlimit(kind, (most, most))
    except (OSError, ValueError):
        pass
import numpy as np
from scipy.io import loadmat
synsets = loadmat(io.BytesIO(sys.stdin.buffer.read()), squeeze_me=True)["synsets"]
leaves = synsets[np.asarray(synsets["num_children"], int) == 0]
rows = [(int(i), str(w)[:80]) for i, w in zip(leaves["ILSVRC2012_ID"], leaves["WNID"], strict=True)]
print(json.dumps(rows[:100_000]))
"""  # RLIMIT_CPU counts seconds of work, whatever else the machine does; numpy and scipy alone map 0.3 GB
MAX_SECONDS = 600


@dataclass(frozen=True)
class Devkit:
    """What the devkit says of the val images."""

    wnids: list[str]  # of image number 1, 2, ...
    classes: list[str]  # all wnids, sorted


def read_devkit(path: Path) -> Devkit:
    """The devkit's labels of the val images, from its ground truth and meta.mat. Raises Error."""
    try:
        truth, meta = _members(path)
        rows = _read_meta(meta)
        wnid = {i: name for i, name in rows if WNID.fullmatch(name)}
        if len(wnid) < len(rows) or not rows:
            raise ValueError(
                f"{META} has {len(rows)} classes, of which {len(wnid)} have a number and a wnid of their own"
            )
        return Devkit([wnid[int(line)] for line in truth.split()], sorted(set(wnid.values())))
    except KeyError as e:
        raise Error(f"{path} is not the ILSVRC2012 devkit: it has no {e}; get it again") from None
    except Exception as e:  # damaged archives raise nearly anything
        raise Error(
            f"{path} is not the ILSVRC2012 devkit ({type(e).__name__}: {first_line(e)}); get it again"
        ) from None


def _members(path: Path) -> tuple[bytes, bytes]:
    """(ground truth, meta.mat) of a devkit, gzip or not. Raises KeyError, ValueError, OSError and tarfile's errors."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        data = (gzip.GzipFile(fileobj=file) if is_gzip else file).read(MAX_DEVKIT_BYTES + 1)
    if len(data) > MAX_DEVKIT_BYTES:
        raise ValueError(f"it has more than {MAX_DEVKIT_BYTES >> 20} MiB")
    content: dict[str, bytes] = {}
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            name = posixpath.basename(member.name)
            if name in (TRUTH, META) and (file := archive.extractfile(member)):
                if name in content or member.size > MAX_LIST_BYTES:
                    raise ValueError(f"{name} is there twice, or too large")
                content[name] = file.read()
    return content[TRUTH], content[META]


def _read_meta(meta: bytes) -> list[tuple[int, str]]:
    """(number, wnid) of every class in meta.mat."""
    environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    process = subprocess.run(
        [sys.executable, "-c", READ_META],
        input=meta,
        env=environ,
        capture_output=True,
        timeout=MAX_SECONDS,
        check=False,
    )
    if process.returncode:
        if process.returncode < 0:
            raise ValueError(f"{META} ends its reader")
        lines = process.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {process.returncode}"]
        raise ValueError(f"{META} cannot be read: {lines[-1]}")
    return [(i, name) for i, name in json.loads(process.stdout)]


def flat_val(path: Path) -> dict[str, dict[str, str]]:
    """{folder: {file: wnid}} of the folders of a directory that hold val images without class folders.

    Raises Error where no list says their labels, see `val_labels`.
    """
    with reading(f"the folder {path}"), os.scandir(path) as entries:
        folders = sorted(e.name for e in entries if splits.of_folder(e.name) == "val" and e.is_dir())
    folders = [name for name in folders if _is_flat(path / name)]
    return dict.fromkeys(folders, val_labels(path, path / folders[0])) if folders else {}


def val_labels(path: Path, images: Path) -> dict[str, str]:
    """{file: wnid} of the val images at `images`, from the devkit or Kaggle's list in `path`. Raises Error."""
    if (path / DEVKIT).is_file():
        wnids = enumerate(read_devkit(path / DEVKIT).wnids, 1)
        return {f"ILSVRC2012_val_{i:08d}.JPEG": wnid for i, wnid in wnids}
    if (path / SOLUTION).is_file():
        return _read_solution(path / SOLUTION)
    raise Error(f"{images} has images without class folders: put {DEVKIT} or {SOLUTION} into {path}, for their labels")


def _is_flat(folder: Path) -> bool:
    with reading(f"the folder {folder}"), os.scandir(folder) as entries:
        return any(VAL_NAME.fullmatch(e.name) for e in entries)


def _read_solution(path: Path) -> dict[str, str]:
    """{file: wnid} of lines `ILSVRC2012_val_00000001,n01440764 1 2 3 4 ...`, behind a line of headings."""
    wnids: dict[str, str] = {}
    with reading(path), open(path, "rb") as f:
        data = f.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise Error(f"{path} has more than {MAX_LIST_BYTES >> 20} MiB: it is no list of 50,000 images")
    for number, line in enumerate(data.decode("utf-8", "replace").split("\n")[1:], 2):
        if line.strip():
            name, _, boxes = line.strip().partition(",")
            file, wnid = f"{name}.JPEG", boxes.partition(" ")[0]
            if not VAL_NAME.fullmatch(file) or not WNID.fullmatch(wnid) or wnids.setdefault(file, wnid) != wnid:
                why = "is not an image and its wnid, or gives an image another one"
                raise Error(f"{path}: line {number} {why}: {shown(line[:80])}")
    return wnids
