"""What a shard directory holds, in a few lines or as its whole manifest."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from mlpdata.shards.classes import read_classes
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.text import json_text, printable, rounded, shown


def info(root: Path, as_json: bool = False) -> str:
    """What a shard directory holds, for people or (the whole manifest) for programs."""
    manifest = Manifest.load(root)
    manifest.check_sizes(root)
    if as_json:
        return json_text(asdict(manifest), indent=1).rstrip()
    size = sum(f["bytes"] for f in manifest.files.values())
    rows = [
        ("data set", f"{manifest.dataset} ({manifest.release})"),
        ("classes", f"{manifest.num_classes:,}: {_some_classes(root, manifest)}"),
        ("resolution", f"{manifest.res} px, {manifest.resize}, {manifest.filter} filter"),
        (
            "formats",
            ", ".join(f"{f} ({c})" for f, c in (("beton", manifest.beton_codec), ("tar", manifest.tar_codec)) if c),
        ),
        ("size", f"{size / 1e6:,.1f} MB in {len(manifest.files)} files"),
        ("mean, std", f"{rounded(manifest.mean)}, {rounded(manifest.std)}"),
        ("made by", manifest.command),
        ("with", ", ".join(manifest.image_library.values())),
    ]
    if manifest.fidelity:
        f = manifest.fidelity
        rows.append(
            ("fidelity", f"{f['psnr_db']} dB, largest difference {f['max_diff']}, on {f['num_samples']} images")
        )
    for name, split in manifest.splits.items():
        counts = np.array(split.class_counts)
        shards = f", {len(split.tars)} tar shards" if split.tars else ""
        least, most = counts.min(), counts.max()
        per_class = f"{least:,} to {most:,} a class" if least < most else f"{most:,} a class"
        rows.append(
            (f"split {name}", f"{split.num_samples:,} samples, {per_class}, {split.num_skipped:,} skipped{shards}")
        )
    return "\n".join(f"{name:<12} {printable(value)}" for name, value in rows)


def _some_classes(root: Path, manifest: Manifest) -> str:
    names = [shown(readable) for _, readable in read_classes(root, manifest)]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
