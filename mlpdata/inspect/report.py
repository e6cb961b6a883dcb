"""One self-contained page about a shard directory, for a person who has to decide whether to trust it.

Every section is a function from the directory to plain values; `report.html` is the only place that writes HTML, and
escapes every value. The page has no script, asks for nothing from the network, and does not grow with the data set.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from mlpdata.augment.augment import Augment
from mlpdata.augment.settings import Augmentation
from mlpdata.choices import LIBRARIES
from mlpdata.derive.duplicates import Duplicates, find_duplicates, find_near, name_groups
from mlpdata.errors import Error, printable_lines
from mlpdata.image.png import encode_png
from mlpdata.inspect import originals, snippets
from mlpdata.inspect.findings import findings
from mlpdata.inspect.originals import Comparison
from mlpdata.inspect.samples import class_names, draw_samples, open_loader
from mlpdata.loader.loader import Loader
from mlpdata.shards import index
from mlpdata.shards.classes import read_classes
from mlpdata.shards.manifest import Manifest, Skipped, skipped_path
from mlpdata.shards.text import MAX_TEXT_BYTES, open_file, parse_json
from mlpdata.system.files import check_output, make_folder, resolved, write_atomic
from mlpdata.system.format import format_bytes, plural

CLASSES, PER_CLASS = 10, 7  # pictures of samples
GROUPS, PER_GROUP, PAIRS = 12, 6, 24  # pictures of duplicates, and of images that look alike
WORST = 8
LISTED_CLASSES = 1_000
BARS = 250
REASONS, EXAMPLES = 20, 3
CHART_WIDTH, CHART_HEIGHT = 960, 150
OWN_SNIPPET = """import mlpdata

loader = mlpdata.load({path!r}, {split!r}, batch_size=256, augment=mlpdata.Augment())
for batch in loader:  # one epoch
    print(batch.images.shape, batch.labels.shape)
    break"""


def report(
    root: Path,
    out: Path,
    augment: Augmentation | None = None,
    source: str | None = None,
    seed: int = 0,
    near: int | None = None,
) -> str:
    """Write the page. Returns the line to print.

    augment: what to show beside the stored samples; None: Augment's defaults. source: the originals, as `--source` of
    convert takes them; None: those in the download folder, if they are there. near: show images that look alike, whose
    hashes differ in at most so many bits; all images are read for it. Raises Error for a bad directory, a bad
    source, and a file that is no HTML.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        page = out.parent / f"{out.stem or 'report'}.html"
        raise Error(f"the report is a web page: call it {page}, not {out}")
    check_output(out)
    manifest = Manifest.load(root)
    manifest.check_sizes(root)
    loaders = {split: open_loader(root, split) for split, info in manifest.splits.items() if info.num_samples}
    if not loaders:
        raise Error(f"{root} has no samples")
    first = "train" if "train" in loaders else next(iter(loaders))
    names = class_names(loaders[first])
    duplicates, skipped = find_duplicates(root, manifest), _skipped(root)
    sizes, (compared, why_not_compared) = _sizes(root, manifest), _compare(root, manifest, source)
    alike = find_near(root, manifest, near) if near is not None else None
    values: dict[str, Any] = {
        "manifest": manifest,
        "name": resolved(root).name,
        "num_bytes": format_bytes(sum(entry["bytes"] for entry in manifest.files.values())),
        "findings": findings(manifest, duplicates, sizes, compared),
        "samples": _samples(loaders[first], augment or Augment(), seed),
        "first": first,
        "classes": _classes(root, manifest, names),
        "sizes": sizes,
        "num_compared": len(compared),
        "why_not_compared": why_not_compared,
        "worst": [(c, _difference(c)) for c in compared[:WORST] if c.max_diff],
        "duplicates": _duplicates(root, manifest, loaders, duplicates, names),
        "near": alike and _near(root, manifest, loaders, *alike, names),
        "near_bits": near,
        "skipped": skipped,
        "snippets": _snippets(root, first),
    }
    page = _environment().get_template("report.html").render(values)
    try:
        make_folder(out.parent)
        write_atomic(out, page.encode("utf-8", "backslashreplace"))
    except OSError as e:
        raise Error(f"cannot write {out}: {e.strerror or e}") from None
    return f"{out}: {format_bytes(out.stat().st_size)}; open it in a browser"


def _environment() -> jinja2.Environment:
    text = files("mlpdata.inspect").joinpath("report.html").read_text("utf-8")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"report.html": text}), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
        finalize=_shown,
    )  # fmt: skip
    environment.filters["picture"] = _picture
    environment.filters["bytes"] = format_bytes
    environment.filters["of"] = plural
    return environment


def _shown(value: object) -> object:
    """What an expression of the template puts out: a name may hold anything, and what is not printable is escaped."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable_lines(value.split("\n"))
    return value


def _picture(pixels: np.ndarray) -> str:
    """uint8 (H, W, 3) as an address that holds the image itself."""
    return "data:image/png;base64," + base64.b64encode(encode_png(np.ascontiguousarray(pixels), 6)).decode()


# -------------------------------------------------------------------------------------------------------- sections


def _samples(loader: Loader, augment: Augmentation, seed: int) -> list:
    present = np.unique(loader.labels)
    chosen = np.sort(np.random.default_rng(seed).permutation(present)[:CLASSES])
    return draw_samples(loader, chosen.tolist(), PER_CLASS, augment, seed)


def _classes(root: Path, manifest: Manifest, names: list[str]) -> dict:
    """The histogram, and a table of the classes (of many, those with the fewest images in the first split)."""
    counts = {split: np.array(info.class_counts) for split, info in manifest.splits.items()}
    first = next(iter(counts.values())) if "train" not in counts else counts["train"]
    order = np.argsort(first, kind="stable")
    charts = []
    for split, values in counts.items():
        ranked = np.sort(values)[::-1]
        groups = np.array_split(ranked, min(BARS, len(ranked)))
        means = [float(group.mean()) for group in groups]
        titles = [f"{int(group.min()):,} to {plural(int(group.max()), 'image')}" for group in groups]
        charts.append({
            "split": split, "bars": _bars(means, titles), "top": max(means), "most": int(ranked[0]),
            "least": int(ranked[-1]), "median": float(np.median(ranked)), "num_classes": int((ranked > 0).sum()),
        })  # fmt: skip
    in_source = [name for name, _ in read_classes(root, manifest)]
    listed = np.arange(len(first)) if len(first) <= LISTED_CLASSES else order[:LISTED_CLASSES]
    rows = [(label, in_source[label], names[label], [int(c[label]) for c in counts.values()]) for label in listed]
    return {"charts": charts, "splits": list(counts), "rows": rows, "num_left_out": len(first) - len(rows)}


def _sizes(root: Path, manifest: Manifest) -> dict:
    """Sizes of the originals over all splits."""
    columns = [index.columns(root, manifest, split, ["source_width", "source_height"]) for split in manifest.splits]
    width, height = (np.concatenate([c[f"source_{side}"] for c in columns]) for side in ("width", "height"))
    longer, shorter = np.maximum(width, height), np.minimum(width, height)
    pairs, counts = np.unique(width.astype(np.int64) << 32 | height, return_counts=True)  # of 12 million in a second
    most = np.argsort(-counts, kind="stable")[:5]
    low, high = int(longer.min()), int(longer.max())
    edges = np.unique(np.geomspace(max(low, 1), high + 1, 41).round().astype(np.int64))
    values = np.histogram(longer, edges)[0] if len(edges) > 1 else np.array([len(longer)])
    titles = [f"{a:,} to {b - 1:,} px: {plural(n, 'image')}" for a, b, n in zip(edges, edges[1:], values, strict=False)]
    return {
        "num_images": len(longer),
        "num_smaller": int(((longer if manifest.resize == "longest" else shorter) < manifest.res).sum()),
        "least": low,
        "most": high,
        "median": float(np.median(longer)),
        "aspect": float((longer / np.maximum(shorter, 1)).max()),
        "common": [(int(pairs[i]) >> 32, int(pairs[i]) & 0xFFFFFFFF, int(counts[i])) for i in most],
        "bars": _bars(values.tolist(), titles) if len(edges) > 2 else [],
        "top": int(values.max()),
        "middle": int(edges[len(edges) // 2]),
    }


def _compare(root: Path, manifest: Manifest, source: str | None) -> tuple[list[Comparison], str]:
    """(stored images beside their originals, the worst first; why there are none). Raises Error for a bad source."""
    if manifest.resize == "longest":
        return [], "Images of their own sizes are not compared with their originals."
    if source or originals.has_originals(manifest):
        try:
            return originals.compare(root, manifest, source), ""
        except Error as e:
            if source:
                raise
            return [], f"The originals could not be compared: {e}."
    return (
        [],
        "The originals were not found: with --source ORIGINALS, stored images are compared with their exact decode.",
    )


def _difference(comparison: Comparison) -> np.ndarray:
    """What differs from the exact decode, 8 times enlarged: uint8 (H, W, 3)."""
    diff = np.abs(comparison.exact.astype(np.int32) - comparison.stored)
    return np.minimum(8 * diff, 255).astype(np.uint8)


def _duplicates(
    root: Path, manifest: Manifest, loaders: dict[str, Loader], found: Duplicates, names: list[str]
) -> dict:
    """Groups of equal images as pictures: leaks first, then those with several labels, then the largest."""
    is_leak = (found.counts() > 0).sum(1) > 1
    differs = found.is_labelled_differently()
    chosen = np.lexsort((np.arange(len(found)), ~differs, ~is_leak))[:GROUPS].tolist()
    groups = []
    for g, members in zip(chosen, name_groups(root, manifest, found, chosen), strict=True):
        row = int(found.rows[found.starts[g]])
        split = int(found.split_of(np.array([row]))[0])
        picture = loaders[found.splits[split]].read(np.array([row - found.first_rows[split]]))[0]
        shown = [(m["split"], m["key"], names[m["label"]]) for m in members[:PER_GROUP]]
        more = len(members) - len(shown)
        groups.append({"picture": picture, "members": shown, "num_more": more, "is_leak": bool(is_leak[g]),
                       "differs": bool(differs[g])})  # fmt: skip
    return {"groups": groups, "num_groups": len(found)}


def _near(
    root: Path, manifest: Manifest, loaders: dict[str, Loader], found: Duplicates, bits: np.ndarray, names: list[str]
) -> dict:
    """Pairs of images that look alike as pictures: leaks first, then those with two labels, then the most alike."""
    is_leak = (found.counts() > 0).sum(1) > 1
    differs = found.is_labelled_differently()
    chosen = np.lexsort((bits, ~differs, ~is_leak))[:PAIRS].tolist()
    pairs = []
    for pair, members in zip(chosen, name_groups(root, manifest, found, chosen), strict=True):
        rows = found.rows[found.starts[pair] : found.starts[pair + 1]]
        splits = found.split_of(rows).tolist()
        pictures = [
            loaders[found.splits[split]].read(np.array([row - found.first_rows[split]]))[0]
            for row, split in zip(rows.tolist(), splits, strict=True)
        ]
        shown = [
            (picture, m["split"], m["key"], names[m["label"]]) for picture, m in zip(pictures, members, strict=True)
        ]
        pairs.append({"members": shown, "bits": int(bits[pair]), "is_leak": bool(is_leak[pair]),
                      "differs": bool(differs[pair])})  # fmt: skip
    return {
        "pairs": pairs,
        "num_pairs": len(found),
        "num_leaks": int(is_leak.sum()),
        "num_differing": int(differs.sum()),
    }


def _skipped(root: Path) -> list[tuple[str, int, list[str]]]:
    """(reason, how often, a few sources) of what was left out, the most frequent first."""
    counts, examples = Counter(), {}
    path = skipped_path(root)
    try:
        with open_file(path) as f:
            while line := f.readline(MAX_TEXT_BYTES):
                row = parse_json(line, path, Skipped)
                counts[row["reason"]] += 1
                if len(some := examples.setdefault(row["reason"], [])) < EXAMPLES:
                    some.append(f"{row['split']}: {row['source']}")
    except OSError as e:
        raise Error(f"cannot read {path}: {e.strerror}") from None
    return [(reason, n, examples[reason]) for reason, n in counts.most_common(REASONS)]


def _snippets(root: Path, split: str) -> list[tuple[str, str]]:
    """(library, code) of all libraries that read this directory."""
    codes = [("mlpdata", OWN_SNIPPET.format(path=str(resolved(root)), split=split))]
    for library in LIBRARIES:
        try:
            codes.append((library, snippets.snippet(root, library, split)))
        except Error:  # the directory lacks the format that this library reads
            continue
    return codes


def _bars(values: Iterable[float], titles: list[str]) -> list[tuple[float, float, float, float, str]]:
    """(x, y, width, height, title) of bars that fill a chart of CHART_WIDTH by CHART_HEIGHT."""
    values = list(values)
    width, top = CHART_WIDTH / max(len(values), 1), max(values, default=0) or 1
    heights = [CHART_HEIGHT * value / top for value in values]
    gap = 0 if width < 8 else 1
    return [(round(i * width, 2), round(CHART_HEIGHT - h, 2), round(width - gap, 2), round(h, 2), title)
            for i, (h, title) in enumerate(zip(heights, titles, strict=True))]  # fmt: skip
