"""Block selectors: `IN04`, `IN04-IN08`, `OUT`, `BASE`, `25%-75%`, `NOT ...` become blocks of a family, by name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from math import ceil

from .errors import WeightError, nearest
from .families import OTHER, Family, letter_of
from .values import slip

_DEPTHS = re.compile(r"(\d{1,3})%-(\d{1,3})%")


def select(text: str, family: Family) -> frozenset[str]:
    """The blocks a selector names: `IN04`, `IN04-IN08` (either order), `OUT` (all of that letter), `BASE`, `*`.

    `25%-75%` is the middle half of the stack. Several stand side by side; a leading `NOT ` means all others; empty
    means all. Raises WeightError, also for what names no block.
    """
    items = text.split()
    inverted = bool(items) and items[0].upper() == "NOT"
    named = frozenset(block for item in items[inverted:] for block in _select_item(item, family))
    if inverted and len(items) == 1:
        raise WeightError(f"{text.strip()!r} names no block", "write NOT IN04, or NOT IN04-IN08")
    if not items:
        return frozenset(family.blocks)
    return frozenset(family.blocks) - named if inverted else named


def block_range(name: str, family: Family) -> range:
    """Where a block, or all blocks of a letter, lie in the family's longest block list. Raises WeightError."""
    name = "MID" if name == "M00" else name
    named = family.text_encoder_blocks if name == "BASE" else (name,)
    blocks = enumerate(_vocabulary(family))
    positions = [i for i, block in blocks if block in named or letter_of(block) in named]
    if not positions:
        raise WeightError(f"{family.name} has no block {name!r}", lambda: block_hint(name, family.blocks))
    return range(positions[0], positions[-1] + 1)


def block_hint(name: str, blocks: Iterable[str]) -> str:
    """A hint for a block that none is: numbers have two digits."""
    return slip(name) or nearest(re.sub(r"(?<=[A-Za-z])(?=\d$)", "0", name), blocks)


def _select_item(item: str, family: Family) -> tuple[str, ...]:
    name = item.upper()
    if name == "*":
        return family.blocks
    if name == OTHER:
        return (OTHER,)
    if name == "BASE":
        return family.text_encoder_blocks
    if depths := _DEPTHS.fullmatch(name):
        first, last = sorted(int(depth) for depth in depths.groups())
        if last > 100:
            raise WeightError(f"{item} goes beyond the whole depth", "write percents up to 100, as in 25%-75%")
        stack = family.stack
        middles = ((100 * (i + 0.5) / len(stack), block) for i, block in enumerate(stack))
        inside = tuple(block for middle, block in middles if first < middle <= last)
        if not inside:
            share = ceil(100 / len(stack))
            raise WeightError(f"{item} holds no block of {family.name}", f"write a range of at least {share}%")
        return inside
    ends = [block_range(end, family) for end in name.split("-", 1)]
    start, stop = min(end.start for end in ends), max(end.stop for end in ends)
    selected = tuple(block for block in _vocabulary(family)[start:stop] if block in family.blocks)
    if not selected:
        raise WeightError(f"{family.name} has no block {name!r}", partial(nearest, name, family.blocks))
    return selected


def _vocabulary(family: Family) -> tuple[str, ...]:
    return max((family.blocks, *family.relatives), key=len)
