"""A vector, block rules or elements become one number for every block of a family, and for every module.

Assigned by block name, never by position among the blocks a file happens to have. What is written is parsed
here, once; `FamilyWeights` are plain floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .errors import WeightCountError, WeightError
from .families import OTHER, Family, Place
from .positions import Positions, parse_positions, weigh_positions
from .selectors import select
from .values import Evaluator, finite, number_text, parse_number, whole

_RULE = re.compile(r"\s*((?:NOT\s+)?[^\s=,]+)\s*=\s*([^\s=,]*)\s*(?:,|\s|$)\s*")


@dataclass(frozen=True, slots=True)
class Vector:
    """One value per block of a layout, as written: numbers, `R`, `U`, `X`, `X+0.2`."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Block selectors with a value each, as written. Later rules win, but `*` means all blocks no other names."""

    rules: tuple[tuple[str, str], ...]


Source = Vector | Rules | Positions
ONES = Rules((("*", "1"),))


@dataclass(frozen=True, slots=True)
class Element:
    """An element rule: modules of these blocks whose path holds one of the words take this weight instead.

    `blocks` and `words` may start with `NOT `; empty means all, `OTHER` too. The grammar is the extension's, and so
    are the paths: what hosts call the layers.
    """

    blocks: str
    words: str
    weight: float

    def __str__(self) -> str:
        return f"{self.blocks}:{self.words}:{number_text(self.weight)}"


@dataclass(frozen=True, slots=True)
class Options:
    """What modifies a source. `x`, `seed`, `a` and `b` are what its variables are, needed where it uses them.

    `strength` multiplies every module, `te` those of text encoders, `unet` those of the UNet or transformer. `rest` is
    the weight of blocks that the source does not list, `other` that of `OTHER`, None for what the source says of it,
    or 1. With `invert` every block weight w becomes 1 - w. `elements` are rules as `Weights.parse` reads them.
    Numbers of any type become floats, the seed an int. Raises WeightError for what is not a finite number, for a seed
    that is not a whole one from 0 on, and for element rules that are still texts.
    """

    strength: float = 1.0
    te: float = 1.0
    unet: float = 1.0
    rest: float = 0.0
    other: float | None = None
    invert: bool = False
    x: float | None = None
    seed: int | None = None
    elements: tuple[Element, ...] = ()
    a: float | None = None
    b: float | None = None

    def __post_init__(self) -> None:
        for name in ("strength", "te", "unet", "rest"):
            object.__setattr__(self, name, finite(getattr(self, name), name))
        for name, parse in (("other", finite), ("x", finite), ("a", finite), ("b", finite), ("seed", whole)):
            if (number := getattr(self, name)) is not None:
                object.__setattr__(self, name, parse(number, name))
        if self.seed is not None and self.seed < 0:  # the generator would take it for its opposite
            raise WeightError(f"seed {self.seed} is negative", "give a whole number from 0 on")
        object.__setattr__(self, "elements", tuple(self.elements))
        if wrong := [one for one in self.elements if not isinstance(one, Element)]:
            raise WeightError(
                f"element rule {wrong[0]!r} is not understood yet", "give it to Weights.parse(elements=...)"
            )


@dataclass(frozen=True, slots=True)
class FamilyWeights:
    """The resolved weights of a family: a finite float for every block, `OTHER` included.

    `layout` is the length of the vector they came from, None for rules; `unlisted` the blocks it did not list, `named`
    those a rule names one by one.
    """

    family: Family
    blocks: Mapping[str, float]
    layout: int | None = None
    unlisted: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()
    options: Options = field(default_factory=Options)

    @property
    def by_relative(self) -> bool:
        """Whether they came from a vector that only a relative of the family has a layout for."""
        return self.layout is not None and self.layout not in map(len, self.family.layouts)

    def of(self, place: Place, path: str) -> float:
        """The factor of a module's update. Raises WeightError if it is too large to be a number."""
        weight = self.blocks[place.block]
        for element in self.options.elements:
            if matches_element(element, self.family, place, path):
                weight = element.weight
        component = self.options.unet if place.component == self.family.denoiser else self.options.te
        factor = weight * component * self.options.strength
        # -0.0 is 0.0 to whatever remembers what was made of weights, but printed as another number.
        return finite(factor, f"the weight of {place.block}, all multiplied,") + 0.0


def parse_source(text: str) -> Source:
    """A vector (`1,0,0.5,...`), block rules (`BASE=1 IN04-IN08=0.5 *=0`) or `%` rules. Raises WeightError."""
    if text.lstrip().startswith("%"):
        return parse_positions(text)
    if "=" in text:
        return Rules(tuple((match[1], match[2]) for match in split_rules(text)))
    return Vector(tuple(value.strip() for value in text.split(",")))


def written_out(text: str) -> bool:
    """Whether this is a vector or rules, not a preset's name."""
    return "," in text or "=" in text or text.lstrip().startswith("%")


def split_rules(text: str) -> Iterator[re.Match[str]]:
    """The block rules in a text: groups 1 and 2 are the selector and the value. Raises WeightError."""
    position = 0
    while position < len(text):
        match = _RULE.match(text, position)
        if match is None:
            rest = text[position:].strip()
            point = "a point, not a comma, begins decimals: MID=0.5"
            hint = point if rest[:1].isdigit() else "write BLOCK=WEIGHT, as BASE=1 IN04-IN08=0.5 *=0"
            raise WeightError(f"cannot read the block rule at {rest!r}", hint)
        yield match
        position = match.end()


def parse_element(text: str) -> Element:
    """An element rule `BLOCKS:WORDS:WEIGHT`. Raises WeightError."""
    parts = text.split(":")
    if len(parts) != 3:
        raise WeightError(
            f"element rule {text!r} needs 2 colons, not {len(parts) - 1}",
            "write BLOCKS:WORDS:WEIGHT, as IN05-OUT05:attn:0.5",
        )
    selector, words, weight = (part.strip() for part in parts)
    if words.upper() == "NOT":
        raise WeightError(
            f"element rule {text!r} says NOT of no word", "write the words it is not for: IN05:NOT attn:0.5"
        )
    return Element(selector, words, parse_number(weight, f"the weight of element rule {text!r}"))


def parse_elements(text: str) -> tuple[Element, ...]:
    """Element rules, separated by commas or lines. Raises WeightError."""
    rules = [rule for rule in re.split(r"[,\n]", text) if rule.strip()]
    return tuple(map(parse_element, rules or [text]))


def resolve(source: Source, family: Family, options: Options | None = None) -> FamilyWeights:
    """The weights a source means for a family.

    Raises WeightCountError for a vector that fits no layout of the family, WeightError for anything that is
    not a number, an unknown block, a variable without its option, or a position that could be several blocks.
    """
    options = options or Options()
    evaluate = Evaluator(x=options.x, seed=options.seed, a=options.a, b=options.b)
    layout = None
    named: frozenset[str] = frozenset()
    if isinstance(source, Vector):
        layout = len(source.values)
        listed = _by_layout(source.values, family, evaluate)
    elif isinstance(source, Rules):
        listed = _by_rules(source.rules, family, evaluate)
        chosen = (select(selector, family) for selector, _ in source.rules if selector != "*")
        named = frozenset[str]().union(*(blocks for blocks in chosen if len(blocks) == 1))
    else:
        listed = weigh_positions(source.rules, family, evaluate)
    unlisted = frozenset(family.blocks) - listed.keys()
    weights = {block: listed.get(block, options.rest) for block in family.blocks}
    if options.invert:
        weights = {block: 1.0 - weight for block, weight in weights.items()}
    weights[OTHER] = listed.get(OTHER, 1.0) if options.other is None else options.other
    for element in options.elements:
        try:
            select(element.blocks, family)
        except WeightError as error:
            raise error.about(f"element rule {element}") from None
    return FamilyWeights(family, weights, layout, unlisted, named, options)


def matches_element(element: Element, family: Family, place: Place, path: str) -> bool:
    """Whether an element rule speaks of a module."""
    if element.blocks.strip() and place.block not in select(element.blocks, family):
        return False
    words = element.words.replace(".", "_").split()
    if not words:
        return True
    inverted = words[0].upper() == "NOT"
    path = family.host_name(path)
    return any(family.host_name(word) in path for word in words[inverted:]) != inverted


def _by_layout(values: Sequence[str], family: Family, evaluate: Evaluator) -> dict[str, float]:
    layout = family.lengths.get(len(values))
    numbers = [evaluate(value, f"weight {i} of {len(values)}") for i, value in enumerate(values, 1)]
    if layout is None:
        raise WeightCountError(len(values), family.name, family.lengths)
    return {block: number for block, number in zip(layout, numbers, strict=True) if block in family.blocks}


def _by_rules(rules: Iterable[tuple[str, str]], family: Family, evaluate: Evaluator) -> dict[str, float]:
    listed: dict[str, float] = {}
    default: dict[str, float] = {}
    for selector, value in rules:
        if not selector.strip():  # of an element rule this is all blocks, but here a name was forgotten
            raise WeightError(f"the block that weighs {value} has no name", "write * for all blocks no rule names")
        number = evaluate(value, f"the weight of {selector}")
        if selector == "*":
            default = dict.fromkeys(family.blocks, number)
        else:
            listed |= dict.fromkeys(select(selector, family), number)
    return default | listed
