"""Numbers for people: bytes, seconds and counts as text."""

from __future__ import annotations


def format_bytes(num_bytes: float) -> str:
    """Bytes with a decimal unit, of two digits at least.

    >>> [format_bytes(n) for n in (1, 12, 3_400, 145_000_000, 2_640_397_119, 1.1e12)]
    ['1 byte', '12 bytes', '3.4 kB', '145 MB', '2.6 GB', '1,100 GB']
    """
    unit = "byte" if num_bytes == 1 else "bytes"
    for larger in ("kB", "MB", "GB"):
        if num_bytes >= 1000:
            num_bytes, unit = num_bytes / 1000, larger
    return f"{num_bytes:,.0f} {unit}" if num_bytes >= 10 or unit.startswith("byte") else f"{num_bytes:.1f} {unit}"


def format_seconds(seconds: float) -> str:
    """Seconds up to a hundred, then minutes and seconds, then hours and minutes; days from a hundred hours on.

    >>> [format_seconds(s) for s in (9.6, 119.7, 200, 7500, 359_940, 360_000, 1e8)]
    ['10 s', '2:00 min', '3:20 min', '2:05 h', '99:59 h', '4.2 days', '1,157 days']
    """
    seconds = round(seconds)
    if seconds < 100:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes >= 6000:
        days = minutes / 1440
        return f"{days:,.{0 if days >= 9.95 else 1}f} days"
    return f"{seconds // 60}:{seconds % 60:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"


def format_rate(per_second: float, noun: str = "image") -> str:
    """How many of a thing a second, with a decimal below ten.

    >>> format_rate(17_849.8), format_rate(1), format_rate(9.96)
    ('17,850 images/s', '1.0 images/s', '10 images/s')
    """
    return f"{per_second:,.{0 if per_second >= 9.95 else 1}f} {inflected(noun)}/s"


def plural(number: int, noun: str) -> str:
    """A number and its noun.

    >>> plural(1, "epoch"), plural(20, "epoch"), plural(2_000, "step"), plural(2, "class"), plural(0, "batch")
    ('1 epoch', '20 epochs', '2,000 steps', '2 classes', '0 batches')
    """
    return f"{number:,} {inflected(noun, number)}"


def inflected(noun: str, number: int = 2) -> str:
    """A noun as it stands after a number."""
    ending = "es" if noun.endswith(("s", "x", "tch")) else "s"
    return noun if number == 1 else noun + ending
