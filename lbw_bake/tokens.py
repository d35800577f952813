"""The prompt token of the LoRA Block Weight extension: `<lora:NAME:TE[:UNET][:lbw=PRESET|VECTOR][:te=][:unet=]...>`.

Also its form of early 2023, where the preset or vector stands in the place of a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import NotBakeableError, WeightError
from .weights import parse_number

_TOKEN = re.compile(r"\s*<\s*(?:lora|lyco)\s*:\s*([^:<>]+)((?::[^:<>]*)*)>\s*", re.IGNORECASE)
_SAMPLING = ("start", "stop", "step")
_ALIASES = {"w": "lbw"}
_KEYS = ("te", "unet", "lbw", "lbwe", "x", *_SAMPLING)


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says. `weights` is a preset's name or a vector, None for plain strength; so is `elements`."""

    name: str
    te: float
    unet: float
    weights: str | None = None
    elements: str | None = None
    x: float | None = None


def parse_token(text: str) -> Token:
    """Take a prompt token apart.

    Raises WeightError for what is no token, NotBakeableError for `start`, `stop` and `step`: they turn a LoRA on
    and off while an image is sampled, which no weight in a file can do.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        raise WeightError(f"{text!r} is not a prompt token", "paste it whole, as <lora:doraemon:0.7:lbw=MIDD>")
    numbers: list[float] = []
    keyed: dict[str, str] = {}
    for field in filter(None, (part.strip() for part in match[2].split(":"))):
        key, equals, value = (part.strip() for part in field.partition("="))
        key = _ALIASES.get(key.lower(), key.lower())
        if not equals and _is_number(field):
            numbers.append(float(field))
        elif not equals:
            _put(keyed, "lbw", field, text)
        elif key not in _KEYS:
            raise WeightError(f"{text}: unknown key {key!r}", f"known: {', '.join(_KEYS)}")
        else:
            _put(keyed, key, value, text)
    if sampling := [key for key in _SAMPLING if key in keyed]:
        raise NotBakeableError(
            f"{text}: {', '.join(sampling)} cannot be baked: it switches the LoRA during sampling, a file cannot",
            "leave it out, or keep using the extension for this prompt",
        )
    if len(numbers) > 2:
        raise WeightError(
            f"{text}: has {len(numbers)} strengths", "write one, or one for the text encoder and one for the UNet"
        )
    strengths = numbers or [1.0]
    return Token(
        match[1].strip(),
        _number(keyed, "te", strengths[0], text),
        _number(keyed, "unet", strengths[-1], text),
        keyed.get("lbw"),
        keyed.get("lbwe"),
        _number(keyed, "x", 0.0, text) if "x" in keyed else None,
    )


def _put(keyed: dict[str, str], key: str, value: str, text: str) -> None:
    if key in keyed:
        raise WeightError(f"{text}: gives {key} twice", "leave one of them out")
    keyed[key] = value


def _number(keyed: dict[str, str], key: str, default: float, text: str) -> float:
    return parse_number(keyed[key], f"{text}: {key}") if key in keyed else default


def _is_number(text: str) -> bool:
    try:
        parse_number(text, "")
    except WeightError:
        return False
    return True
