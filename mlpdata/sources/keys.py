"""Keys, the names of samples in shards: the name of any class or file becomes a key that every reader accepts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_PLAIN = re.compile(r"(?!__)[\w-]+", re.ASCII)


def part(name: str) -> str:
    """A name as one part of a WebDataset key. Different names stay different, ordinary names stay as they are.

    A key ends at its first dot; `/` separates its parts; webdataset takes a part that begins with `__` for metadata;
    line ends and unprintable characters end names in one reader or another. All of these, and `%`, become %XX of their
    bytes, and so do bytes that are no UTF-8 (surrogate escapes).

    >>> part("n01440764"), part("a.b/c"), part("__background__"), part("two\\u2028lines"), part("caf\\udce9")
    ('n01440764', 'a%2Eb%2Fc', '%5F_background__', 'two%E2%80%A8lines', 'caf%E9')
    """
    if _PLAIN.fullmatch(name):
        return name
    text = "".join(c if c.isprintable() and c not in "%./\\" else _escaped(c) for c in name)
    return f"%5F{text[1:]}" if text.startswith("__") else text


def text(name: str) -> str:
    """A name as text that can be written as UTF-8: bytes that are no UTF-8 (surrogate escapes) become %XX.

    Unlike with part(), two names may become one: who makes class names of them has to check for that.

    >>> text("caf\\udce9"), text("100% a/b.jpg")
    ('caf%E9', '100% a/b.jpg')
    """
    try:
        name.encode()
        return name
    except UnicodeEncodeError:
        return "".join(_escaped(c) if "\ud800" <= c <= "\udfff" else c for c in name)


def shown(name: object) -> str:
    """A name for a message of one line: unchanged where it is printable, else escaped.

    >>> shown("my cats"), shown("two\\nlines")
    ('my cats', "'two\\\\nlines'")
    """
    return name if (name := str(name)).isprintable() else ascii(name)


def listed(names: Sequence[object], most: int = 5, rest: str = "more") -> str:
    """The first `most` names as a message shows them, and how many there are besides.

    >>> listed(["cats", "dogs", "owls"], 2)
    'cats, dogs and 1 more'
    """
    more = f" and {len(names) - most:,} {rest}" if len(names) > most else ""
    return ", ".join(map(shown, names[:most])) + more


def line(name: str) -> str:
    """A name as text of one line: unprintable characters, and bytes that are no UTF-8, become %XX.

    Unlike with part(), two names may become one: who makes class names of them has to check for that.

    >>> line("caf\\udce9"), line("two\\nlines"), line("100% a/b.jpg")
    ('caf%E9', 'two%0Alines', '100% a/b.jpg')
    """
    return name if name.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in name)


def folded(name: str) -> str:
    """What a file system that folds case and forms of accents takes a name for.

    >>> folded("Cafe\\u0301") == folded("caf\\xe9")
    True
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def alike(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that look the same, or nearly: they differ in case, blanks or the form of accents alone.

    >>> alike(["Cat", "dog", "cat ", "x", "caf\\xe9", "cafe\\u0301"]) == [("Cat", "cat "), ("caf\\xe9", "cafe\\u0301")]
    True
    """
    first: dict[str, str] = {}
    pairs = ((first.setdefault(" ".join(folded(name).split()), name), name) for name in names)
    return [(one, other) for one, other in pairs if one != other]


def out_of_count(names: Sequence[str]) -> int | None:
    """Where names are numbers in their order as text, the first position at which they do not count on; else None.

    >>> out_of_count(["1", "10", "2"]), out_of_count(["01", "02", "10"]), out_of_count(["10", "2", "1"])
    (1, None, None)
    """
    if not all(re.fullmatch(r"[0-9]{1,18}", name) for name in names) or list(names) != sorted(names):
        return None
    numbers = list(map(int, names))
    return next((i for i, pair in enumerate(zip(numbers, sorted(numbers), strict=True)) if pair[0] != pair[1]), None)


def lines(data: bytes) -> list[str]:
    """The names in a text file, one a line; blank lines, blanks and tabs around a name, and a byte order mark do not
    count.

    >>> lines(b"\\xef\\xbb\\xbfn01\\r\\n\\n  n02 x\\n")
    ['n01', 'n02 x']
    """
    names = text(data.decode("utf-8-sig", "surrogateescape")).split("\n")
    return [name for line in names if (name := line.strip(" \r\t"))]


def _escaped(character: str) -> str:
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", errors))


def distinct(keys: Iterable[str]) -> list[str]:
    """The keys in their order, with `-2`, `-3`, ... appended to every key that came before. Takes linear time.

    >>> distinct(["a", "b", "a", "a-2", "a"])
    ['a', 'b', 'a-2', 'a-2-2', 'a-3']
    """
    keys = list(keys)
    if len(set(keys)) == len(keys):
        return keys
    taken: set[str] = set()
    counts: dict[str, int] = {}
    unique = []
    for key in keys:
        name, n = key, counts.get(key, 1)
        while name in taken:
            n += 1
            name = f"{key}-{n}"
        counts[key] = n
        taken.add(name)
        unique.append(name)
    return unique
