"""The prompt token of the LoRA Block Weight extension: `<lora:NAME:TE[:UNET][:lbw=PRESET|VECTOR][:te=][:unet=]...>`.

Also its form of early 2023, where the preset or vector stands in the place of a number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import LbwError, NotBakeableError, WeightError
from .values import NOT_FINITE, NUMBER, parse_number

_TOKEN = re.compile(r"\s*<\s*(?:lora|lyco)\s*:\s*[^:<>\s][^:<>]*((?::[^:<>]*)*)>\s*", re.IGNORECASE)
_ELEMENT_RULE = re.compile(rf":\s*lbwe\s*=\s*([^:=]*:[^:=]*:\s*{NUMBER.pattern})\s*(?=:|$)", re.IGNORECASE)
_SAMPLING = ("start", "stop", "step")
_ALIASES = {"w": "lbw"}
_KEYS = ("te", "unet", "lbw", "w", "lbwe", "x", *_SAMPLING)


@dataclass(frozen=True, slots=True)
class Token:
    """What a token says of a LoRA. `weights` is a preset's name or a vector, None for plain strength."""

    te: float
    unet: float
    weights: str | None = None
    element_presets: tuple[str, ...] = ()
    x: float | None = None


def looks_like_token(text: str) -> bool:
    """Whether this is meant to be a prompt token."""
    return text.lstrip().startswith("<")


def parse_token(text: str) -> Token:
    """Take a prompt token apart.

    Raises WeightError for what is no token, NotBakeableError for `start`, `stop` and `step`: they turn a LoRA on
    and off while an image is sampled, which no weight in a file can do.
    """
    match = _TOKEN.fullmatch(text)
    if match is None:
        inside = _TOKEN.match(text, max(text.find("<"), 0))
        hint = f"give {inside[0].strip()} alone" if inside else "paste it whole, as <lora:doraemon:0.7:lbw=MIDD>"
        raise WeightError(f"{text!r} is not a prompt token", hint)
    try:
        if rule := _ELEMENT_RULE.search(match[1]):
            raise WeightError(
                f"lbwe={rule[1]} is an element rule, lbwe= takes the name of a preset of them",
                f'leave it out and give it as --element "{rule[1]}"',
            )
        return _token([field.strip() for field in match[1].split(":") if field.strip()])
    except LbwError as error:
        raise type(error)(f"{text.strip()}: {error.message}", error.hint) from error


def _token(fields: list[str]) -> Token:
    strengths: list[float] = []
    keyed: dict[str, str] = {}
    for field in fields:
        key, equals, value = (part.strip() for part in field.partition("="))
        if equals:
            _put(keyed, _ALIASES.get(key.lower(), key.lower()), value)
    early = ""
    for field in (field for field in fields if "=" not in field):
        if early:
            raise WeightError(
                f"{field!r} after {early!r} could mean several things", f"write x={field}, unet={field} or lbwe={field}"
            )
        if NUMBER.fullmatch(field) or NOT_FINITE.fullmatch(field):
            strengths.append(parse_number(field, "a strength"))
        elif "@" in field:
            raise NotBakeableError(
                f"{field!r} changes the strength during sampling, a file cannot", "write one number there"
            )
        elif "lbw" in keyed:
            raise WeightError(
                f"{field!r} is no number, and lbw={keyed['lbw']} has the weights already",
                "leave it out, or write a number like 0.7",
            )
        else:
            early = keyed["lbw"] = field
    if sampling := [key for key in _SAMPLING if key in keyed]:
        raise NotBakeableError(
            f"{', '.join(sampling)} cannot be baked: it switches the LoRA during sampling, a file cannot",
            "leave it out, or keep using the extension for this prompt",
        )
    if len(strengths) > 2:
        raise WeightError(f"has {len(strengths)} strengths", "write one, or one for te and one for unet")
    te, unet = (strengths[0], strengths[-1]) if strengths else (1.0, 1.0)
    numbers = {key: parse_number(keyed[key], key) for key in ("te", "unet", "x") if key in keyed}
    element_presets = (keyed["lbwe"],) if "lbwe" in keyed else ()
    return Token(numbers.get("te", te), numbers.get("unet", unet), keyed.get("lbw"), element_presets, numbers.get("x"))


def _put(keyed: dict[str, str], key: str, value: str) -> None:
    if key not in _KEYS:
        raise WeightError(f"unknown key {key!r}", f"known: {', '.join(_KEYS)}")
    if key in keyed:
        raise WeightError(f"gives {key} twice", "leave one of them out")
    if not value:
        raise WeightError(f"{key}= is empty", "leave it out, or give it a value")
    keyed[key] = value
