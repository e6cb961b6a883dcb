"""The files by which a shard directory explains itself: dataset card, timm's split table, class list, skipped list."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import yaml

from mlpdata.errors import printable
from mlpdata.labels import WNID
from mlpdata.shards.classes import classes_text, distinct_names
from mlpdata.shards.index import keys_just_written
from mlpdata.shards.manifest import Manifest, SplitInfo, card_path, classes_path, info_path
from mlpdata.shards.tar import EXTENSIONS
from mlpdata.shards.text import json_text, rounded
from mlpdata.splits import on_hub
from mlpdata.system.files import replacing
from mlpdata.system.format import plural

MAX_CARD_CLASSES = 2000  # a card with 20,000 class names is of no use to anyone and slow to parse


def _write(path: Path, text: str | Iterable[str]) -> Path:
    # Synced when the conversion finishes, before the manifest is written; until then a torn file harms nobody.
    with replacing(path, sync=False) as f:
        f.writelines(line.encode() for line in ([text] if isinstance(text, str) else text))
    return path


def write_skipped(path: Path, skipped: Iterable[dict]) -> Path:
    """One JSON object a line: split, source, reason; `is_data: false` for a file that is none of the data."""
    return _write(path, map(json_text, skipped))


def write_classes(root: Path, classes: list[tuple[str, str]]) -> str:
    """Write the class list. Returns the file's sha256."""
    return hashlib.sha256(_write(classes_path(root), classes_text(classes)).read_bytes()).hexdigest()


def write_real(path: Path, index: Path, find: Callable[[list[str]], dict[str, list[int]]]) -> Path | None:
    """Write the ReaL labels of a split, {key: labels}, in its order and classes; None where its images have none.

    index: of the split, written by this process a moment ago. find: gives the labels of keys, in their order.
    """
    real = find(keys_just_written(index))
    return _write(path, json.dumps(real) + "\n") if real else None


def write_documents(root: Path, manifest: Manifest, title: str, classes: list[tuple[str, str]]) -> list[Path]:
    """Write the card, and timm's table where there are tars. Returns their paths and that of the class list."""
    written = [classes_path(root), _write(card_path(root), card(manifest, title, classes))]
    if manifest.tar_codec:
        written.append(_write(info_path(root), json_text(timm_info(manifest), indent=1)))
    return written


def timm_info(manifest: Manifest) -> dict:
    """The split table that timm's WebDataset reader looks for, each split also by the name its code asks for."""
    splits: dict[str, dict] = {}
    for name, info in manifest.splits.items():
        row = {"num_samples": info.num_samples, "filenames": info.tars, "shard_lengths": info.tar_lengths}
        splits[name] = {"name": name, **row}
    for name in manifest.splits:
        splits.setdefault(on_hub(name), {**splits[name], "name": on_hub(name)})
    return {"splits": splits}


def card(manifest: Manifest, title: str, classes: list[tuple[str, str]]) -> str:
    """The dataset card: YAML header for the Hub's loaders, then what is here and how to open it."""
    total = sum(info.num_samples for info in manifest.splits.values())
    header: dict = {"pretty_name": f"{title}, {manifest.res} px", "task_categories": ["image-classification"]}
    image_key = EXTENSIONS.get(manifest.tar_codec or "", "jpg")
    if manifest.tar_codec:
        header["configs"] = [
            {
                "config_name": "default",
                "data_files": [{"split": on_hub(s), "path": f"{s}-*.tar"} for s in manifest.splits],
            }
        ]
        if len(classes) <= MAX_CARD_CLASSES:
            label = {"class_label": {"names": {str(i): name for i, name in enumerate(distinct_names(classes))}}}
            columns = [("__key__", "string"), ("__url__", "string"), (image_key, "image"), ("cls", label)]
            header["dataset_info"] = {"features": [{"name": n, "dtype": t} for n, t in columns]}
    rows = "\n".join(
        f"| {name} | {info.num_samples:,} | {info.num_skipped:,} | {', '.join(_files(info)) or '-'} |"
        for name, info in manifest.splits.items()
    )
    fidelity = "Nothing was resized by an approximation."
    if manifest.fidelity:
        f = manifest.fidelity
        fidelity = (
            f"JPEGs were decoded at reduced scale; against the full decode and the same filter that is "
            f"{f['psnr_db']} dB PSNR, largest difference {f['max_diff']}, on {f['num_samples']} of these images."
        )
        if manifest.parents:
            fidelity = fidelity.replace("of these images", "images of this directory or of one it was made of")
    lineage = ""
    if manifest.parents:
        lines = "".join(f"    {printable(line)}\n" for line in manifest.lineage)
        lineage = f"\nIt was made of other shard directories, not of the archive:\n\n{lines}"
    count = f"{plural(total, 'image')} of {plural(manifest.num_classes, 'class')}"
    return f"""---
{yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=120).strip()}
---

# {title}, {manifest.res} px

{count}, resolution {manifest.res}, resized by `{manifest.resize}` with the
`{manifest.filter}` filter, from {printable(manifest.release)}. EXIF orientation is ignored. {fidelity}

| split | samples | skipped | files |
|---|---|---|---|
{rows}

Samples are shuffled over each whole split by a hash of (seed {manifest.seed}, key). `classes.txt` names the classes in
label order, `*.index.parquet` says where every sample lies and where it came from, `skipped.jsonl` what was left out
and why, `manifest.json` everything else, with a checksum of every file. Channel mean {rounded(manifest.mean)} and
standard deviation {rounded(manifest.std)} of the training pixels are on the scale of 0 to 1.

{_synsets(classes)}Made by mlpdata {manifest.tool_version}:

    {printable(manifest.made_by)}
{lineage}"""


def _synsets(classes: list[tuple[str, str]]) -> str:
    """The table of ImageNet's synsets, by which labels of one data set are told from those of another; "" without any.

    The names in the card's header are the readable ones, two of which may be equal.
    """
    if not any(WNID.fullmatch(name) for name, _ in classes):
        return ""
    if len(classes) > MAX_CARD_CLASSES:
        return f"The first column of `classes.txt` has the WordNet ids of the {plural(len(classes), 'class')}.\n\n"
    rows = [f"| {i} | {_cell(name)} | {_cell(text)} |" for i, (name, text) in enumerate(classes)]
    return "\n".join(["| label | WordNet id | class |", "|---|---|---|", *rows, "", ""])


def _files(info: SplitInfo) -> list[str]:
    tars = []
    if info.tars:
        tars = [info.tars[0] if len(info.tars) == 1 else f"{info.tars[0]} to {info.tars[-1]}"]
    return ([info.beton] if info.beton else []) + tars


def _cell(text: str) -> str:
    return printable(text).replace("|", r"\|")
