"""`classes.txt` and `SPLIT.real.json`: what the classes are called, and images that have several true labels."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from mlpdata.errors import Error, printable
from mlpdata.shards.files import Count
from mlpdata.shards.manifest import Manifest, classes_path, real_path
from mlpdata.shards.text import damaged, parse_json, read_own_text, read_text, shown, unreadable
from mlpdata.sources import keys
from mlpdata.system.format import plural

MAX_REAL = 1000  # true labels of one image; ReaL's have at most 9
ESCAPE = re.compile(r"\\(?:\\|[tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")


def classes_text(classes: list[tuple[str, str]]) -> str:
    """`classes.txt`: one class a line, name in the source and, where it differs, TAB, readable name.

    Ordinary names stand as they are. Backslashes, and characters that are unprintable or end a name or a line for some
    reader, are written as Python writes them in strings.

    >>> classes_text([("n01440764", "tench, Tinca tinca"), ("café", "café"), ("a\\tb", "a\\tb")])
    'n01440764\\ttench, Tinca tinca\\ncafé\\na\\\\tb\\n'
    """
    rows = ((name,) if readable in (name, "") else (name, readable) for name, readable in classes)
    return "".join("\t".join(map(_escaped, row)) + "\n" for row in rows)


def read_classes(root: str | Path, manifest: Manifest | None = None) -> list[tuple[str, str]]:
    """(name in the source, readable name) of every class, in label order.

    manifest: whose class list it has to be; None takes any. Raises Error.
    """
    path = classes_path(Path(root))
    return parse_classes(read_text(path), path, manifest)


def parse_classes(data: bytes, name: object, manifest: Manifest | None = None) -> list[tuple[str, str]]:
    """As read_classes, of the text of a class list. name: what messages call it."""
    try:
        lines = [line.split("\t") for line in data.decode().removesuffix("\n").split("\n")] if data else []
        if any(len(line) > 2 for line in lines):
            raise ValueError("a line has more than two names")
        classes = [(_unescaped(line[0]), _unescaped(line[-1] or line[0])) for line in lines]
    except ValueError as e:
        raise unreadable(name, e) from None
    if manifest is not None and hashlib.sha256(data).hexdigest() != manifest.classes_sha256:
        raise Error(f"{name} is not the class list that the manifest names; get or convert it again")
    if manifest is not None and len(classes) != manifest.num_classes:
        raise Error(
            f"{name} lists {plural(len(classes), 'class')}, the manifest {manifest.num_classes:,}; convert again"
        )
    return classes


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """The names in a file that the user wrote for --classes: one a line, in its first column. Raises Error."""
    text = read_own_text(path, f"--classes {path}").replace("\r\n", "\n").replace("\r", "\n")
    return tuple(name for line in text.split("\n") if (name := line.split("\t")[0].strip(" ")))


def spellings(names: Iterable[str]) -> dict[str, str]:
    """Every name by what a user may write for it: itself, as `classes.txt` has it, without blanks around, and with
    accents as the keyboard or the file system forms them.

    >>> found = spellings(["a\\tb", " c", "c", "cafe\\u0301"])
    >>> found["a\\\\tb"] == "a\\tb", found[" c"], found["c"], found["caf\\xe9"] == "cafe\\u0301"
    (True, ' c', 'c', True)
    """
    names = list(names)
    found: dict[str, str] = {}
    for name in names:
        for text in (_escaped(name), name.strip(), _escaped(name).strip()):
            for form in ("NFC", "NFD"):
                found.setdefault(unicodedata.normalize(form, text), name)
    return found | dict(zip(names, names, strict=True))


def read_real(root: str | Path, manifest: Manifest, split: str) -> dict[str, list[int]] | None:
    """{key: labels} of a split whose images have several true labels each; None for other splits. Raises Error."""
    path = real_path(Path(root), split)
    if path.name not in manifest.files:
        return None
    real = parse_json(read_text(path), path, dict[str, Annotated[list[Count], Meta(max_length=MAX_REAL)]])
    if any(label >= manifest.num_classes for labels in real.values() for label in labels):
        raise damaged(path, f"it has labels of more than {plural(manifest.num_classes, 'class')}")
    return real


def distinct_names(classes: list[tuple[str, str]]) -> list[str]:
    """A readable name for each class, no name twice: Hugging Face datasets wants that, and ImageNet has two cranes.

    Unprintable characters are escaped.

    >>> distinct_names([("n02012849", "crane"), ("n03126707", "crane"), ("a\\n", "a\\n")])
    ['crane (n02012849)', 'crane (n03126707)', 'a\\\\n']
    """
    counts = Counter(readable for _, readable in classes)
    return keys.distinct(
        printable(readable if counts[readable] == 1 else f"{readable} ({name})") for name, readable in classes
    )


def short_names(classes: list[tuple[str, str]]) -> list[str]:
    """What tables call the classes: the first of a synset's names.

    >>> short_names([("n01440764", "tench, Tinca tinca"), ("a", ", b")])
    ['tench', 'a']
    """
    return [shown(readable.split(",")[0].strip() or name) for name, readable in classes]


def _escaped(name: str) -> str:
    return printable(name.replace("\\", "\\\\"))


def _unescaped(text: str) -> str:
    return ESCAPE.sub(lambda match: match[0].encode().decode("unicode_escape"), text)
