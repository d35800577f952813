"""One weight as written: a number, or a token that an option turns into a number when baking."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import TYPE_CHECKING

from .errors import VariableError, WeightError

if TYPE_CHECKING:
    from random import Random

_UNSIGNED = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
NUMBER = re.compile(rf"[+-]?{_UNSIGNED}", re.ASCII)
NOT_FINITE = re.compile(r"[+-]?\.?(?:nan|inf|infinity)", re.IGNORECASE)
# As the extension draws them, to three decimals; R3 and U3 are what the Inspire Pack means by R and U.
RANDOM_RANGES = {"R": (0.0, 1.0), "U": (-0.5, 1.5), "R3": (0.0, 3.0), "U3": (-1.5, 1.5)}


@dataclass(frozen=True, slots=True)
class Variable:
    """A token that is no number yet: how it is spelled, what it is, and the option that settles it."""

    spelling: str
    what: str
    option: str


# Regular expressions as text here: few files need them, and compiling them would be a part of every start.
VARIABLES = (
    Variable(r"[RU]3?", "a random weight", "--seed"),
    Variable(rf"X(?:[+-]{_UNSIGNED})?", "a variable", "--x"),
    Variable(r"[Aa]", "a variable of the Inspire Pack, 4 by its default", "--a"),
    Variable(r"[Bb]", "a variable of the Inspire Pack, 1 by its default", "--b"),
)


@dataclass(frozen=True, slots=True)
class Slip:
    """Weights written as other tools have them: what shows it, what to say, and what is wrong there and what right."""

    shape: str
    hint: str
    wrong: str = ""
    right: str = ""


_N = NUMBER.pattern
_GAP = r"(?:\s*[;\uff1b\uff0c\u3001]\s*|\s+)"
SLIPS = (
    Slip(rf"{_N}(?:{_GAP}{_N})+", "separate the values with commas: {}", _GAP, ","),
    Slip(rf"[\[(]\s*{_N}.*", "write the values without brackets"),
    Slip(rf"[\w-]+\s*:\s*{_N}(?:[\s,]+[\w-]+\s*:\s*{_N})*", "write {}", r"\s*:\s*", "="),
    Slip(r"[^\W\d]\w*(?:\.\.+|[~:\u2013])\w+", "write the range as {}", r"\.\.+|[~:\u2013]", "-"),
)
NAME_SLIPS = (
    *SLIPS,
    Slip(_N, "that is one weight for everything: --strength {}"),
    Slip("(?i:FLUXALL)", "the extension's FLUXALL is ALL here, for every family: --preset ALL"),
    Slip(r"<.*", "that is a prompt token: give it as --token"),
    Slip(rf"{_N}(?:\s*,\s*{_N})+|[^=]+=.*", "that is no name: give it as --weights"),
    Slip(r"[^,]+(?:,[^,]+)+", "give each by itself: --preset {}", r"\s*,\s*", " --preset "),
)
_LONGEST = 500  # characters of what is worth writing again


def slip(text: str, slips: Iterable[Slip] = SLIPS) -> str:
    """A hint how to write what was probably meant; empty if nothing is known."""
    text = text.strip()
    found = next((one for one in slips if len(text) <= _LONGEST and re.fullmatch(one.shape, text)), None)
    return found.hint.format(re.sub(found.wrong, found.right, text)) if found else ""


def parse_number(text: str, what: str) -> float:
    """A finite decimal number. Raises WeightError naming `what` it was meant to be."""
    text = text.strip()
    if not text:
        raise WeightError(f"{what} is empty", "write a number, 0 to leave the block out")
    if not NUMBER.fullmatch(text) or not math.isfinite(number := float(text)):
        raise WeightError(f"{what} is {text!r}, not a finite number", slip(text) or "write a decimal number like 0.5")
    return number


def finite(number: float, what: str) -> float:
    """A number of any type as the float it is. Raises WeightError, naming `what` it was meant to be, for others."""
    try:
        if math.isfinite(number):
            return float(number)
    except (TypeError, ValueError, OverflowError):
        pass
    raise WeightError(f"{what} is {number!r}, not a finite number", "give a decimal number like 0.5")


def whole(number: int, what: str) -> int:
    """A whole number of any type. Raises WeightError, naming `what` it was meant to be, for others."""
    try:
        return int(index(number))
    except TypeError:
        raise WeightError(f"{what} is {number!r}, not a whole number", "give a whole number like 4") from None


def number_text(number: float) -> str:
    """The shortest text that reads back as this number: `1`, `0.5`."""
    return repr(number).removesuffix(".0")


def variable_of(text: str) -> Variable | None:
    """The variable this text spells, if it spells one."""
    return next((variable for variable in VARIABLES if re.fullmatch(variable.spelling, text, re.ASCII)), None)


def are_several(text: str) -> bool:
    """Whether these are weights with spaces between."""
    words = text.split()
    return len(words) > 1 and _are_weights(words)


def is_vector(text: str) -> bool:
    """Whether these are weights with commas between, not names of presets: of letters alone it cannot be told."""
    words = [word.strip() for word in text.split(",")]
    return _are_weights(words) and any(map(NUMBER.fullmatch, words))


def _are_weights(words: Iterable[str]) -> bool:
    return all(NUMBER.fullmatch(word) or variable_of(word) for word in words)


class Evaluator:
    """Turns written weights into numbers, one after the other: random draws come in the order they are asked for."""

    def __init__(
        self, *, x: float | None = None, seed: int | None = None, a: float | None = None, b: float | None = None
    ) -> None:
        self._settled = {"--x": x, "--a": a, "--b": b, "--seed": seed}

    def __call__(self, text: str, what: str) -> float:
        """The number. Raises WeightError for what is none, and for a variable whose option is missing."""
        text = text.strip()
        variable = variable_of(text)
        if variable is None:
            return self._number(text, what)
        settled = self._settled[variable.option]
        if settled is None:
            raise VariableError(f"{what} is {text}, {variable.what}", variable.option)
        if text in RANDOM_RANGES:
            return round(self._random.uniform(*RANDOM_RANGES[text]), 3)
        if text in ("a", "b"):
            return settled / 2
        number = settled + float(text[1:] or 0) if text.startswith("X") else settled
        if not math.isfinite(number):
            raise WeightError(f"{what} is {text} = {number}, not a finite number", f"use a smaller {variable.option}")
        return number

    @cached_property
    def _random(self) -> Random:
        from random import Random  # few vectors draw, and importing it takes a millisecond of every start

        return Random(self._settled["--seed"])  # noqa: S311

    @staticmethod
    def _number(text: str, what: str) -> float:
        if are_several(text):
            raise WeightError(
                f"{what} is {text!r}: several values for the layers of one block", "give each block one value"
            )
        if variable_of(text.upper()):
            raise WeightError(f"{what} is {text!r}, not a finite number", f"variables are capital: {text.upper()}")
        return parse_number(text, what)
