"""Listing an archive of classes, plain or gzip, against Python's tarfile on the same file, with interleaved repeats.

    python tests/bench/listing.py winter21_whole.tar.gz
    python tests/bench/listing.py fall11_whole.tar

- ours: all that is done before the first image is converted: every class found, its images counted or estimated, and of
  a gzip stream the checksum verified and the index made for reading at offsets
- peer: `tarfile` naming the members of the outer tar, through `gzip` where it is packed; it counts no image

Prints one JSON row; a plain tar takes us one larger read a class, to see how large images are. `again_s` is our second
opening of the same file, from what the first left in the cache.
"""

from __future__ import annotations

import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import harness

from mlpdata.sources.imagenet import ImageNetTars


def ours(path: Path, cache: Path) -> tuple[float, ImageNetTars]:
    start = time.perf_counter()
    source = ImageNetTars(path, cache=cache)
    source.units()
    return time.perf_counter() - start, source


def peer(path: Path) -> float:
    start = time.perf_counter()
    with tarfile.open(path) as archive:
        for member in archive:
            member.name  # noqa: B018
            archive.members = []  # it keeps them all
    return time.perf_counter() - start


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    mine, theirs, again = [], [], []
    for _ in range(args.repeats):
        theirs.append(peer(args.archive))
        with tempfile.TemporaryDirectory() as cache:
            seconds, source = ours(args.archive, Path(cache))
            mine.append(seconds)
            again.append(ours(args.archive, Path(cache))[0])
            kept = sum(p.stat().st_size for p in Path(cache).iterdir())
    size = args.archive.stat().st_size
    row = {
        "bench": "listing",
        "archive_bytes": size,
        "classes": len(source.classes),
        "images": sum(unit.num_samples for unit in source.units()),
        **harness.machine("rapidgzip"),
    }
    for name, seconds in (("ours", mine), ("tarfile", theirs), ("again", again)):
        row[f"{name}_s"] = harness.spread(seconds, 4)
    row["ours_mb_per_s"] = round(size / statistics.median(mine) / 1e6)
    row["kept_bytes_per_gb"] = round(kept / size * 1e9)
    row["ratio"] = round(statistics.median(theirs) / statistics.median(mine), 2)
    harness.report(row)


if __name__ == "__main__":
    main()
