"""Text in shard directories: files read with a bound, strict JSON, names as people may see them."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import msgspec

from mlpdata.errors import Error, first_line, printable

# Bytes of a manifest or a class list, which are read at once. Those of ImageNet-21k have 1 MB, of 100,000 tars 20 MB.
MAX_TEXT_BYTES = 32 << 20
MAX_SHOWN = 120  # characters of a name that are shown


def open_file(path: Path, buffer_bytes: int = -1) -> BinaryIO:
    """Open a regular file to read. Raises OSError, also for a FIFO or a device, whose reader may wait for ever.

    buffer_bytes: read at a time; -1 leaves it to Python.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(fd, "rb", buffer_bytes)


def read_text(path: Path) -> bytes:
    """Read a file of at most MAX_TEXT_BYTES. Raises Error."""
    try:
        with open_file(path) as f:
            data = f.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as e:  # ValueError: a NUL in the path
        raise unreadable(path, e) from None
    if len(data) > MAX_TEXT_BYTES:
        raise damaged(path, f"it has more than {MAX_TEXT_BYTES >> 20} MB")
    return data


def read_own_text(path: str | Path, what: str) -> str:
    """A text that the user wrote, as any editor saves it. what: the file's name in messages. Raises Error."""
    try:
        with open_file(Path(path)) as f:
            data = f.read(MAX_TEXT_BYTES + 1)
    except (OSError, ValueError) as e:
        raise Error(f"cannot read {what}: {getattr(e, 'strerror', None) or first_line(e)}") from None
    if len(data) > MAX_TEXT_BYTES:
        raise Error(f"cannot read {what}: it has more than {MAX_TEXT_BYTES >> 20} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Error(f"cannot read {what}: it is not UTF-8 text") from None


def unreadable(name: object, error: Exception) -> Error:
    """The Error for a file of a shard directory that cannot be read."""
    reason = getattr(error, "strerror", None) or first_line(error)
    return Error(f"cannot read {name}: {reason}; get or convert it again")


def damaged(name: object, reason: Exception | str) -> Error:
    """The Error for a file of a shard directory that does not say what it has to say."""
    return Error(f"{name} is damaged ({first_line(reason):.200}); get or convert it again")


def parse_json(data: bytes, name: object, kind: Any) -> Any:
    """Parse JSON as a type, as msgspec knows types: no key twice, no NaN, no bool for a number.

    name: what the message calls the text. Raises Error.

    >>> parse_json(b'{"a": 1}', "a.json", dict[str, int])
    {'a': 1}
    """
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_without_twins, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        raise damaged(name, e) from None
    return conform(raw, kind, name)


def conform(raw: object, kind: Any, name: object) -> Any:
    """Convert a value to the type it has to be of. name: what the message calls the value. Raises Error."""
    try:
        return msgspec.convert(raw, kind)
    except (ValueError, msgspec.MsgspecError, RecursionError) as e:
        raise damaged(name, e) from None


def _without_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it has a key twice")
    return values


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"it has {constant} for a number")


def json_text(value: object, indent: int | None = None) -> str:
    """JSON in lines that every reader takes for lines: other characters that end a line are escaped.

    >>> print(json_text({"café": "a\\u2028b\\udce9"}), end="")
    {"café": "a\\u2028b\\udce9"}
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
    return f"{text}\n"


def shown(text: str) -> str:
    """A name for people to read: shortened, and with nothing in it that a terminal takes for a command.

    >>> print(shown("caf\\u202eé\\x1b[2J"))
    caf\\u202eé\\x1b[2J
    """
    return printable(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def rounded(values: Iterable[float]) -> str:
    """Numbers to four digits.

    >>> rounded([0.25, 1 / 3])
    '(0.2500, 0.3333)'
    """
    return "(" + ", ".join(f"{value:.4f}" for value in values) + ")"
