"""Disk space: how many bytes a conversion writes, how many it needs at its largest, and whether the disk has them."""

from __future__ import annotations

import shutil

from mlpdata.convert.workdir import WorkDir
from mlpdata.errors import Error
from mlpdata.system.format import format_bytes

DURABLE_FROM_BYTES = 2 << 30  # smaller outputs are not synced part by part: a power cut costs them seconds


def is_large(num_bytes: int) -> bool:
    """Whether an output of so many bytes is synced part by part, and its parts truncated as they are used."""
    return num_bytes > DURABLE_FROM_BYTES


def estimated_bytes(n: int, res: int, beton_codec: str | None, tar_codec: str | None) -> tuple[int, int]:
    """About how many bytes the beton and the tars will have, from mean sizes of photographs at 32 and 64 pixels.

    >>> estimated_bytes(1000, 32, "raw", "jpg")
    (3072000, 3207600)
    """
    area = res * res
    payload = {"raw": 3 * area, "jpg": 0.4 * area + 750, "png": 2.15 * area + 650}
    beton_bytes = n * payload[beton_codec] if beton_codec else 0
    tar_bytes = n * (payload[tar_codec] + 4 * 512) if tar_codec else 0
    return int(beton_bytes), int(tar_bytes)


def peak_disk_bytes(num_bytes: int) -> int:
    """How much of the disk the work takes at its largest moment, for an output of so many bytes."""
    return int(num_bytes * (1.15 if is_large(num_bytes) else 2))


def check_space(work: WorkDir, needed: int) -> None:
    """Raise Error where the disk cannot hold `needed` bytes. What the work takes of it already counts as free."""
    root = work.root.absolute()
    free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free
    free += work.num_bytes()
    if needed > free:
        raise Error(
            f"no space for {work.root}: at its largest the work takes about {format_bytes(needed)}, "
            f"{format_bytes(free)} are free or in use by it already; the same command goes on when there is more"
        )
