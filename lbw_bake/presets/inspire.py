"""The Inspire Pack's own vector lengths, by block name.

It gives values to the blocks a LoRA has, in order, and repeats the last one. Its LyCORIS vectors count the three
layers of the middle block and leave out IN00, as the trainers do. The first value is that of everything else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..families import FAMILIES
from ..weights import Rules

# Family -> for each layout the selector of every value; a name given several times must have one value.
Selectors = tuple[tuple[str, ...], ...]


def _lycoris(family: str) -> Selectors:
    blocks = (block for block in FAMILIES[family].blocks if block != "IN00")
    return tuple((block,) for name in blocks for block in ((name,) * 3 if name == "MID" else (name,)))


def _numbered(letter: str) -> Selectors:
    return tuple((block,) for block in FAMILIES["flux"].blocks if block.startswith(letter) and block[-1].isdigit())


_FLUX_BASE = (("BASE", "IN", "OUT"),)
_DOUBLE, _SINGLE = _numbered("D"), _numbered("S")

LAYOUTS: dict[str, tuple[Selectors, ...]] = {
    "sd1": (_lycoris("sd1"),),
    "sdxl": (_lycoris("sdxl"),),
    # The last of 20 values goes on through the single blocks.
    "flux": ((*_FLUX_BASE, *_DOUBLE, *_SINGLE), (*_FLUX_BASE, *_DOUBLE[:-1], (*_DOUBLE[-1], "S"))),
}


def rules_of(values: Sequence[str]) -> dict[str, Rules]:
    """Family -> block rules, for each family in whose own layout this many values fit."""
    return {
        family: Rules(tuple(dict.fromkeys(_pairs(layout, values))))
        for family, layouts in LAYOUTS.items()
        for layout in layouts
        if len(layout) == len(values)
    }


def _pairs(layout: Selectors, values: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((name, value) for names, value in zip(layout, values, strict=True) for name in names)


def has_uneven_middle(rules: Rules) -> bool:
    """Whether the layers of the middle block have several values."""
    return len({value for name, value in rules.rules if name == "MID"}) > 1
