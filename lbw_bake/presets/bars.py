"""Weights at a glance: one character per block, a gap between kinds of blocks."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from ..errors import LbwError
from ..families import Family, letter_of
from ..weights import Source, Vector, resolve
from .model import Entry, Preset

_LEVELS = "▁▂▃▄▅▆▇█"


def bar(weight: float) -> str:
    """A character for a weight from 0 to 1; `-` for one below, `+` for one above."""
    if weight < 0:
        return "-"
    return "+" if weight > 1 else _LEVELS[round(weight * (len(_LEVELS) - 1))]


def preset_bars(preset: Preset, family: Family | None) -> str:
    """The bars of a preset for a family, or else of its first entry; empty where it has none."""
    if family is None:
        return entry_bars(preset.entries[0]) if preset.entries else ""
    entries = preset.entries_for(family)
    return _bars(entries[0].source, family) if entries else ""


def entry_bars(entry: Entry) -> str:
    """The bars of one entry, in the layout it has or the usual one of its family; a variable is `?`."""
    family = next(iter(entry.families), None)
    if family is None:
        return ""
    if isinstance(entry.source, Vector):
        layout = family.lengths.get(len(entry.source.values), ())
        return _grouped(zip(layout, map(_written, entry.source.values), strict=False))
    return _bars(entry.source, family)


def _bars(source: Source, family: Family) -> str:
    """The bars of a source for a family; empty where it means nothing for it."""
    try:
        weights = resolve(source, family).blocks
    except LbwError:
        return ""
    return _grouped((block, bar(weights[block])) for block in family.layouts[0])


def _written(value: str) -> str:
    try:
        return bar(float(value))
    except ValueError:
        return "?"


def _grouped(marks: Iterable[tuple[str, str]]) -> str:
    groups = groupby(marks, key=lambda mark: letter_of(mark[0]))
    return " ".join("".join(character for _, character in group) for _, group in groups)
