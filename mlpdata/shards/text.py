"""Text of shard directories."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from mlpdata.errors import Error, first_line

# Bytes of a manifest or a class list, which are read at once. Those of ImageNet-21k have 1 MB, of 100,000 tars 20 MB.
MAX_TEXT_BYTES = 32 << 20
MAX_SHOWN = 120  # characters of a name that are shown


def open_file(path: Path) -> BinaryIO:
    """Open a regular file to read. Raises OSError; a FIFO or a device is refused: its reader may wait for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(fd, "rb")


def read_text(path: Path) -> bytes:
    """A file of at most MAX_TEXT_BYTES. Raises Error."""
    try:
        with open_file(path) as f:
            data = f.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        reason = getattr(e, "strerror", None) or first_line(e)
        raise Error(f"cannot read {path}: {reason}; get or convert it again") from None
    if len(data) > MAX_TEXT_BYTES:
        raise Error(f"{path} is damaged: it has more than {MAX_TEXT_BYTES >> 20} MB; get or convert it again")
    return data


def parse_json(data: bytes, name: object, kind: Any) -> Any:
    """JSON of a type, as msgspec knows types: no key twice, no NaN, no bool for a number. Raises Error.

    name: what the message calls it.
    """
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise Error(f"{name} is damaged ({first_line(e)}); get or convert it again") from None
    return conform(raw, kind, name)


def conform(raw: object, kind: Any, name: object) -> Any:
    """A value as the type it has to be of. Raises Error, in which it is called by `name`."""
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, ValueError, RecursionError) as e:
        raise Error(f"{name} is damaged ({first_line(e):.200}); get or convert it again") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a key twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(f"it has {constant} for a number")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON, one line where it is not indented, whatever a reader takes for the end of a line.

    >>> print(json_text({"café": "a\\u2028b\\udce9"}), end="")
    {"café": "a\\u2028b\\udce9"}
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return "".join(_with_escapes(line, lambda c: json.dumps(c)[1:-1]) + "\n" for line in text.split("\n"))


def shown(text: str) -> str:
    """A name for people to read: a terminal takes nothing in it for a command, and it is not endless.

    >>> print(shown("caf\\u202eé\\x1b[2J"))
    caf\\u202eé\\x1b[2J
    """
    return printable(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def printable(text: str) -> str:
    """A text with whatever is not printable as Python writes it in strings."""
    return _with_escapes(text, _escape)


def _with_escapes(text: str, escape) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else escape(c) for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
