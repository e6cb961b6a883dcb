"""Packages that only some options need: what each is for, and how to install it. The only place that says so."""

from __future__ import annotations

from dataclasses import dataclass

from mlpdata.errors import Error


@dataclass(frozen=True)
class Optional:
    """An optional package."""

    purpose: str
    install: str


OPTIONAL = {
    "ffcv": Optional(
        "reading betons with FFCV itself",
        "apt install libopencv-dev libturbojpeg0-dev, then pip install setuptools, then pip install "
        "--no-build-isolation ffcv",
    ),
    "timm": Optional("other models on our shards", "pip install timm"),
    "google-crc32c": Optional("export --to tfrecord", "pip install 'mlpdata[tfrecord]'"),
    "numba": Optional("JPEG shards decoded by the batch", "pip install 'mlpdata[turbo]'"),
    "ray": Optional("convert --engine ray", "pip install 'mlpdata[ray]'"),
    "s3fs": Optional("s3:// directories", "pip install 'mlpdata[remote]'"),
    "tensorboard": Optional("event files of training runs", "pip install 'mlpdata[tb]'"),
    "wandb": Optional("log.wandb of recipes", "pip install wandb"),
}


def missing(package: str, what: str) -> Error:
    """The Error for something that needs a package of OPTIONAL which is not installed.

    >>> print(missing("ray", "--engine ray"))
    --engine ray needs ray: pip install 'mlpdata[ray]'
    """
    return Error(f"{what} needs {package}: {OPTIONAL[package].install}")
