"""The data sets: the only table of their names in the code base. A new one is an entry here and at most one source."""

from __future__ import annotations

import difflib
import glob
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlpdata.manifest import Error
from mlpdata.sources import ClassFilter, Source


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A file the authors ship."""

    name: str
    url: str | None = None
    num_bytes: int | None = None
    md5: str | None = None
    note: str = ""  # how to get it where the URL alone does not


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a name on the command line stands for."""

    name: str
    title: str
    num_classes: int | None = None  # None: the source tells
    samples: dict[str, int] = field(default_factory=dict)  # split -> official count
    res: int = 64  # pixels a side, unless asked for otherwise
    archives: tuple[Archive, ...] = ()
    open: Callable[..., Source]  # open(path, res=, seed=, class_filter=) -> Source; path is None where none is wanted
    wants_path: bool = True
    takes_filter: bool = False  # whether class filters apply
    has_real_labels: bool = False  # whether its val images have ReaL labels


IMAGE_NET = "https://image-net.org/download-images after logging in"


def _cifar(layout: str):
    def open_(path, **_):
        from mlpdata.sources import cifar

        return cifar.Cifar(path, getattr(cifar, layout))

    return open_


def _tinyimagenet(path, **_):
    from mlpdata.sources.tinyimagenet import TinyImageNet

    return TinyImageNet(path)


def _folder(path, *, class_filter, res, **_):
    from mlpdata.sources.folder import Folder

    return Folder(path, class_filter, res)


def _imagenet1k(path, *, class_filter, res, **_):
    from mlpdata.sources.detect import open_imagenet1k

    return open_imagenet1k(path, class_filter, res, _listings())


def _imagenet21k(path, *, class_filter, res, **_):
    from mlpdata.sources.detect import open_imagenet21k

    return open_imagenet21k(path, class_filter, res, _listings())


def _listings() -> Path:
    """Where what was learned about a compressed archive by reading it through is kept for the next run."""
    return download_folder() / "listings"


def _shapes(path, *, res, seed, **_):
    from mlpdata.sources.shapes import Shapes

    return Shapes(res, seed)


SPECS = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="cifar10",
            title="CIFAR-10",
            num_classes=10,
            samples={"train": 50_000, "val": 10_000},
            res=32,
            archives=(
                Archive(
                    name="cifar-10-python.tar.gz",
                    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    num_bytes=170_498_071,
                    md5="c58f30108f718f92721af3b95e74349a",
                ),
            ),
            open=_cifar("CIFAR10"),
        ),
        DatasetSpec(
            name="cifar100",
            title="CIFAR-100",
            num_classes=100,
            samples={"train": 50_000, "val": 10_000},
            res=32,
            archives=(
                Archive(
                    name="cifar-100-python.tar.gz",
                    url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    num_bytes=169_001_437,
                    md5="eb9058c3a382ffc7106e4002c42a8d85",
                ),
            ),
            open=_cifar("CIFAR100"),
        ),
        DatasetSpec(
            name="tinyimagenet",
            title="TinyImageNet",
            num_classes=200,
            samples={"train": 100_000, "val": 10_000},
            archives=(
                Archive(
                    name="tiny-imagenet-200.zip",
                    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    num_bytes=248_100_043,
                    md5="90528d7ca1a48142e341f4ef8d21d0de",
                ),
            ),
            open=_tinyimagenet,
        ),
        DatasetSpec(
            name="imagenet1k",
            title="ImageNet-1k",
            num_classes=1000,
            samples={"train": 1_281_167, "val": 50_000},
            archives=(
                Archive(
                    name="ILSVRC2012_img_train.tar",
                    num_bytes=147_897_477_120,
                    md5="1d675b47d978889d74fa0da5fadfb00e",
                    note=f"{IMAGE_NET}; put ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz beside it",
                ),
            ),
            open=_imagenet1k,
            takes_filter=True,
            has_real_labels=True,
        ),
        DatasetSpec(
            name="imagenet21k",
            title="ImageNet-21k",
            num_classes=21_841,
            samples={"train": 14_197_122},
            archives=(
                Archive(name="fall11_whole.tar", num_bytes=1_310_000_000_000, note=IMAGE_NET),
                Archive(name="winter21_whole.tar.gz", note=IMAGE_NET),
                Archive(name="imagenet21k_resized.tar.gz", note=IMAGE_NET),
            ),
            open=_imagenet21k,
            takes_filter=True,
        ),
        DatasetSpec(name="folder", title="Folder of class sub-folders", open=_folder, takes_filter=True),
        DatasetSpec(
            name="shapes",
            title="Shapes, made on the spot",
            num_classes=10,
            samples={"train": 20_000, "val": 2_000},
            open=_shapes,
            wants_path=False,
        ),
    )
}


def get(name: str) -> DatasetSpec:
    """The spec of a name. Raises Error with the nearest name for one that is not there."""
    if name not in SPECS:
        near = difflib.get_close_matches(name, SPECS, 1, 0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Error(f"no data set {name!r}{hint} (there are {', '.join(SPECS)})")
    return SPECS[name]


def download_folder() -> Path:
    """Where archives are looked for without --source: $MLPDATA_HOME, else the user's cache folder."""
    if home := os.environ.get("MLPDATA_HOME"):
        return Path(home)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlpdata"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlpdata"


def open_source(
    spec: DatasetSpec,
    given: str | None,
    *,
    res: int,
    seed: int,
    class_filter: ClassFilter = ClassFilter(),  # noqa: B008
) -> Source:
    """Open what `--source` names, or what lies in the download folder.

    given: a file, a directory that holds the official file, or a pattern of files. Raises Error that says what to get,
    and where to put it.
    """
    if class_filter and not spec.takes_filter:
        raise Error(
            f"{spec.name} takes no class filter: --min-class-size, --val-per-class and --classes are for others"
        )
    if not spec.wants_path and given:
        raise Error(f"{spec.name} is made on the spot and takes no --source")
    path = _locate(spec, given) if spec.wants_path else None
    return spec.open(path, res=res, seed=seed, class_filter=class_filter)


def _locate(spec: DatasetSpec, given: str | None) -> Path:
    if given and ("://" in given or given.startswith("hf:")):
        raise Error(f"cannot read {given}: this version reads local files; download it and pass its path as --source")
    if given:
        path = Path(given)
        if not path.exists() and not glob.glob(given):
            raise Error(f"no such file or directory: {given} (given as --source)")
        for archive in spec.archives:
            if path.is_dir() and (path / archive.name).exists():
                return path / archive.name
        return path
    if not spec.archives:
        raise Error(f"{spec.name} needs --source: the folder to convert")
    for archive in spec.archives:
        if (download_folder() / archive.name).exists():
            return download_folder() / archive.name
    first = spec.archives[0]
    facts = [f"{first.num_bytes:,} bytes"] if first.num_bytes else []
    facts += [f"MD5 {first.md5}"] if first.md5 else []
    said = f" ({', '.join(facts)})" if facts else ""
    others = f" (or {' or '.join(a.name for a in spec.archives[1:])})" if len(spec.archives) > 1 else ""
    raise Error(
        f"{spec.name} needs {first.name}{said}{others}: "
        f"get it from {first.url or first.note} and put it into {download_folder()}, or pass its path as --source"
    )


def table() -> str:
    """The data sets as `mlpdata list` prints them."""
    rows = [("NAME", "IMAGES", "CLASSES", "RAW AT 32 PX", "RAW AT 64 PX", "SOURCE")]
    for spec in SPECS.values():
        n = sum(spec.samples.values())
        images = ", ".join(f"{split} {count:,}" for split, count in spec.samples.items()) or "-"
        sizes = [f"{n * 3 * res * res / 1e6:,.0f} MB" if n else "-" for res in (32, 64)]
        source = "made on the spot" if not spec.wants_path else "--source DIRECTORY"
        if spec.archives:
            here = " (here)" if any((download_folder() / a.name).exists() for a in spec.archives) else ""
            source = f"{spec.archives[0].name}, {spec.archives[0].num_bytes / 1e6:,.0f} MB{here}"
        rows.append((spec.name, images, str(spec.num_classes or "-"), *sizes, source))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
