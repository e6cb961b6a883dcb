"""The data sets: the only table of their names. A new one is an entry here and at most one module in `sources/`."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlpdata import labels
from mlpdata.errors import Error, UsageError
from mlpdata.fetch import http, hub
from mlpdata.fetch.download import fetch
from mlpdata.fetch.official import ACCOUNT, Archive, download_folder, fetch_url, how_to_get
from mlpdata.shards.manifest import is_shard_directory
from mlpdata.sources import ClassFilter, Source
from mlpdata.sources.files import matching
from mlpdata.sources.location import without_folders


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """What a name on the command line stands for."""

    name: str
    title: str
    num_classes: int | None = None  # None: the source tells
    samples: dict[str, int] = field(default_factory=dict)  # split -> official count
    res: int = 64  # pixels a side, unless asked for otherwise
    native_res: int | None = None  # pixels a side of every original; None: they differ, or the source tells
    archives: tuple[Archive, ...] = ()
    open: Callable[..., Source]  # see open_source; path is None where none is wanted
    wants_path: bool = True
    takes_filter: bool = False  # whether class filters apply
    class_filter: ClassFilter = field(default_factory=ClassFilter)  # its sizes apply where none are asked for
    has_real_labels: bool = False  # whether its val images have ReaL labels
    reads_parquet: bool = True  # whether a folder or repository of parquet files may stand for it
    takes_columns: bool = False  # whether `open` takes image_column and label_column
    reads_urls: bool = False  # whether `open` takes the URL of an archive, to read it in place
    repository: str | None = None  # a copy on the Hugging Face Hub
    source_hint: str = "DIRECTORY"  # what --source wants where there are no archives
    hints: Callable[[], dict] = dict  # what is known of that copy: fields of sources.parquet.ParquetHints


ILSVRC = "https://image-net.org/data/ILSVRC/2012/"
REAL = "https://raw.githubusercontent.com/google-research/reassessed-imagenet/master/real.json"


def _cifar(number: int, label: str, num_bytes: int, md5: str) -> DatasetSpec:
    """CIFAR-10 or CIFAR-100. label: the column of its labels on the Hub."""

    def open_(path, **_):
        from mlpdata.sources import cifar

        return cifar.Cifar(path, getattr(cifar, f"CIFAR{number}"))

    def hints():
        from mlpdata.sources import cifar

        return {"label": label, "place": functools.partial(cifar.key_and_origin, getattr(cifar, f"CIFAR{number}"))}

    file = f"cifar-{number}-python.tar.gz"
    mirrors = (f"https://dataset.bj.bcebos.com/cifar/{file}",)
    return DatasetSpec(
        name=f"cifar{number}",
        title=f"CIFAR-{number}",
        num_classes=number,
        samples={"train": 50_000, "val": 10_000},
        res=32, native_res=32,
        archives=(
            Archive(name=file, url=f"https://www.cs.toronto.edu/~kriz/{file}", mirrors=mirrors, num_bytes=num_bytes,
                    md5=md5),
        ),
        open=open_,
        repository=f"uoft-cs/cifar{number}",
        hints=hints,
    )  # fmt: skip


def _stl10(path, **_):
    from mlpdata.sources.stl10 import Stl10

    return Stl10(path)


def _tinyimagenet(path, *, res, splits, **_):
    from mlpdata.sources import tinyimagenet

    if path.is_dir():
        return tinyimagenet.extracted(path, res, splits)
    return tinyimagenet.TinyImageNet(path)


def _folder(path, *, class_filter, res, splits, **_):
    from mlpdata.sources.folder import Folder

    return Folder(path, class_filter, res, only=splits)


def _imagenet(opener: str):
    def open_(path, *, class_filter, res, splits, **_):
        from mlpdata.sources import imagenet_detect

        # What was learned about a compressed archive by reading it through is kept there for the next run.
        listings = download_folder() / "listings"
        return getattr(imagenet_detect, opener)(path, class_filter, res, listings, splits)

    return open_


def _hub(path, *, class_filter, res, **_):
    from mlpdata.sources import webdataset

    if tars := webdataset.find(path):
        return webdataset.WebDataset(path, tars, class_filter, res, ())
    hint = ""
    if isinstance(path, Path) and (path / "dataset_dict.json").is_file():
        hint = "; `save_to_disk` wrote it: make parquet of each split, load_from_disk(...)[SPLIT].to_parquet(FILE)"
    elif isinstance(path, Path) and path.is_dir() and any(path.rglob("*.arrow")):
        hint = "; it is a cache of the `datasets` library, which reads its Arrow files alone: pass hf:OWNER/NAME"
    raise Error(f"{path} holds neither parquet files nor WebDataset tars of images{hint}")


def _beton(path, *, class_filter, res, image_column, label_column, **_):
    from mlpdata.derive.beton_source import BetonSource

    return BetonSource(path, class_filter, res, image_column, label_column)


def _wds(path, *, class_filter, res, image_column, label_column, **_):
    from mlpdata.sources import webdataset

    return webdataset.open_tars(path, class_filter, res, image_column, label_column)


def _shapes(path, *, res, seed, **_):
    from mlpdata.sources.shapes import Shapes

    return Shapes(res, seed)


SPECS = {
    spec.name: spec
    for spec in (
        _cifar(10, "label", 170_498_071, "c58f30108f718f92721af3b95e74349a"),
        _cifar(100, "fine_label", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
        DatasetSpec(
            name="tinyimagenet",
            title="TinyImageNet",
            num_classes=200,
            samples={"train": 100_000, "val": 10_000}, native_res=64,
            archives=(
                Archive(name="tiny-imagenet-200.zip", url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                        num_bytes=248_100_043, md5="90528d7ca1a48142e341f4ef8d21d0de"),
            ),
            open=_tinyimagenet,
            repository="zh-plus/tiny-imagenet",
        ),
        DatasetSpec(
            name="stl10",
            title="STL-10",
            num_classes=10,
            samples={"train": 5_000, "val": 8_000}, native_res=96,
            archives=(
                Archive(name="stl10_binary.tar.gz",
                        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", num_bytes=2_640_397_119,
                        md5="91f7769df0f17e558f3565bffb0c7dfb"),
            ),
            open=_stl10,
        ),
        DatasetSpec(
            name="imagenet1k",
            title="ImageNet-1k",
            num_classes=1000,
            samples={"train": 1_281_167, "val": 50_000},
            archives=(
                Archive(
                    name="ILSVRC2012_img_train.tar",
                    url=f"{ILSVRC}ILSVRC2012_img_train.tar",
                    num_bytes=147_897_477_120,
                    md5="1d675b47d978889d74fa0da5fadfb00e",
                    login=True,
                    beside=(
                        Archive(name="ILSVRC2012_img_val.tar", url=f"{ILSVRC}ILSVRC2012_img_val.tar",
                                num_bytes=6_744_924_160, md5="29b22e2961454d5413ddabcf34fc5622", login=True),
                        Archive(name="ILSVRC2012_devkit_t12.tar.gz", url=f"{ILSVRC}ILSVRC2012_devkit_t12.tar.gz",
                                md5="fa75699e90414af021442c21a62c3abf", login=True),
                        Archive(name="real.json", url=REAL),
                    ),
                ),
            ),
            open=_imagenet("open_imagenet1k"),
            takes_filter=True,
            has_real_labels=True,
            reads_urls=True,
            repository="ILSVRC/imagenet-1k",
            hints=lambda: {"classes": labels.classes("ilsvrc2012")},
        ),
        DatasetSpec(
            name="imagenet21k",
            title="ImageNet-21k",
            num_classes=21_841,
            samples={"train": 14_197_122},
            archives=(
                Archive(name="fall11_whole.tar", num_bytes=1_310_000_000_000, note=ACCOUNT),
                Archive(name="winter21_whole.tar.gz", url="https://image-net.org/data/winter21_whole.tar.gz",
                        num_bytes=1_100_000_000_000, login=True),
                Archive(name="imagenet21k_resized.tar.gz", note=ACCOUNT),
            ),
            open=_imagenet("open_imagenet21k"),
            takes_filter=True,
            class_filter=ClassFilter(min_class_size=500, val_per_class=50),  # the set of the paper
            reads_urls=True,
            repository="timm/imagenet-22k-wds",
        ),
        DatasetSpec(name="folder", title="Folder of class sub-folders", open=_folder, takes_filter=True),
        DatasetSpec(name="hub", title="Data set of the Hugging Face Hub", open=_hub, source_hint="hf:OWNER/NAME"),
        DatasetSpec(name="beton", title="FFCV", open=_beton, takes_filter=True, takes_columns=True,
                    reads_parquet=False, source_hint="FILE|FOLDER|'PATTERN'"),
        DatasetSpec(name="wds", title="WebDataset", open=_wds, takes_filter=True, takes_columns=True,
                    reads_parquet=False, source_hint="FILE|FOLDER|'PATTERN'|hf:OWNER/NAME"),
        DatasetSpec(
            name="shapes",
            title="Shapes, made on the spot",
            num_classes=10,
            samples={"train": 20_000, "val": 2_000},
            res=32,  # that of the demo and its recipe
            open=_shapes, wants_path=False,
        ),
    )
}  # fmt: skip


def get(name: str) -> DatasetSpec:
    """The spec of a name. Raises Error with the nearest name for one that is not there."""
    if name not in SPECS:
        near = difflib.get_close_matches(name.lower(), SPECS, 1, 0.6)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Error(f"no data set {name!r}{hint} (there are {', '.join(SPECS)}; `hub` converts any of the Hub)")
    return SPECS[name]


# ----------------------------------------------------------------------------------------------------------- open


def open_source(
    spec: DatasetSpec,
    given: str | None,
    *,
    res: int,
    seed: int,
    class_filter: ClassFilter = ClassFilter(),  # noqa: B008
    splits: tuple[str, ...] = (),
    limit: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    say: Callable[[str], None] = lambda line: None,
    quiet: bool = False,
) -> Source:
    """Open what `--source` names, or what lies in the download folder or may be fetched into it.

    given: a file, a directory that holds the official file, a pattern of files, a URL, or hf:OWNER/NAME[@REVISION].
    splits: names of those that are wanted, as the user spells them; (): all. limit: so many samples of each split are
    wanted. Both let a source leave unread what nobody asked for; the caller cuts what it gets to the exact number.
    image_column, label_column: of parquet files and of betons. say, quiet: of a fetch. Raises Error that says what to
    get, and where to put it.
    """
    if class_filter and not spec.takes_filter:
        raise Error(f"{spec.name} does not take --min-class-size, --val-per-class or --classes")
    if not spec.wants_path and given:
        raise Error(f"{spec.name} is made on the spot and takes no --source")
    path = _locate(spec, given, say, quiet) if spec.wants_path else None
    name = without_folders(path)
    is_repository = isinstance(path, hub.Repository)
    if spec.reads_parquet and (is_repository or (isinstance(path, Path) and path.is_dir())):
        from mlpdata.sources.parquet import Parquet, ParquetHints
        from mlpdata.sources.parquet_splits import holds_images, holds_parquet

        if any(map(holds_images, path.files)) if is_repository else holds_parquet(path):
            if class_filter.beside_splits():
                raise Error(f"class filters do not apply to {path}: it has splits and classes of its own")
            hints = {**spec.hints(), **({"image": image_column} if image_column else {})}
            hints |= {"label": label_column} if label_column else {}
            return _named(Parquet(path, ParquetHints(**hints), splits=splits, limit=limit), name)
        if is_repository and not (spec.reads_urls or spec.open is _hub):
            raise Error(f"{path} holds no parquet files of {spec.title}")
    if isinstance(path, Path) and not spec.reads_parquet and is_shard_directory(path):
        others = "`mlpdata resize` and `mlpdata subset` make others of it, with its class names and keys"
        raise Error(f"{path} is a shard directory of mlpdata: {others}")
    columns = {"image_column": image_column, "label_column": label_column} if spec.takes_columns else {}
    if (image_column or label_column) and not columns:
        raise Error(
            f"--image-column and --label-column are for parquet files, `beton` and `wds`; {path} is none of them"
        )
    source = spec.open(path, res=res, seed=seed, class_filter=class_filter, splits=splits, limit=limit, **columns)
    return _named(source, name)


def _named(source: Source, name: str) -> Source:
    source.given = name
    return source


def _locate(spec: DatasetSpec, given: str | None, say, quiet: bool) -> Path | str | hub.Repository:
    """What is to be read: a path, the URL of an archive to be read in place, or a repository."""
    if not given:
        return _official(spec, say, quiet)
    if hub.is_repository(given):
        return hub.open_repository(given)
    if http.is_url(given):
        # Some archives are read at many offsets, in no order: a server would be asked for every one of them.
        return given if spec.reads_urls else fetch_url(given, say, quiet)
    if "://" in given:
        raise Error(f"cannot read {given}: expected a path, http(s)://... or hf:OWNER/NAME")
    path = Path(given)
    if not path.exists() and not matching(path)[1]:
        is_name = spec.open is _hub and re.fullmatch(r"[\w.-]+/[\w.-]+(@\S+)?", given)
        hint = f"; for the repository on the Hub say --source {hub.PREFIX}{given}" if is_name else ""
        raise Error(f"no such file or directory: {given} (given as --source){hint}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise Error(f"{given} is neither a file nor a folder (given as --source)")
    inside = (path / archive.name for archive in spec.archives)
    return next((archive for archive in inside if archive.exists()), path)


def _official(spec: DatasetSpec, say, quiet: bool) -> Path:
    """The official archive in the download folder, fetched if anybody may."""
    if not spec.archives:
        raise UsageError(f"{spec.name} needs --source {spec.source_hint}")
    folder = download_folder()
    for archive in spec.archives:
        if (path := folder / archive.name).exists():
            return path
    first = spec.archives[0]
    if first.remote_file().urls and not first.login:
        say(f"{first.name} is not there yet: fetching it into {folder}")
        try:
            return fetch(first.remote_file(), folder, say=say, quiet=quiet)
        except Error as e:
            raise Error(
                f"{e}; put {first.facts} into {folder} ($MLPDATA_HOME) yourself, or pass it as --source"
            ) from None
    copy = f"; its copy on the Hub, --source hf:{spec.repository}, needs an account there" if spec.repository else ""
    how = how_to_get(spec.archives, folder, otherwise=", or pass its path as --source")
    raise Error(f"{spec.name} is not there: {how}{copy}")
