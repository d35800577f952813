"""The axes of a sweep as they are written: what the cells along one change, block selectors and values checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from .errors import WeightError, nearest
from .families import Family
from .lora import Lora
from .selectors import select
from .values import is_vector, number_text, parse_number
from .weights import parse_elements

VALUES, BLOCKS, PRESETS, ELEMENTS, ANALYSE = "values", "blocks", "presets", "elements", "analyse"
FULL = "full"  # the cell of an analysis that leaves every block as it is

_ALL = re.compile(r"(\d{1,4})ALL", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what its cells change, and the cells as written, which are their labels too."""

    kind: str
    labels: tuple[str, ...]


def parse_axis(text: str, family: Family) -> Axis:
    """An axis as written: `values=0,0.5,1`, `blocks=BASE,IN01-IN08,17ALL`, `presets=NONE,MIDD`, `elements=...;...`.

    Raises WeightError.
    """
    kind, equals, written = (part.strip() for part in text.partition("="))
    if not equals or kind not in _CELLS:
        raise WeightError(
            f"axis {text!r} says neither of {', '.join(_CELLS)}",
            nearest(kind, _CELLS) if equals else "write KIND=CELL,CELL, as values=0,0.5,1 or blocks=BASE,IN01-IN08",
        )
    one_vector = kind == PRESETS and is_vector(written)
    separator = ";" if kind == ELEMENTS or one_vector or (kind == PRESETS and ";" in written) else ","
    cells = tuple(cell.strip() for cell in written.split(separator))
    if not all(cells):
        raise WeightError(f"axis {text!r} has an empty cell", f"write a cell on each side of every {separator!r}")
    return Axis(kind, tuple(label for cell in cells for label in _CELLS[kind](cell, family)))


def analysis(lora: Lora, family: Family, blocks: Axis | None) -> Axis:
    """The axis of an effective-block analysis: the whole LoRA, then it without each block that it has in turn."""
    present = {place.block for _, place in lora.placed(family)}
    labels = blocks.labels if blocks else (block for block in family.blocks if block in present)
    return Axis(ANALYSE, (FULL, *labels))


def _values(cell: str, _: Family) -> list[str]:
    try:
        return [number_text(parse_number(cell, "a value"))]
    except WeightError as error:
        raise WeightError(error.message, "write every value, as values=0,0.25,0.5,0.75,1") from None


def _blocks(cell: str, family: Family) -> list[str]:
    """A selector, or one for each block of a layout: `17ALL`. Raises WeightError."""
    match = _ALL.fullmatch(cell)
    if match is None:
        select(cell, family)
        return [cell]
    layout = family.lengths.get(int(match[1]))
    if layout is None:
        lengths = ", ".join(f"{length}ALL" for length in sorted(family.lengths))
        raise WeightError(f"{family.name} has no layout of {match[1]} blocks", f"known: {lengths}")
    return [block for block in layout if block in family.blocks]


def _elements(cell: str, family: Family) -> list[str]:
    if ":" not in cell:
        raise WeightError(
            f"{cell!r} is no element rule, BLOCKS:WORDS:WEIGHT",
            "write rules, as IN05-OUT05:attn:0.5; lbw presets show NAME prints those of an element preset",
        )
    for element in parse_elements(cell):
        select(element.blocks, family)
    return [cell]


# Kind -> the labels of a cell as written, once it is known to have a meaning.
_CELLS: dict[str, Callable[[str, Family], list[str]]] = {
    VALUES: _values,
    BLOCKS: _blocks,
    PRESETS: lambda cell, _: [cell],
    ELEMENTS: _elements,
}
