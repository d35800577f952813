"""Weights: a vector, block rules or elements become one number for every block, and for every module.

Assigned by block name, never by position among the blocks a file happens to have. What is written is parsed
here, once; `Weights` holds plain floats.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from .errors import WeightCountError, WeightError, nearest
from .families import OTHER, Family, Place
from .values import Evaluator, number_text, parse_number

_DEPTHS = re.compile(r"(\d{1,3})%-(\d{1,3})%")
_RULE = re.compile(r"\s*((?:NOT\s+)?[^\s=,]+)\s*=\s*([^\s=,]*)\s*(?:,|\s|$)\s*")
_POSITION = re.compile(r"(default|base)|(in|mid|out|double|single)(?:(\d{1,4})(?:-(\d{1,4}))?)?")
# Inspire's names for numbered blocks, as regular expressions over ours.
_KINDS = {"in": r"IN\d+", "mid": "MID", "out": r"OUT\d+", "double": r"D\d+", "single": r"S\d+"}


@dataclass(frozen=True, slots=True)
class Vector:
    """One value per block of a layout, as written: numbers, `R`, `U`, `X`, `X+0.2`."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rules:
    """Block selectors with a value each, as written. Later rules win, but `*` means all blocks no other names."""

    rules: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Positions:
    """The Inspire Pack's `%` rules, as written: `base`, `in`, `in3`, `single1-10`, `default`; later rules win.

    Its numbers count the blocks a LoRA has, from 1.
    """

    rules: tuple[tuple[str, str], ...]


Source = Vector | Rules | Positions
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
        return f"{self.blocks}:{self.words}:{number_text(self.weight)}"


@dataclass(frozen=True, slots=True)
class Options:
    """What modifies a source: see `lbw bake --help`. `x`, `seed`, `a` and `b` are needed where the source uses them."""

    strength: float = 1.0
    te: float = 1.0
    unet: float = 1.0
    rest: float = 0.0
    other: float = 1.0
    invert: bool = False
    x: float | None = None
    seed: int | None = None
    elements: tuple[Element, ...] = ()
    a: float | None = None
    b: float | None = None


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
    """A vector (`1,0,0.5,...`), block rules (`BASE=1 IN04-IN08=0.5 *=0`) or `%` rules. Raises WeightError."""
    if text.lstrip().startswith("%"):
        return Positions(tuple(_split_positions(text)))
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
            raise WeightError(
                f"cannot read the block rule at {text[position:].strip()!r}",
                "write BLOCK=WEIGHT, as BASE=1 IN04-IN08=0.5 *=0",
            )
        yield match
        position = match.end()


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


def parse_elements(text: str) -> tuple[Element, ...]:
    """Element rules, separated by commas or lines. Raises WeightError."""
    rules = [rule for rule in re.split(r"[,\n]", text) if rule.strip()]
    return tuple(map(parse_element, rules or [text]))


def resolve(source: Source, family: Family, options: Options | None = None) -> Weights:
    """The weights a source means for a family.

    Raises WeightCountError for a vector that fits no layout of the family, WeightError for anything that is
    not a number, an unknown block, a variable without its option, or a position that could be several blocks.
    """
    options = options or Options()
    evaluate = Evaluator(x=options.x, seed=options.seed, a=options.a, b=options.b)
    layout = None
    if isinstance(source, Vector):
        layout = len(source.values)
        listed = _by_layout(source.values, family, evaluate)
    elif isinstance(source, Rules):
        listed = _by_rules(source.rules, family, evaluate)
    else:
        listed = _by_positions(source.rules, family, evaluate)
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
    if inverted and len(items) == 1:
        raise WeightError(f"{text.strip()!r} names no block", "write NOT IN04, or NOT IN04-IN08")
    if not items:
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
        number = evaluate(value, f"the weight of {selector}")
        if selector == "*":
            default = dict.fromkeys(family.blocks, number)
        else:
            listed |= dict.fromkeys(select(selector, family), number)
    return default | listed


def _by_positions(rules: Iterable[tuple[str, str]], family: Family, evaluate: Evaluator) -> dict[str, float]:
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
        if selector not in ("default", "base"):
            listed |= dict.fromkeys(_at_positions(selector, family), number)
    return listed


def _at_positions(selector: str, family: Family) -> frozenset[str]:
    """The blocks that `in3` or `in1-4` means, if that is the same for a LoRA of any of the family's layouts."""
    match = _POSITION.fullmatch(selector)
    if match is None:
        raise WeightError(f"% rules know no {selector!r}", "known: default base in mid out double single, in3, in1-4")
    kind, first, last = match[2], match[3], match[4]
    found = [_of_kind(kind, layout) for layout in family.layouts]
    if not any(found):
        raise WeightError(f"{family.name} has no {kind} blocks", "name its blocks: IN04=0.5 D07=1")
    if first is None:
        return frozenset().union(*found)
    span = slice(max(int(first) - 1, 0), int(last or first))
    common = frozenset.intersection(*map(frozenset, found))
    meanings = [frozenset(blocks[span]) for blocks in found]
    if not all(meanings) or len({meaning & common for meaning in meanings}) > 1:
        choices = "; ".join(
            f"{' '.join(sorted(meaning)) or 'no block'} in one of {len(layout)} blocks"
            for meaning, layout in zip(meanings, family.layouts, strict=True)
        )
        raise WeightError(
            f"{selector} counts the blocks a LoRA has: {choices}", f"name the blocks: {_example(meanings, found)}=0.5"
        )
    return frozenset().union(*meanings)


def _example(meanings: Iterable[frozenset[str]], found: Iterable[Sequence[str]]) -> str:
    return " ".join(sorted(next(filter(None, meanings), frozenset(next(iter(found))[:1]))))


def _of_kind(kind: str, layout: Sequence[str]) -> list[str]:
    return [block for block in layout if re.fullmatch(_KINDS[kind], block)]


def _split_positions(text: str) -> Iterator[tuple[str, str]]:
    for item in text.strip().removeprefix("%").split(","):
        selector, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not _POSITION.fullmatch(selector):
            raise WeightError(
                f"% rules know no {item.strip()!r}", "known: default= base= in= mid= out= double= single= in3= in1-4="
            )
        yield selector, value


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
        stack = family.stack
        middles = ((100 * (i + 0.5) / len(stack), block) for i, block in enumerate(stack))
        return tuple(block for middle, block in middles if first < middle <= last)
    ends = [block_range(end, family) for end in name.split("-", 1)]
    start, stop = min(end.start for end in ends), max(end.stop for end in ends)
    selected = tuple(block for block in _vocabulary(family)[start:stop] if block in family.blocks)
    if not selected:
        raise WeightError(f"{family.name} has no block {name!r}", partial(nearest, name, family.blocks))
    return selected


def block_range(name: str, family: Family) -> range:
    """Where a block, or all blocks of a letter, lie in the family's longest block list. Raises WeightError."""
    vocabulary = _vocabulary(family)
    name = "MID" if name == "M00" else name
    if name in vocabulary:
        position = vocabulary.index(name)
        return range(position, position + 1)
    positions = [i for i, block in enumerate(vocabulary) if block.rstrip("0123456789") == name]
    if not positions:
        raise WeightError(f"{family.name} has no block {name!r}", partial(nearest, name, family.blocks))
    return range(positions[0], positions[-1] + 1)


def _vocabulary(family: Family) -> tuple[str, ...]:
    return max((family.blocks, *family.relatives), key=len)
