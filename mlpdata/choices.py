"""What options may be: the only lists of formats, codecs, resize rules, filters, engines and libraries.

Nothing heavy is imported here: the command line offers these lists without loading numpy, Pillow or torch.
"""

from __future__ import annotations

from typing import Literal, get_args

FORMATS = {"beton": ["beton"], "tar": ["tar"], "both": ["beton", "tar"]}  # what `--format` asks for -> what is written
Codec = Literal["raw", "jpg", "png"]
CODECS: tuple[Codec, ...] = get_args(Codec)  # how images are stored; raw is uint8 RGB, rows top to bottom


def stored_codecs(format: str, codec: str, from_jpegs: bool) -> tuple[str | None, str | None]:
    """What `--format` and `--codec` mean: the codecs of the beton and of the tars; None where a format is not wanted.

    from_jpegs: whether the source has JPEGs, of which "auto" makes JPEGs.

    >>> stored_codecs("both", "auto", True), stored_codecs("tar", "auto", False)
    (('raw', 'jpg'), (None, 'png'))
    """
    in_tars = codec if codec != "auto" else "jpg" if from_jpegs else "png"
    in_beton = "jpg" if codec == "jpg" else "raw"
    formats = FORMATS[format]
    return in_beton if "beton" in formats else None, in_tars if "tar" in formats else None


MAX_SKIPPED = 0.01  # a share of the images, unless another one is asked for

Resize = Literal["squash", "crop", "longest"]
RESIZES: tuple[Resize, ...] = get_args(Resize)
Filter = Literal["box", "bilinear", "bicubic", "lanczos"]
FILTERS: tuple[Filter, ...] = get_args(Filter)
DECODES = ("fast", "exact")  # how JPEGs that are resized are decoded: see image.codec
ENGINES = ("local", "ray")
EXPORTS = ("folder", "parquet", "npz", "arrow", "mds", "litdata", "tfrecord", "beton", "tar")  # of `mlpdata export`
EXPORT_CODECS = ("stored", "jpg", "png")  # stored: images as they are, and PNG for raw pixels
# That `mlpdata snippet` writes code for. litdata and streaming (MosaicML's) read their own formats, exported first.
LIBRARIES = (
    "ffcv", "webdataset", "datasets", "timm", "torch", "numpy", "dali", "lightning", "accelerate", "torchdata", "jax",
    "tensorflow", "keras", "litdata", "streaming",
)  # fmt: skip
MAX_RES = 1024  # pixels a side
