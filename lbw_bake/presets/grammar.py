"""The parts all formats share: names, values, vectors, block selectors, element rules.

A reader takes a piece and yields what it means, with findings beside it. Where tools differ in what they read,
a `Dialect` says how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..errors import WeightError, listed
from ..families import FAMILIES, Family, letter_of
from ..positions import Positions, blocks_at
from ..selectors import block_hint, block_range, select
from ..values import NOT_FINITE, NUMBER, are_several, slip, variable_of
from ..weights import Element, Rules, Source, Vector, parse_source, split_rules
from ..words import counted
from .findings import Finding
from .text import WIDE_COMMA, Piece

RESERVED = ("XYZ", "ZYX")
NAMED = "name the blocks: IN04=-0.5"
MOST_ITEMS = 500  # in one selector or list of rules: no family has so many blocks
USUAL = 2.0  # weights beyond it are more often a lost decimal point than meant
# The blocks that the extension knows, of UNets and of Flux. Ranges have their ends in one of the lists; what stands
# alone may be a part of a name.
_IDS = tuple(frozenset("M00" if block == "MID" else block for block in FAMILIES[n].blocks) for n in ("sd1", "flux"))
_LETTERS = frozenset(letter_of(name) for names in _IDS for name in names)
_BREAKS_PROMPT = re.compile(r"[,:=<>\x00-\x1f\x7f-\x9f]|^%")


@dataclass(frozen=True, slots=True)
class Dialect:
    """What one tool reads: who it is, how it spells numbers and variables, and how many values it takes.

    `rare` are lengths that only some versions of it take; `unreadable` is what no name may hold where it ends a line;
    `draws` are its letters for random weights that are others here.
    """

    tool: str
    numbers: re.Pattern[str]
    variables: re.Pattern[str]
    lengths: tuple[int, ...] = ()
    rare: tuple[int, ...] = ()
    unreadable: re.Pattern[str] = re.compile(r"(?!)")
    draws: Mapping[str, str] = field(default_factory=dict)


LBW = Dialect("lbw", NUMBER, re.compile(r"[RU]3?|[AaBb]|X.*"))
EXTENSION = Dialect("the extension", NUMBER, re.compile(r"[RU]|X.*"), (12, 17, 20, 26, 61), (57,), re.compile("#"))
INSPIRE = Dialect(
    "the Inspire Pack",
    re.compile(r"-?\d+(?:\.\d+)?", re.ASCII),
    re.compile(r"[RrUuAaBb]"),
    (12, 17, 20, 21, 26, 27, 58),
    unreadable=re.compile("^[@#]"),
    draws={"R": "R3", "U": "U3", "r": "R3", "u": "U3"},
)


def check_name(name: Piece) -> Iterator[Finding]:
    """What is wrong with a preset's name, given with the spaces around it."""
    text = name.text.strip()
    name = name.of(text)
    if not text:
        yield name.finding("LBW204", "the preset has no name")
    elif match := _BREAKS_PROMPT.search(text):
        message = f"name {name.strip().shown()} holds {match[0]!r}, which a prompt takes for something else"
        yield name.strip().part(match.start()).finding("LBW204", message)
    elif text != name.text.strip("\t"):
        yield name.finding("LBW205", f"name {name.shown()} has a space at its edge")
    if text in RESERVED:
        yield name.strip().finding("LBW203", f"{text} is the extension's name for a plot value")


def check_value(value: Piece, dialect: Dialect) -> Iterator[Finding]:
    """What is wrong with one weight: at most one finding."""
    text = value.text
    variable = variable_of(dialect.draws.get(text, text))
    if not text:
        yield value.finding("LBW302", "a value is empty")
    elif NUMBER.fullmatch(text):
        yield from _check_number(value, dialect)
    elif NOT_FINITE.fullmatch(text):
        yield value.finding("LBW305", f"{text} is not a finite number")
    elif variable and not dialect.variables.fullmatch(text):
        yield value.finding("LBW309", f"{dialect.tool} does not know {text}, {variable.what}")
    elif variable:
        code = "LBW307" if variable.option == "--seed" else "LBW308"
        hint = f"bake it with {variable.option} NUMBER, or write a number"
        yield value.finding(code, f"{text} is {variable.what}: it needs {variable.option}", hint)
    elif variable_of(text.upper()):
        yield value.finding("LBW304", f"{text} is no variable, {text.upper()} is", f"write {text.upper()}")
    elif are_several(text):
        yield value.finding("LBW310", f"{value.shown()} gives the layers of one block several values")
    else:
        yield value.finding("LBW303", f"{value.shown()} is not a number", slip(text))


def _check_number(value: Piece, dialect: Dialect) -> Iterator[Finding]:
    number = float(value.text)
    if not math.isfinite(number):
        yield value.finding("LBW305", f"{value.text} is not a finite number")
    elif abs(number) > USUAL:
        yield value.finding("LBW306", f"{value.text} is beyond {USUAL:g}")
    elif not dialect.numbers.fullmatch(value.text):
        yield value.finding("LBW309", f"{dialect.tool} does not read the number {value.text}")


def read_vector(written: Piece, dialect: Dialect, families: Sequence[Family]) -> Iterator[Vector | Finding]:
    """The values of a vector written as one text with commas between."""
    ascii_only = written.text.replace(WIDE_COMMA, ",")
    if ascii_only != written.text:
        where = written.part(written.text.index(WIDE_COMMA))
        yield where.finding("LBW103", "full-width comma between values")
    pieces = [piece.strip() for piece in written.with_text(ascii_only).split(",")]
    if len(pieces) > 1 and not pieces[-1].text:
        yield written.part(len(written.text.rstrip()) - 1).finding("LBW302", "comma after the last value")
        pieces.pop()
    yield from read_values(pieces, written.strip(), dialect, families)


def read_values(
    values: Sequence[Piece], whole: Piece, dialect: Dialect, families: Sequence[Family]
) -> Iterator[Vector | Finding]:
    """The values of a vector. Its length must be the dialect's, or that of one of the families."""
    if len(values) == 1 and not values[0].text:
        yield whole.finding("LBW302", "the preset has no values", "write NAME: 1,0,0,...")
        return
    # A variable that stands in ten places is one defect.
    findings = [finding for value in values for finding in check_value(value, dialect)]
    if len(values) == 1:
        findings = [replace(finding, hint=slip(values[0].text) or finding.hint) for finding in findings]
    yield from {(finding.code, finding.message): finding for finding in reversed(findings)}.values()
    lengths = dialect.lengths or sorted({length for family in families for length in family.lengths})
    if len(values) in dialect.rare:
        yield whole.finding("LBW309", f"only some versions of {dialect.tool} take {len(values)} values")
    elif len(values) not in lengths and not (len(values) == 1 and any(finding.is_error for finding in findings)):
        yield _wrong_length(len(values), lengths, whole, dialect, families)
    yield Vector(tuple(dialect.draws.get(value.text, value.text) for value in values))


def _wrong_length(
    count: int, lengths: Collection[int], whole: Piece, dialect: Dialect, families: Sequence[Family]
) -> Finding:
    near = min(lengths, key=lambda length: (abs(length - count), length))
    values = counted(count, "value")
    taker = dialect.tool if dialect.lengths else families[0].name
    takes = f"{taker} takes {listed(map(str, sorted(lengths)))}, the nearest is {near}"
    if len(families) > 1 and not dialect.lengths:
        of = [family.name for family in families if near in family.lengths]
        takes = f"no family takes so many, the nearest is {near} ({listed(of)})"
    elsewhere = [family.name for family in FAMILIES.values() if dialect.lengths and count in family.lengths]
    hint = f"presets.yaml takes {count} values, for {listed(elsewhere)}" if elsewhere else ""
    if dialect is EXTENSION and count in INSPIRE.lengths:
        hint = f"give {near} values, or name the file lbw-preset.txt if it is one of {INSPIRE.tool}"
    return whole.finding("LBW301", f"{values}; {takes}", hint)


def read_source(written: Piece, families: Sequence[Family]) -> Iterator[Source | Finding]:
    """A vector, block rules or `%` rules in one text, as in presets.yaml."""
    if "=" not in written.text:
        yield from read_vector(written, LBW, families)
        return
    try:
        source = parse_source(written.text)
    except WeightError as error:
        yield written.finding("LBW303", error.message, error.hint)
        return
    if isinstance(source, Rules):
        rules = [(written.part(*match.span(1)), written.part(*match.span(2))) for match in split_rules(written.text)]
        yield from check_rules(rules, families)
    elif isinstance(source, Positions):
        yield from _check_positions(written, [selector for selector, _ in source.rules], families)
        for selector, value in source.rules:
            found = list(check_value(written.with_text(value), LBW))
            yield from found
            if not found and value.startswith("-") and float(value):
                yield written.finding("LBW303", f"{selector}={value} is negative, which % rules cannot be", NAMED)
    yield source


def _check_positions(written: Piece, selectors: Sequence[str], families: Sequence[Family]) -> Iterator[Finding]:
    """What keeps all families from knowing the blocks of `%` rules: said of the one that knows most of them."""
    kinds = [re.sub(r"\d.*", "", selector) for selector in selectors]
    best = max(families, key=lambda family: sum(_position_problem(one, family) is None for one in (*selectors, *kinds)))
    for selector in dict.fromkeys(selectors):
        if problem := _position_problem(selector, best):
            yield written.finding("LBW408", problem.message, problem.hint)


def _position_problem(selector: str, family: Family) -> WeightError | None:
    try:
        blocks_at(selector, family)
    except WeightError as error:
        return error
    return None


def check_rules(rules: Sequence[tuple[Piece, Piece]], families: Sequence[Family]) -> Iterator[Finding]:
    """What is wrong with block rules: unknown blocks, blocks that no one family has together, values."""
    if len(rules) > MOST_ITEMS:
        yield rules[0][0].finding("LBW507", f"{len(rules)} block rules are more than any family has blocks")
        return
    unknown = [
        selector.finding("LBW403", "the block has no name", "write * for all blocks no rule names")
        for selector, _ in rules
        if not selector.text.strip()
    ]
    unknown += (finding for selector, _ in rules for finding in check_selector(selector, families))
    yield from unknown
    if not unknown:
        yield from _check_together([selector for selector, _ in rules], families)
    for _, value in rules:
        yield from check_value(value, LBW)


def _check_together(selectors: Sequence[Piece], families: Sequence[Family]) -> Iterator[Finding]:
    best = max(families, key=lambda family: sum(knows(family, selector.text) for selector in selectors))
    for selector in selectors:
        if not knows(best, selector.text):
            yield selector.finding("LBW403", f"{best.name}, which has the other blocks, has no {selector.text}")


def check_selector(selector: Piece, families: Sequence[Family]) -> Iterator[Finding]:
    """What is wrong with a block selector: `IN04`, `IN04-IN08`, `NOT BASE`, several in a row."""
    items = list(selector.words())
    if len(items) > MOST_ITEMS:
        yield selector.finding("LBW507", f"{len(items)} selectors are more than any family has blocks")
        return
    if len(items) == 1 and items[0].text.upper() == "NOT":
        yield selector.finding("LBW403", "NOT names no block", "write NOT IN04, or NOT IN04-IN08")
        return
    for item in items[bool(items) and items[0].text.upper() == "NOT" :]:
        ends = list(item.split("-"))
        if len(ends) > 2:
            yield item.finding("LBW405", f"range {item.text} has {len(ends)} ends")
        elif not any(knows(family, item.text) for family in families):
            wrong = next((end for end in ends if not any(knows(family, end.text) for family in families)), item)
            yield _unknown_block(wrong, families)


def _unknown_block(item: Piece, families: Sequence[Family]) -> Finding:
    nowhere = f"{families[0].name} has no block" if len(families) == 1 else "no family has a block"
    message = f"{nowhere} {item.text}"
    if item.text.upper() == "NOT":
        return item.finding("LBW403", message, "NOT comes first and turns the whole list around")
    blocks = dict.fromkeys(block for family in families for block in ("BASE", *family.blocks))
    hint = block_hint(item.text, blocks)
    return item.finding("LBW403", message, "" if hint.startswith("known") else hint)


@lru_cache(maxsize=1 << 14)
def knows(family: Family, selector: str) -> bool:
    """Whether all blocks of a selector are the family's."""
    try:
        select(selector, family)
    except WeightError:
        return False
    return True


def read_element(
    written: Piece, dialect: Dialect, families: Sequence[Family] = tuple(FAMILIES.values())
) -> Iterator[Element | Finding]:
    """An element rule `BLOCKS:WORDS:WEIGHT`, for any of some families."""
    parts = [part.strip() for part in written.split(":")]
    if len(parts) != 3:
        colons = "1 colon" if len(parts) == 2 else f"{len(parts) - 1} colons"
        yield written.strip().finding("LBW401", f"element rule {written.strip().shown()} has {colons}, not 2")
        return
    blocks, words, weight = parts
    findings = [*_check_element_blocks(blocks, dialect, families), *_check_words(words, dialect)]
    if variable_of(weight.text):
        message = f"{weight.shown()} is not a number, which element rules need"
        findings.append(weight.finding("LBW303", message))
    else:
        findings += check_value(weight, EXTENSION)
    yield from findings
    if not any(finding.is_error for finding in findings):
        yield Element(blocks.text, words.text, float(weight.text))


def _check_element_blocks(blocks: Piece, dialect: Dialect, families: Sequence[Family]) -> Iterator[Finding]:
    findings = list(check_selector(blocks, families))
    yield from findings
    if findings:
        return
    for item in blocks.words():
        if dialect is EXTENSION and (problem := unportable(item.text)):
            yield item.finding("LBW309", problem)
        if any(_is_reversed(item.text, family) for family in families):
            yield item.finding("LBW404", f"range {item.text} is reversed")


def _check_words(words: Piece, dialect: Dialect) -> Iterator[Finding]:
    first = next(words.words(), words)
    if words.text.upper() == "NOT":
        yield words.finding("LBW407", "NOT names no word")
    elif first.text.upper() == "NOT" != first.text and dialect is EXTENSION:
        yield first.finding("LBW309", f"the extension writes {first.text} in capitals")
    if "." in words.text and dialect is EXTENSION:
        where = words.part(words.text.index("."))
        yield where.finding("LBW309", "the extension's names of layers have underscores, not dots")


def portable_blocks(selector: str) -> str:
    """The blocks of an element rule as the extension spells them; `unportable` says which words it does not know."""
    return "" if selector.strip() == "*" else re.sub(r"\bMID\b", "M00", " ".join(selector.upper().split()))


def portable_words(words: str) -> str:
    """The words of an element rule as the extension finds them: its keys have underscores, its NOT is in capitals."""
    return re.sub(r"(?i)^not(?= )", "NOT", " ".join(words.replace(".", "_").split()))


def unportable(item: str) -> str:
    """What keeps the extension from knowing a word of a block selector; empty if it does."""
    if "MID" in item.upper().split("-"):
        return "the extension calls the block M00, not MID"
    if item != item.upper():
        return f"the extension writes {item} in capitals"
    known = item in ("NOT", *_LETTERS) or any(set(item.split("-")) <= names for names in _IDS)
    return "" if known else f"the extension does not know {item}"


def _is_reversed(item: str, family: Family) -> bool:
    ends = item.split("-")
    if len(ends) != 2 or "%" in item or not knows(family, item):
        return False
    first, last = (block_range(end.upper(), family) for end in ends)
    return first.start > last.start
