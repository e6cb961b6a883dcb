"""What a shard directory holds, in a few lines or as its whole manifest."""

from __future__ import annotations

from pathlib import Path

from mlpdata.errors import printable_lines
from mlpdata.shards import remote
from mlpdata.shards.manifest import made_from
from mlpdata.shards.text import json_text, rounded, shown
from mlpdata.system.format import format_bytes, plural


def info(root: str | Path, as_json: bool = False) -> str:
    """What a shard directory holds, for people or (the whole manifest) for programs. Raises Error.

    root: of one that is elsewhere, its manifest and its class list are read, and no file is looked at.
    """
    manifest, classes = remote.read_lists(root)
    if not remote.is_remote(root):
        manifest.check_sizes(Path(root))
    if as_json:
        return json_text(manifest.as_dict(), indent=1).rstrip()
    codecs = (("beton", manifest.beton_codec), ("tar", manifest.tar_codec))
    num_bytes = sum(entry["bytes"] for entry in manifest.files.values())
    rows = [
        ("data set", f"{manifest.dataset} ({manifest.release})"),
        ("classes", f"{manifest.num_classes:,}: {_some(classes)}"),
        ("resolution", f"{manifest.res} px, {manifest.resize}, {manifest.filter} filter"),
        ("formats", ", ".join(f"{name} ({codec})" for name, codec in codecs if codec)),
        ("size", f"{format_bytes(num_bytes)} in {plural(len(manifest.files), 'file')}"),
        ("mean, std", f"{rounded(manifest.mean)}, {rounded(manifest.std)}"),
        ("made by", manifest.made_by),
        *([("from", made_from(manifest.source_files).removeprefix(", from "))] if manifest.source_files else []),
        *(("of" if i == 0 else "", line) for i, line in enumerate(manifest.lineage)),
        ("with", ", ".join(manifest.image_library.values())),
    ]
    if f := manifest.fidelity:
        what = f"{f['psnr_db']} dB, largest difference {f['max_diff']}, on {plural(f['num_samples'], 'image')}"
        rows.append(("fidelity", what))
    for name, split in manifest.splits.items():
        shards = f", {plural(len(split.tars), 'tar shard')}" if split.tars else ""
        low, high = min(split.class_counts), max(split.class_counts)
        per_class = f"{low:,} to {high:,} a class" if low < high else f"{high:,} a class"
        counts = f"{plural(split.num_samples, 'sample')}, {per_class}, {split.num_skipped:,} skipped"
        rows.append((f"split {name}", f"{counts}{shards}"))
    return printable_lines(f"{name:<12} {value}" for name, value in rows)


def _some(classes: list[tuple[str, str]]) -> str:
    names = [shown(readable) for _, readable in classes]
    comma = "; " if any("," in name for name in names[:6]) else ", "  # WordNet's names are lists of synonyms
    return comma.join(names[:6]) + (f"{comma}..." if len(names) > 6 else "")
