"""A shard directory made of shard directories: what the options leave open is as it is in those."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlpdata.choices import FORMATS
from mlpdata.convert.options import Options
from mlpdata.convert.run import convert
from mlpdata.derive.derivation import Derivation
from mlpdata.errors import Error
from mlpdata.shards import remote
from mlpdata.shards.manifest import Manifest


def derive(
    derivation: Derivation,
    out: Path | str,
    *,
    res: int | None = None,
    format: str | None = None,
    codec: str | None = None,
    quality: int | None = None,
    resize: str | None = None,
    filter: str | None = None,
    decode: str | None = None,
    seed: int | None = None,
    shard_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Make a shard directory of shard directories and return its manifest. It resumes and ends as `convert` does.

    None: as it is in the directories. Images of the wanted size are taken as they are, pixels and JPEGs or PNGs alike.
    Raises Error where the directories do not agree and no option says what is meant, and wherever `convert` does.
    """
    manifests = [Manifest.load(directory) for directory in derivation.directories]
    first, names = manifests[0], derivation.directories
    for field, asked in (("res", res), ("resize", resize), ("format", format), ("codec", codec)):
        values = [_of(manifest, field) for manifest in manifests]
        other = next((i for i, value in enumerate(values) if value != values[0]), 0)
        if asked is None and other:
            raise Error(
                f"{names[0]} has {field} {values[0]}, {names[other]} {values[other]}: "
                f"{_ADVICE[field].format(other=names[other], value=values[0])}"
            )
    options: dict[str, Any] = {
        "res": res or first.res,
        "format": format or _of(first, "format"),
        "codec": codec or (first.codec if len(manifests) == 1 else _of(first, "codec")),
        "resize": resize or first.resize,
        "filter": filter or first.filter,
        "seed": first.seed if seed is None else seed,
        "shard_size": shard_size or first.shard_size,
        "quality": _quality(derivation, manifests, quality),
    }
    if quality and options["res"] == first.res and all(m.quality is None and _stores_jpegs(m) for m in manifests):
        say("--quality has no effect on stored JPEGs: they are not encoded again")
    manifest = convert(
        Options(dataset=first.dataset, derivation=derivation, out=out if remote.is_remote(out) else Path(out),
                decode=decode, workers=workers, overwrite=overwrite, quiet=quiet, max_skipped=1.0, **options),
        say,
    )  # fmt: skip
    assert manifest is not None
    return manifest


_ADVICE = {
    "res": "bring one to the size of the other first: `mlpdata resize {other} --res {value} --out ...`",
    "resize": "images that keep their shape cannot be merged with square ones",
    "format": "say which with --format",
    "codec": "say which with --codec",
}


def _stores_jpegs(manifest: Manifest) -> bool:
    return "jpg" in (manifest.tar_codec, manifest.beton_codec)


def _of(manifest: Manifest, field: str) -> Any:
    if field == "format":
        return next(name for name, formats in FORMATS.items() if formats == sorted(manifest.formats))
    if field == "codec":
        # As it turned out: "auto" is PNG in one directory and JPEG in the other.
        return (
            "auto" if (manifest.codec, manifest.tar_codec) == ("auto", "jpg") else manifest.tar_codec or manifest.codec
        )
    if field == "resize":
        return manifest.resize if manifest.resize == "longest" else "squash"
    return manifest.res


def _quality(derivation: Derivation, manifests: list[Manifest], asked: int | None) -> int:
    """The quality of JPEGs that are encoded. Raises Error where JPEGs of two qualities would come together."""
    stored = {manifest.quality for manifest in manifests if manifest.quality} | ({asked} if asked else set())
    if len(stored) > 1:
        raise Error(
            f"JPEGs of quality {' and '.join(map(str, sorted(stored)))} would be mixed, as stored JPEGs are not "
            "encoded again: leave --quality out, or store PNGs with --codec png"
        )
    return next(iter(stored), 90)
