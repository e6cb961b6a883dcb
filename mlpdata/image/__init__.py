"""Encoded bytes to pixels and back."""

# ruff: noqa: F401 - the names of the package
from mlpdata.image.codec import (
    MEASURED_PIXELS,
    decode,
    decode_exact,
    decode_kept,
    encode_jpeg,
    kept_jpeg,
    library_versions,
    probe,
    squared_error,
)
from mlpdata.image.formats import format_of
from mlpdata.image.limits import MAX_IMAGE_BYTES, MAX_PIXELS, ImageError, bytes_of_many_scans, check_scans
from mlpdata.image.png import encode_png
from mlpdata.image.resize import Resize, resized
