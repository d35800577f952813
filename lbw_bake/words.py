"""Numbers, names and lists in words, as every message has them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import LbwError

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size_text(nbytes: float) -> str:
    """A number of bytes as people say it: `144 MB`."""
    return _in_units(nbytes, (" bytes", " kB", " MB", " GB"), precise=10)


def parse_size(text: str) -> int:
    """A size as people write it: `20GB`, `500 MB`, `1000`. Raises LbwError."""
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmgt]?)b?\s*", text, re.IGNORECASE)
    if match is None:
        raise LbwError(f"{text!r} is no size", "write it as 20GB or 500MB")
    return int(float(match[1]) * _SIZES[match[2].upper()])


def count_text(count: float) -> str:
    """A number of things as people say it: `19.3M`."""
    return _in_units(count, ("", "k", "M", "G"), precise=100)


def _in_units(number: float, units: Sequence[str], precise: float) -> str:
    """A number in the unit that suits it, each a thousand of the one before; below `precise` with a decimal."""
    *smaller, largest = units
    for unit in smaller:
        if number < 1000:
            return f"{number:.0f}{unit}" if unit == units[0] or number >= precise else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.2f}{largest}"


def counted(number: int, what: str) -> str:
    """So many things: `1 file`, `2 files`."""
    return f"{number} {what}{'s' * (number != 1)}"


def some(names: Iterable[str], limit: int = 8) -> str:
    """Names in words, the first of them if they are many."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def distinct(names: Iterable[str]) -> str:
    """Each name once, sorted."""
    return " ".join(sorted(set(names)))


def told_apart(paths: Iterable[Path]) -> list[str]:
    """What files are called without their suffix; those that share that have their folder before it."""
    paths = list(paths)
    stems = Counter(path.stem for path in paths)
    return [f"{path.parent.name or '.'}/{path.stem}" if stems[path.stem] > 1 else path.stem for path in paths]


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and `…` if it is longer than so many characters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
