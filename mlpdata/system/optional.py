"""Packages that only some options need: what each is for, and how to install it. The only place that says so."""

from __future__ import annotations

from dataclasses import dataclass

from mlpdata.errors import Error


@dataclass(frozen=True)
class OptionalPackage:
    """An optional package."""

    purpose: str
    install: str


OPTIONAL = {
    "ffcv": OptionalPackage(
        "reading betons with FFCV itself",
        "apt install libopencv-dev libturbojpeg0-dev, then pip install setuptools, then pip install "
        "--no-build-isolation ffcv",
    ),
    "timm": OptionalPackage("other models on our shards", "pip install timm"),
    "google-crc32c": OptionalPackage("export --to tfrecord", "pip install 'mlpdata[tfrecord]'"),
    "numba": OptionalPackage("JPEG shards decoded by the batch", "pip install 'mlpdata[turbo]'"),
    "ray": OptionalPackage("convert --engine ray", "pip install 'mlpdata[ray]'"),
    "s3fs": OptionalPackage("s3:// directories", "pip install 'mlpdata[remote]'"),
    "tensorboard": OptionalPackage("event files of training runs", "pip install 'mlpdata[tb]'"),
    "wandb": OptionalPackage("log.wandb of recipes", "pip install wandb"),
}


def missing(package: str, what: str) -> Error:
    """The Error for something that needs a package of OPTIONAL which is not installed.

    >>> print(missing("ray", "--engine ray"))
    --engine ray needs ray: pip install 'mlpdata[ray]'
    """
    return Error(f"{what} needs {package}: {OPTIONAL[package].install}")
