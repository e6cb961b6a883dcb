"""Archives for the benchmarks, in the official layouts: real ones repeated, or a made one of a million tiny images.

    python tests/bench/make_archive.py photos fall11_whole.tar OUT.tar --images 4000
    python tests/bench/make_archive.py tiny tiny-imagenet-200.zip OUT.zip --images 100000
    python tests/bench/make_archive.py made OUT.tar --images 1000000 --tars 1000

Repeated images keep their bytes and get new names. Memory stays small: files are copied member by member.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from mlpdata import labels
from mlpdata.shards import tar

TINY_PIXELS = 32  # of the made images: about 900 bytes each
DIFFERENT = 2_000  # made images that differ; a prime stride keeps neighbours apart


def repeat_photos(source: Path, out: Path, images: int) -> int:
    """A tar of class tars (fall11, ILSVRC2012 train), again and again under other wnids, with at least `images`."""
    with tarfile.open(source) as outer:
        inner = [m for m in outer.getmembers() if m.name.endswith(".tar")]
        classes = {}
        for member in inner:
            with tarfile.open(fileobj=outer.extractfile(member)) as archive:
                classes[member.name] = [(m.name, archive.extractfile(m).read()) for m in archive if m.isfile()]
    rounds = -(-images // sum(map(len, classes.values())))
    unused = iter([name for name in labels.classes("fall11") if f"{name}.tar" not in classes])
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as outer:
        for r in range(rounds):
            for tar_name, files in classes.items():
                wnid = next(unused) if r else tar_name.removesuffix(".tar")
                body = io.BytesIO()
                with tarfile.open(fileobj=body, mode="w", format=tarfile.GNU_FORMAT) as archive:
                    for file, data in files:
                        _add(archive, f"{wnid}_{file.partition('_')[2]}", data)
                _add(outer, f"{wnid}.tar", body.getvalue())
    return rounds * sum(map(len, classes.values()))


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def repeat_tiny(source: Path, out: Path, images: int) -> int:
    """tiny-imagenet-200.zip with every labelled image several times, until train and val have at least `images`."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        pictures = [i for i in old.infolist() if i.filename.endswith(".JPEG") and "/test/" not in i.filename]
        rounds = -(-images // len(pictures))
        annotations = []
        for info in old.infolist():
            if info.is_dir():
                continue
            data = old.read(info)
            if info in pictures:
                stem, _, extension = info.filename.rpartition(".")
                for r in range(rounds):
                    new.writestr(f"{stem}{r:02d}.{extension}", data, info.compress_type)
            elif info.filename.endswith("val_annotations.txt"):
                for line in data.decode().splitlines():
                    file, tab, rest = line.partition("\t")
                    stem, _, extension = file.rpartition(".")
                    annotations += [f"{stem}{r:02d}.{extension}{tab}{rest}\n" for r in range(rounds)]
                new.writestr(info.filename, "".join(annotations), zipfile.ZIP_DEFLATED)
            else:
                new.writestr(info.filename, data, info.compress_type)
    return rounds * len(pictures)


def make(out: Path, images: int, tars: int) -> int:
    """A fall11 of `tars` class tars with `images` JPEGs of 32 px among them."""
    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(min(DIFFERENT, images)):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        data = io.BytesIO()
        small.resize((TINY_PIXELS, TINY_PIXELS), Image.Resampling.BICUBIC).save(data, "JPEG", quality=75)
        pictures.append(np.frombuffer(data.getvalue(), np.uint8))
    names = labels.classes("fall11")[:tars]
    if len(names) < tars:
        raise SystemExit(f"fall11 has {len(names)} classes, not {tars}")
    per_tar = -(-images // tars)
    with open(out, "wb") as f:
        for t, wnid in enumerate(names):
            chosen = [pictures[(t * per_tar + i) * 7919 % len(pictures)] for i in range(per_tar)]
            heads = tar.headers([f"{wnid}_{i}.JPEG" for i in range(per_tar)], np.array([len(p) for p in chosen]))
            pieces = []
            for head, picture in zip(heads, chosen, strict=True):
                pieces += [head.tobytes(), picture.tobytes(), bytes(-len(picture) % tar.BLOCK)]
            body = b"".join(pieces) + tar.END
            f.write(tar.headers([f"{wnid}.tar"], np.array([len(body)])).tobytes() + body)
        f.write(tar.END)
    return per_tar * tars


def main() -> None:
    parser = harness.parser(__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind in ("photos", "tiny"):
        command = kinds.add_parser(kind)
        command.add_argument("source", type=Path)
        command.add_argument("out", type=Path)
        command.add_argument("--images", type=int, required=True, help="at least so many")
    command = kinds.add_parser("made")
    command.add_argument("out", type=Path)
    command.add_argument("--images", type=int, default=1_000_000)
    command.add_argument("--tars", type=int, default=1_000)
    args = parser.parse_args()
    if args.kind == "made":
        n = make(args.out, args.images, args.tars)
    else:
        n = {"photos": repeat_photos, "tiny": repeat_tiny}[args.kind](args.source, args.out, args.images)
    print(f"{n:,} images, {args.out.stat().st_size:,} bytes in {args.out}")


if __name__ == "__main__":
    main()
