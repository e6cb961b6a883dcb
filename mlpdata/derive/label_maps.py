"""Maps from the classes of a shard directory to others: from a file, to a published list, to CIFAR-100's coarse labels.

A map names every class of the directory once. Which label a new class gets follows from the map alone: its place in the
published list, or in the file.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpdata import labels
from mlpdata.errors import Error, first_line
from mlpdata.shards.classes import spellings
from mlpdata.shards.text import read_own_text, shown
from mlpdata.sources.keys import listed
from mlpdata.system.format import plural

COARSE = "cifar100-coarse"
NAMES = (COARSE, *labels.LISTS)  # of maps that need no file
# https://www.cs.toronto.edu/~kriz/cifar.html, in the order and spelling of the archive's `meta`.
CIFAR100_COARSE = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """New names for the classes of a shard directory."""

    names: dict[str, str]  # old name -> new name, in the old label order
    classes: tuple[str, ...]  # the new names in label order; of a published list all, with images or without
    left_out: tuple[str, ...] = ()  # old names that the map lacks, in the old label order
    absent: tuple[str, ...] = ()  # names that a file maps and the directory does not have: those lines have no effect


def read_label_map(given: str | Path, classes: Sequence[str], may_lack: bool = False) -> LabelMap:
    """The map that `--map` names.

    given:   one of NAMES, or a file: a JSON object {"old": "new"}, or lines of old name, TAB (or comma, with quotes as
             in CSV) and new name. A file named like one of NAMES is given as `./NAME`.
    classes: the directory's, by their names in the source, in label order.
    may_lack: a class that the map lacks is left out.
    Raises Error for a file that cannot be read as a map or names a class twice, and for a map that lacks classes or has
    none of them.

    >>> read_label_map("cifar100-coarse", ["apple", "wolf", "pear"]).names
    {'apple': 'fruit_and_vegetables', 'wolf': 'large_carnivores', 'pear': 'fruit_and_vegetables'}
    >>> read_label_map("fall11-p", ["n00005787", "n00004475"], may_lack=True).left_out
    ('n00004475',)
    """
    if str(given) == COARSE:
        coarse_of = {fine: coarse for coarse, fines in CIFAR100_COARSE.items() for fine in fines.split()}
        if strange := [name for name in classes if name not in coarse_of]:
            raise Error(f"{COARSE} is for CIFAR-100's 100 classes, which do not include {listed(strange, 3)}")
        return LabelMap(names={name: coarse_of[name] for name in classes}, classes=tuple(CIFAR100_COARSE))
    if str(given) in labels.LISTS:
        wnids = labels.classes(str(given))
        known = set(wnids)
        names = {name: name for name in classes if name in known}
        if not names:
            raise Error(f"none of the directory's classes is in {given}: {given} lists wnids, as {wnids[0]}")
        return LabelMap(names=names, classes=wnids, left_out=_left_out(given, names, classes, may_lack))
    path = Path(given)
    if not os.path.isfile(path):  # a long text is no path, which Path.is_file() may raise for
        raise Error(f"no such map: {shown(str(given))} is neither a file nor one of {', '.join(NAMES)}")
    pairs = _pairs(path, read_own_text(path, str(path)))
    return _checked(path, pairs, classes, may_lack)


def _pairs(path: Path, text: str) -> list[tuple[str, str]]:
    """(old, new) as a file has them. Raises Error."""
    if text.lstrip()[:1] == "{":
        return _json_pairs(path, text)
    lines = text.replace("\r\n", "\n").split("\n")
    reader = csv.reader(lines, skipinitialspace=True, strict=True)
    rows = (line.split("\t") for line in lines) if "\t" in text else reader
    pairs = []
    try:
        for row in rows:
            names = [name.strip() for name in row]
            if any(names) and len(names) != 2:
                raise csv.Error(
                    f"{', '.join(names)!r:.80}: {plural(len(names), 'name')} in a line for an old and a new one"
                )
            pairs += [(names[0], names[1])] if any(names) else []
    except csv.Error as e:
        raise Error(f"{path} is no map: {e}; write a line for a class: old name, TAB, new name") from None
    return pairs


def _json_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as e:
        raise Error(f"{path} is no map: {first_line(e)}; correct it") from None
    for old, new in pairs:
        if not isinstance(new, str):
            raise Error(f'{path} is no map: the new name of {shown(old)!r} is no text; write {{"old": "new", ...}}')
    return pairs


def _left_out(given: object, names: dict[str, str], classes: Sequence[str], may_lack: bool) -> tuple[str, ...]:
    """The classes that a map lacks. Raises Error where that may not be."""
    missing = tuple(name for name in classes if name not in names)
    if missing and not may_lack:
        raise Error(
            f"{given} does not map {len(missing):,} of the {plural(len(classes), 'class')}: {listed(missing, 3)}; add "
            "them, or leave their images out with --drop-unmapped"
        )
    return missing


def _checked(path: Path, pairs: list[tuple[str, str]], classes: Sequence[str], may_lack: bool) -> LabelMap:
    names: dict[str, str] = {}
    known = spellings(classes)
    for old, new in ((known.get(old, old), new) for old, new in pairs):
        if old in names:
            raise Error(f"{path} maps {shown(old)!r} twice; remove one of the lines")
        if not new or not new.isprintable():
            raise Error(f"{path} maps {shown(old)!r} to {shown(new)!r}, which is no name for a class")
        names[old] = new
    if not names:
        raise Error(f"{path} maps no class; write a line for a class: old name, TAB, new name")
    ordered = {name: names[name] for name in classes if name in names}
    if not ordered:
        example = f" ({shown(classes[0])} is one)" if classes else ""
        raise Error(
            f"{path} maps no class of the directory{example}: it maps {listed(list(names), 3)}; correct the map"
        )
    left_out = _left_out(path, names, classes, may_lack)
    absent = tuple(name for name in names if name not in ordered)
    new_names = dict.fromkeys(new for old, new in names.items() if old in ordered)
    return LabelMap(names=ordered, classes=tuple(new_names), left_out=left_out, absent=absent)
