"""Which release an ImageNet archive is, recognised by its classes."""

from __future__ import annotations

import posixpath

from mlpdata import labels


def recognise(class_names: list[str], parents: list[str], has_class_tars: bool) -> str:
    """The release, from classes and layout, never from the archive's name; "cannot tell" where several fit.

    parents: the folders inside the archive that hold the classes. has_class_tars: whether classes are tars.

    winter21 is fall11 without 2,674 synsets, mostly of people. Which ones is published only for the -P sets: 771 of the
    11,221 classes of fall11-P are not in winter21-P. A fall11 archive has its share of those 771, a winter21 archive
    next to none.

    >>> recognise(["n99999999"], [], True)
    'unknown release (1 classes)'
    """
    classes, count = set(class_names), f"{len(class_names):,}"
    if classes == set(labels.classes("ilsvrc2012")):
        return "ILSVRC2012 (all 1,000 synsets)"
    fall11, p_fall11, p_winter21 = (set(labels.classes(name)) for name in ("fall11", "fall11-p", "winter21-p"))
    if len(classes - fall11) > len(classes) // 20:
        return f"unknown release ({count} classes)"
    people = len(classes & (p_fall11 - p_winter21))
    if any(posixpath.basename(parent).startswith("imagenet21k_") for parent in parents):
        if people:
            return f"fall11-P, processed and resized ({count} of 11,221 synsets)"
        if len(classes) > 500:
            return f"winter21-P, processed and resized ({count} of 10,450 synsets)"
        return f"fall11-P or winter21-P, cannot tell from {count} synsets, processed and resized"
    expected = len(classes) * len(p_fall11 - p_winter21) / len(fall11)
    if len(classes) > 19_167 or (expected >= 5 and people >= expected / 2):
        return f"fall11 ({count} of 21,841 synsets)"
    if expected >= 10 and people <= expected / 20:
        return f"winter21 ({count} of 19,167 synsets)"
    layout = "laid out as neither"
    if has_class_tars and parents in ([], [""]):
        layout = "laid out as fall11"
    elif has_class_tars and len(parents) == 1:
        layout = "laid out as winter21"
    return f"fall11 or winter21, cannot tell from {count} synsets, {layout}"
