"""What speaks for and against a data set, in whole sentences, the worst first."""

from __future__ import annotations

from mlpdata.convert.run import LOW_FIDELITY_DB
from mlpdata.derive.duplicates import Duplicates
from mlpdata.inspect.originals import Comparison
from mlpdata.shards.manifest import Manifest
from mlpdata.system.format import plural


def findings(
    manifest: Manifest, duplicates: Duplicates, sizes: dict, compared: list[Comparison]
) -> list[tuple[str, str]]:
    """("bad" | "note" | "good", sentence) of everything that speaks for or against the data set, in this order."""
    found: dict[str, list[str]] = {"bad": [], "note": [], "good": []}
    for split, info in manifest.splits.items():
        if n := info.num_skipped:
            total = info.num_samples + n
            level = "bad" if n > total / 100 else "note"
            found[level].append(f"{_share(n, f'{split} image', total)} could not be used.")
        if n := info.class_counts.count(0):
            found["note"].append(f"{_share(n, 'class', manifest.num_classes)} {_has(n)} no {split} image.")
    if not any(info.num_skipped for info in manifest.splits.values()):
        found["good"].append("Every image of the source could be used.")
    leaks = {pair: n for pair, n in duplicates.leaks().items() if n}
    for (split, other), n in leaks.items():
        share = _share(n, f"{split} image", manifest.splits[split].num_samples)
        found["bad"].append(f"Leak: {share} also {'appears' if n == 1 else 'appear'} in {other}.")
    if not leaks and len(manifest.splits) > 1:
        found["good"].append("No image is in two splits.")
    for split, n in duplicates.repeated().items():
        if n:
            share = _share(n, f"{split} image", manifest.splits[split].num_samples)
            found["note"].append(f"{share} {'repeats' if n == 1 else 'repeat'} an earlier one.")
    if n := int(duplicates.is_labelled_differently().sum()):
        found["bad"].append(f"{plural(n, 'group')} of equal images {_has(n)} more than one label.")
    if n := sizes["num_smaller"]:
        what = "not enlarged" if manifest.resize == "longest" else "enlarged"
        small = f"smaller than {manifest.res} px and {'was' if n == 1 else 'were'} {what}"
        found["note"].append(f"{_share(n, 'original', sizes['num_images'])} {'is' if n == 1 else 'are'} {small}.")
    if manifest.fidelity is None:
        found["good"].append("Pixels are those of an exact decode.")
    else:
        psnr_db, n = manifest.fidelity["psnr_db"], manifest.fidelity["num_samples"]
        measured = f"{psnr_db} dB PSNR against an exact decode, measured on {plural(n, 'image')}"
        if psnr_db >= 99:
            found["good"].append(f"Pixels are those of an exact decode, as measured on {plural(n, 'image')}.")
        elif psnr_db < LOW_FIDELITY_DB:
            found["bad"].append(f"Fast decode: {measured}. Below {LOW_FIDELITY_DB:g} dB, fine detail differs visibly.")
        else:
            found["good"].append(f"Fast decode: {measured}.")
    if compared:
        theirs = "its original" if len(compared) == 1 else "their originals"
        against = f"{plural(len(compared), 'image')} compared with {theirs}"
        if compared[0].max_diff:
            found["note"].append(f"{against}: the worst has {compared[0].psnr_db:.2f} dB PSNR.")
        else:
            found["good"].append(f"{against}: all equal the exact decode.")
    found["note"].append("File sizes match the manifest. Contents are not checked here; mlpdata verify checks them.")
    return [(level, sentence) for level, sentences in found.items() for sentence in sentences]


def _share(n: int, noun: str, total: int) -> str:
    return f"{n:,} of {plural(total, noun)} ({n / total:.2%})"


def _has(n: int) -> str:
    return "has" if n == 1 else "have"
