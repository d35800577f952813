"""Weights at a glance: one character per block, a gap between kinds of blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from ..errors import LbwError
from ..families import FAMILIES, Family
from ..weights import Vector, resolve
from .model import Entry, Preset

_LEVELS = "▁▂▃▄▅▆▇█"
_BELOW, _ABOVE, _OPEN = "-", "+", "?"


def bar(weight: float) -> str:
    """A character for a weight from 0 to 1; `-` for one below, `+` for one above."""
    if weight < 0:
        return _BELOW
    return _ABOVE if weight > 1 else _LEVELS[round(weight * (len(_LEVELS) - 1))]


def preset_bars(preset: Preset, family: Family | None = None) -> str:
    """The bars of a preset for a family, or else of its first entry; empty where it has none."""
    try:
        if family:
            return bars(resolve(preset.source_for(family), family).blocks, family.layouts[0])
        return entry_bars(preset.entries[0]) if preset.entries else ""
    except LbwError:
        return ""


def entry_bars(entry: Entry) -> str:
    """The bars of one entry, in the layout it has or the usual one of its family; a variable is `?`."""
    family = next((family for family in FAMILIES.values() if _is_for(entry, family)), None)
    if family is None:
        return ""
    if isinstance(entry.source, Vector):
        layout = family.lengths[len(entry.source.values)]
        return _grouped((block, _written(value)) for block, value in zip(layout, entry.source.values, strict=True))
    try:
        return bars(resolve(entry.source, family).blocks, family.layouts[0])
    except LbwError:
        return ""


def bars(weights: Mapping[str, float], layout: Iterable[str]) -> str:
    """The bars of these blocks."""
    return _grouped((block, bar(weights[block])) for block in layout)


def _is_for(entry: Entry, family: Family) -> bool:
    if entry.family and entry.family != family.name:
        return False
    return entry.length is None or entry.length in (family.lengths if entry.family else map(len, family.layouts))


def _written(value: str) -> str:
    try:
        return bar(float(value))
    except ValueError:
        return _OPEN


def _grouped(marks: Iterable[tuple[str, str]]) -> str:
    groups = groupby(marks, key=lambda mark: mark[0].rstrip("0123456789"))
    return " ".join("".join(character for _, character in group) for _, group in groups)
