"""The data sets, as `mlpdata list` shows them: sizes, what it takes to get them, what is here already."""

from __future__ import annotations

import json
import os

from mlpdata import datasets
from mlpdata.datasets import DatasetSpec
from mlpdata.errors import printable_lines
from mlpdata.fetch.official import download_folder
from mlpdata.fetch.transfer import part_path
from mlpdata.system.format import format_bytes

HEADINGS = ("NAME", "IMAGES", "CLASSES", "RAW AT 32 PX", "RAW AT 64 PX", "DOWNLOAD", "ACCESS", "SOURCE")


def catalogue(as_json: bool = False) -> str:
    """The data sets as a table, or as JSON with a list of objects."""
    facts = [_facts(spec) for spec in datasets.SPECS.values()]
    if as_json:
        return json.dumps(facts, indent=1)
    rows = [HEADINGS, *map(_row, facts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)
    return printable_lines(lines)


def _facts(spec: DatasetSpec) -> dict:
    first = next(iter(spec.archives), None)
    here = [a.name for a in spec.archives if os.path.exists(download_folder() / a.name)]
    begun = [a.name for a in spec.archives if os.path.exists(part_path(download_folder() / a.name))]
    if first:
        access, source = ("free" if first.url and not first.login else "account"), first.name
    elif spec.wants_path:
        access, source = None, f"--source {spec.source_hint}"
    else:
        access, source = "free", "made on the spot"
    return {
        "name": spec.name,
        "title": spec.title,
        "splits": spec.samples,
        "num_classes": spec.num_classes,
        "raw_bytes": {str(res): sum(spec.samples.values()) * 3 * res * res for res in (32, 64)},
        "download_bytes": sum(a.num_bytes or 0 for a in (first, *first.beside)) or None if first else None,
        "access": access,
        "source": source,
        "repository": spec.repository,
        "here": here,
        "here_in_part": begun,
    }


def _row(facts: dict) -> tuple[str, ...]:
    """The cells of a data set; "-" stands for what nobody knows beforehand."""
    images = ", ".join(f"{split} {count:,}" for split, count in facts["splits"].items())
    sizes = [*facts["raw_bytes"].values(), facts["download_bytes"]]
    here, begun = facts["here"], facts["here_in_part"]
    state = f" (here: {here[0]})" if here else f" (here in part: {begun[0]})" if begun else ""
    copy = f", hf:{facts['repository']}" if facts["repository"] else ""
    return (
        facts["name"],
        images or "-",
        f"{facts['num_classes']:,}" if facts["num_classes"] else "-",
        *(format_bytes(size) if size else "-" for size in sizes),
        facts["access"] or "-",
        f"{facts['source']}{copy}{state}",
    )
