"""Weights: a vector, block rules or elements become one number for every block, and for every module.

Assigned by block name, never by position among the blocks a file happens to have. What is written is parsed
here, once; `Weights` holds plain floats.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import WeightCountError, WeightError, nearest
from .families import OTHER, Family, Place

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_VARIABLE = re.compile(r"X(?:([+-])(.+))?")
_RANDOM_RANGES = {"R": (0.0, 1.0), "U": (-0.5, 1.5)}  # as the extension draws them, to three decimals
_DEPTHS = re.compile(r"(\d+)%-(\d+)%")
_RULE = re.compile(r"((?:NOT\s+)?[^\s=,]+)\s*=\s*([^\s=,]*)\s*(?:,|\s|$)\s*")


@dataclass(frozen=True, slots=True)
class Vector:
    """One value per block of a layout, as written: numbers, `R`, `U`, `X`, `X+0.2`."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Block selectors with a value each, as written. Later rules win, but `*` means all blocks no other names."""

    rules: tuple[tuple[str, str], ...]


Source = Vector | Rules
ONES = Rules((("*", "1"),))


@dataclass(frozen=True, slots=True)
class Element:
    """An element rule: modules of these blocks whose path holds one of the words take this weight instead.

    `blocks` and `words` may start with `NOT `; empty means all. The grammar is the extension's.
    """

    blocks: str
    words: str
    weight: float

    def __str__(self) -> str:
        return f"{self.blocks}:{self.words}:{self.weight:g}"


@dataclass(frozen=True, slots=True)
class Options:
    """What modifies a source: see `lbw bake --help`. `x` and `seed` are needed only where the source uses them."""

    strength: float = 1.0
    te: float = 1.0
    unet: float = 1.0
    rest: float = 0.0
    other: float = 1.0
    invert: bool = False
    x: float | None = None
    seed: int | None = None
    elements: tuple[Element, ...] = ()


@dataclass(frozen=True, slots=True)
class Weights:
    """The resolved weights of a family: a finite float for every block, `OTHER` included.

    `layout` is the length of the vector they came from, None for rules; `unlisted` the blocks it did not list.
    """

    family: Family
    blocks: Mapping[str, float]
    layout: int | None = None
    unlisted: frozenset[str] = frozenset()
    options: Options = field(default_factory=Options)

    def of(self, place: Place, path: str) -> float:
        """The factor of a module's update."""
        weight = self.blocks[place.block]
        for element in self.options.elements:
            if matches_element(element, self.family, place, path):
                weight = element.weight
        component = self.options.unet if place.component == self.family.denoiser else self.options.te
        return weight * component * self.options.strength


def parse_source(text: str) -> Source:
    """A vector (`1,0,0.5,...`) or block rules (`BASE=1 IN04-IN08=0.5 *=0`). Raises WeightError."""
    if "=" in text:
        return Rules(tuple(_split_rules(text)))
    return Vector(tuple(value.strip() for value in text.split(",")))


def parse_number(text: str, what: str) -> float:
    """A finite decimal number. Raises WeightError naming `what` it was meant to be."""
    text = text.strip()
    if not text:
        raise WeightError(f"{what} is empty", "write a number, 0 to leave the block out")
    if not _NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        raise WeightError(f"{what} is {text!r}, not a finite number", "write a decimal number like 0.5")
    return number


def parse_element(text: str) -> Element:
    """An element rule `BLOCKS:WORDS:WEIGHT`. Raises WeightError."""
    parts = text.split(":")
    if len(parts) != 3:
        raise WeightError(
            f"element rule {text!r} has {len(parts) - 1} colons, not 2",
            "write BLOCKS:WORDS:WEIGHT, as IN05-OUT05:attn:0.5",
        )
    selector, words, weight = (part.strip() for part in parts)
    return Element(selector, words, parse_number(weight, f"the weight of element rule {text!r}"))


def resolve(source: Source, family: Family, options: Options | None = None) -> Weights:
    """The weights a source means for a family.

    Raises WeightCountError for a vector that fits no layout of the family, WeightError for anything that is
    not a number, an unknown block, or a variable without its option.
    """
    options = options or Options()
    evaluate = _Evaluator(options)
    layout = None
    if isinstance(source, Vector):
        layout = len(source.values)
        listed = _by_layout(source.values, family, evaluate)
    else:
        listed = _by_rules(source.rules, family, evaluate)
    unlisted = frozenset(family.blocks) - listed.keys()
    weights = {block: listed.get(block, options.rest) for block in family.blocks}
    if options.invert:
        weights = {block: 1.0 - weight for block, weight in weights.items()}
    weights[OTHER] = listed.get(OTHER, options.other)
    for element in options.elements:
        select(element.blocks, family)
    return Weights(family, weights, layout, unlisted, options)


def select(text: str, family: Family) -> frozenset[str]:
    """The blocks a selector names: `IN04`, `IN04-IN08` (either order), `OUT` (all of that letter), `BASE`, `*`.

    `25%-75%` is the middle half of the stack. Several stand side by side; a leading `NOT ` means all others; empty
    means all. Raises WeightError.
    """
    items = text.split()
    inverted = bool(items) and items[0].upper() == "NOT"
    named = frozenset(block for item in items[inverted:] for block in _select_item(item, family))
    if not items[inverted:]:
        return frozenset(family.blocks)
    return frozenset(family.blocks) - named if inverted else named


def matches_element(element: Element, family: Family, place: Place, path: str) -> bool:
    """Whether an element rule speaks of a module."""
    if place.block not in select(element.blocks, family):
        return False
    words = element.words.replace(".", "_").split()
    inverted = bool(words) and words[0] == "NOT"
    wanted = words[inverted:]
    return not wanted or any(word in path for word in wanted) != inverted


class _Evaluator:
    """Turns a written value into a number: variables and random draws need their option."""

    def __init__(self, options: Options) -> None:
        self._x = options.x
        self._random = None if options.seed is None else random.Random(options.seed)  # noqa: S311

    def __call__(self, text: str, what: str) -> float:
        if text in _RANDOM_RANGES:
            if self._random is None:
                raise WeightError(f"{what} is {text}, a random weight", "choose the draw with --seed NUMBER")
            return round(self._random.uniform(*_RANDOM_RANGES[text]), 3)
        if match := _VARIABLE.fullmatch(text):
            if self._x is None:
                raise WeightError(f"{what} is {text}, a variable", "give its value with --x NUMBER")
            shift = parse_number(match[2], f"the shift of {what}") if match[1] else 0.0
            return self._x - shift if match[1] == "-" else self._x + shift
        return parse_number(text, what)


def _by_layout(values: Sequence[str], family: Family, evaluate: _Evaluator) -> dict[str, float]:
    layout = family.lengths.get(len(values))
    numbers = [evaluate(value, f"weight {i} of {len(values)}") for i, value in enumerate(values, 1)]
    if layout is None:
        raise WeightCountError(len(values), family.name, family.lengths)
    return {block: number for block, number in zip(layout, numbers, strict=True) if block in family.blocks}


def _by_rules(rules: Iterable[tuple[str, str]], family: Family, evaluate: _Evaluator) -> dict[str, float]:
    listed: dict[str, float] = {}
    default: dict[str, float] = {}
    for selector, value in rules:
        number = evaluate(value, f"the weight of {selector}")
        if selector == "*":
            default = dict.fromkeys(family.blocks, number)
        else:
            listed |= dict.fromkeys(select(selector, family), number)
    return default | listed


def _split_rules(text: str) -> Iterable[tuple[str, str]]:
    position = 0
    text = text.strip()
    while position < len(text):
        match = _RULE.match(text, position)
        if match is None:
            raise WeightError(
                f"cannot read the block rule at {text[position:]!r}", "write BLOCK=WEIGHT, as BASE=1 IN04-IN08=0.5 *=0"
            )
        yield match[1], match[2]
        position = match.end()


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
        middles = ((100 * (i + 0.5) / len(family.stack), block) for i, block in enumerate(family.stack))
        return tuple(block for middle, block in middles if first < middle <= last)
    vocabulary = max((family.blocks, *family.relatives), key=len)
    ends = [_block(end, vocabulary, family) for end in name.split("-", 1)]
    start, stop = min(end.start for end in ends), max(end.stop for end in ends)
    return tuple(block for block in vocabulary[start:stop] if block in family.blocks)


def _block(name: str, vocabulary: tuple[str, ...], family: Family) -> range:
    """Where a block, or all blocks of a letter, lie in the vocabulary."""
    name = "MID" if name == "M00" else name
    if name in vocabulary:
        position = vocabulary.index(name)
        return range(position, position + 1)
    positions = [i for i, block in enumerate(vocabulary) if block.rstrip("0123456789") == name]
    if not positions:
        raise WeightError(f"{family.name} has no block {name!r}", nearest(name, family.blocks))
    return range(positions[0], positions[-1] + 1)
