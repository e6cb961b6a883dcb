"""The error a user can act on, how other people's exceptions become one line of it, and printable lines."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable


def printable(text: str) -> str:
    """A text of one line, whatever the names in it hold: what is not printable is written as Python writes it.

    >>> print(printable("caf\\u202eé\\nnew\\x1b[2J"))
    caf\\u202eé\\nnew\\x1b[2J
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable_lines(lines: Iterable[str]) -> str:
    """A text of several lines, each of which is one line whatever the names in it hold."""
    return "\n".join(map(printable, lines))


class Error(Exception):
    """A failure the user can act on; its text is one line: what, where, what to do. The command line exits with 1.

    Names of files and of what is in them may hold anything: what is not printable is shown escaped.

    >>> print(Error("cannot read two\\nlines"))
    cannot read two\\nlines
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class UsageError(Error):
    """A command that lacks something it needs, as --source: the command line exits with 2."""


def first_line(error: BaseException | str) -> str:
    """The first line of an exception's text that says anything; its type's name where none does.

    >>> first_line(ValueError("bad\\nworse")), first_line(MemoryError())
    ('bad', 'MemoryError')
    """
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), error if isinstance(error, str) else type(error).__name__)


def compiler_reason(error: BaseException) -> str:
    """Why something did not compile: the first line of the error, and the compiler's own word where it has its output.

    >>> compiler_reason(RuntimeError("C++ compile error\\n\\nCommand:\\ng++ a.cpp\\nOutput:\\na.cpp:3: error: no x.h"))
    'C++ compile error: a.cpp:3: error: no x.h'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    followed = lines[1:2] if lines[0].endswith(":") else []  # as "backend='inductor' raised:"
    said = next((line for line in lines[1:] if "error:" in line.lower() and line not in followed), "")
    first = " ".join([lines[0], *followed])
    return f"{first}{': ' if not first.endswith(':') else ' '}{said}" if said else first


def lacks_memory(error: BaseException) -> bool:
    """Whether an exception means that memory is exhausted, be it for the stack of a new thread."""
    return isinstance(error, MemoryError) or str(error) == "can't start new thread"


def cannot_read(name: object, error: OSError) -> Error:
    """The Error for a file or folder that the system does not let us read.

    >>> print(cannot_read("the folder a", PermissionError(13, "Permission denied")))
    cannot read the folder a: Permission denied
    """
    return Error(f"cannot read {name}: {error.strerror or first_line(error)}")


@contextlib.contextmanager
def reading(name: object) -> Generator[None, None, None]:
    """Raise an OSError of the block as the Error of `cannot_read`."""
    try:
        yield
    except OSError as e:
        raise cannot_read(name, e) from None
