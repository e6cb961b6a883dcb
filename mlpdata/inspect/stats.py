"""What can be counted in a shard directory: samples a class, and images that occur more than once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlpdata.derive.duplicates import Duplicates, find_duplicates, name_groups
from mlpdata.errors import printable_lines
from mlpdata.shards.classes import read_classes, short_names
from mlpdata.shards.manifest import Manifest
from mlpdata.shards.streamed import is_without_shards
from mlpdata.shards.text import json_text, rounded, shown
from mlpdata.system.format import plural

MAX_SHOWN_GROUPS = 5
MAX_JSON_GROUPS = 10_000
MAX_SHOWN_CLASSES = 3


def stats(root: Path, as_json: bool = False) -> str:
    """Class counts, mean and std, and duplicates within and across splits, for people or for programs.

    Raises Error where there is no finished directory, or no index that fits it.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    if not is_without_shards(root):
        manifest.check_sizes(root)
    names = short_names(read_classes(root, manifest))
    duplicates = find_duplicates(root, manifest)
    within, across = duplicates.repeated(), duplicates.leaks()
    if not as_json:
        return printable_lines(_lines(root, manifest, names, duplicates, within, across))
    facts = {
        "splits": {split: _class_facts(manifest, split) for split in manifest.splits},
        "mean": manifest.mean,
        "std": manifest.std,
        "repeated": within,
        "across": {f"{a} in {b}": n for (a, b), n in across.items()},
        "groups_labelled_differently": int(duplicates.is_labelled_differently().sum()),
        "num_groups": len(duplicates),
        "groups": name_groups(root, manifest, duplicates, range(min(MAX_JSON_GROUPS, len(duplicates)))),
    }
    return json_text(facts).rstrip()


def _class_facts(manifest: Manifest, split: str) -> dict:
    counts = np.array(manifest.splits[split].class_counts)
    return {
        "num_samples": manifest.splits[split].num_samples,
        "num_classes": int((counts > 0).sum()),
        "class_counts": {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max())},
    }


def _lines(
    root: Path,
    manifest: Manifest,
    names: list[str],
    duplicates: Duplicates,
    within: dict[str, int],
    across: dict[tuple[str, str], int],
) -> Iterator[str]:
    for split, info in manifest.splits.items():
        facts = _class_facts(manifest, split)
        low, median, high = facts["class_counts"].values()
        present, all_ = facts["num_classes"], manifest.num_classes
        classes = plural(all_, "class") if present == all_ else f"{present:,} of {plural(all_, 'class')}"
        yield f"{f'split {split}':<12} {plural(info.num_samples, 'sample')} in {classes}"
        if low == high:
            yield f"{'':<12} {high:,} a class"
            continue
        yield f"{'':<12} {low:,} to {high:,} a class, median {median:,.0f}"
        order = np.argsort(info.class_counts, kind="stable").tolist()
        for word, some in (("fewest", order[:MAX_SHOWN_CLASSES]), ("most", order[::-1][:MAX_SHOWN_CLASSES])):
            yield f"{'':<12} {word}: " + ", ".join(f"{names[c]} {info.class_counts[c]:,}" for c in some)
    yield f"{'mean, std':<12} {rounded(manifest.mean)}, {rounded(manifest.std)}"
    title = "duplicates"
    for split, n in within.items():
        total = manifest.splits[split].num_samples
        same = f"{'repeats' if n == 1 else 'repeat'} an earlier one"
        yield f"{title:<12} {split}: {n:,} of {plural(total, 'image')} ({n / max(total, 1):.2%}) {same}"
        title = ""
    for (split, other), n in across.items():
        if n:
            appear = "also appears" if n == 1 else "also appear"
            yield f"{'':<12} leak: {plural(n, f'{split} image')} {appear} in {other}"
    if n := int(duplicates.is_labelled_differently().sum()):
        have = "has" if n == 1 else "have"
        yield f"{'':<12} {n:,} of {plural(len(duplicates), 'group')} of equal images {have} more than one label"
    for group in name_groups(root, manifest, duplicates, range(min(MAX_SHOWN_GROUPS, len(duplicates)))):
        some = ", ".join(f"{s['split']}/{shown(s['key'])} ({names[s['label']]})" for s in group[:4])
        yield f"{'':<12} {len(group):,} times: {some}{', ...' if len(group) > 4 else ''}"
