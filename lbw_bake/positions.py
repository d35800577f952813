"""The Inspire Pack's `%` rules, which count blocks instead of naming them: `%default=0.5,in3=0,double=1`.

Its numbers count the blocks a LoRA has, from 1, so a position is accepted only where it is the same block in every
LoRA of the family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .errors import WeightError
from .families import Family
from .values import Evaluator, number_text

_POSITION = re.compile(r"default|base|(?:in|mid|out|double|single)(?:\d{1,4}(?:-\d{1,4})?)?")
_PARTS = re.compile(r"-|(?<=[a-z])(?=\d)")
# Inspire's names for numbered blocks, as regular expressions over ours.
_KINDS = {"in": r"IN\d+", "mid": "MID", "out": r"OUT\d+", "double": r"D\d+", "single": r"S\d+"}


@dataclass(frozen=True, slots=True)
class Positions:
    """Selectors with a value each, as written: `base`, `in`, `in3`, `single1-10`, `default`; later rules win."""

    rules: tuple[tuple[str, str], ...]


def parse_positions(text: str) -> Positions:
    """Take `%` rules apart. Raises WeightError."""
    rules = []
    for item in text.strip().removeprefix("%").split(","):
        selector, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not _POSITION.fullmatch(selector):
            raise WeightError(
                f"% rules know no {item.strip()!r}", "known: default= base= in= mid= out= double= single= in3= in1-4="
            )
        rules.append((selector, value))
    return Positions(tuple(rules))


def weigh_positions(rules: Iterable[tuple[str, str]], family: Family, evaluate: Evaluator) -> dict[str, float]:
    """Block -> weight, for all blocks of a family. Raises WeightError for a position that could be several blocks."""
    numbers = [(selector, evaluate(value, f"the weight of {selector}")) for selector, value in rules]
    if negative := next((selector for selector, number in numbers if number < 0), None):
        raise WeightError(
            f"the weight of {negative} is negative, which the Inspire Pack ignores in % rules",
            f"name the blocks: IN04={number_text(dict(numbers)[negative])}",
        )
    default = dict(numbers).get("default", 1.0)
    base = dict(numbers).get("base", default)
    numbered = frozenset(block for kind in _KINDS for layout in family.layouts for block in _of_kind(kind, layout))
    listed = {block: default if block in numbered else base for block in family.blocks}
    for selector, number in numbers:
        listed |= dict.fromkeys(blocks_at(selector, family), number)
    return listed


def blocks_at(selector: str, family: Family) -> frozenset[str]:
    """The blocks that `in3` or `in1-4` means, if that is the same for a LoRA of any of the family's layouts.

    `default` and `base` are none by position. Raises WeightError.
    """
    if selector in ("default", "base"):
        return frozenset()
    kind, *numbers = _PARTS.split(selector)
    # Where a family has one layout, its relatives' show what a LoRA of the attention alone may lack.
    layouts = family.layouts if len(family.layouts) > 1 else (*family.layouts, *family.relatives)
    found = [_of_kind(kind, layout) for layout in layouts]
    if not any(found):
        raise WeightError(f"{family.name} has no {kind} blocks", "name its blocks: IN04=0.5 D07=1")
    if not numbers:
        return frozenset().union(*found)
    span = slice(max(int(numbers[0]) - 1, 0), int(numbers[-1]))
    common = frozenset.intersection(*map(frozenset, found))
    meanings = [frozenset(blocks[span]) for blocks in found]
    if not all(meanings) or len({meaning & common for meaning in meanings}) > 1:
        choices = "; ".join(
            f"{' '.join(sorted(meaning)) or 'no block'} in one of {len(layout)} blocks"
            for meaning, layout in zip(meanings, layouts, strict=True)
        )
        meant = next(blocks for blocks in (*meanings, *(blocks[:1] for blocks in found)) if blocks)
        raise WeightError(
            f"{selector} counts the blocks a LoRA has: {choices}", f"name the blocks: {_by_name(meant, family)}"
        )
    return frozenset().union(*meanings)


def _by_name(blocks: Iterable[str], family: Family) -> str:
    """Rules for these blocks, neighbours as a range."""
    runs = groupby(enumerate(sorted(map(family.blocks.index, blocks))), key=lambda place: place[1] - place[0])
    ends = [[family.blocks[index] for _, index in run] for _, run in runs]
    return " ".join(f"{'-'.join(dict.fromkeys((run[0], run[-1])))}=0.5" for run in ends)


def _of_kind(kind: str, layout: Sequence[str]) -> list[str]:
    return [block for block in layout if re.fullmatch(_KINDS[kind], block)]
