"""A JSON Schema of presets.yaml, for editors, made from the tables of families and blocks."""

from __future__ import annotations

from typing import Any

from ..families import FAMILIES
from ..values import NUMBER

_VALUE = rf"(?:{NUMBER.pattern}|[RU]3?|[AaBb]|X(?:[+-].+)?)"
_VECTOR = rf"^\s*{_VALUE}(?:\s*,\s*{_VALUE})+\s*$"
_RULES = r"^[^,=]+=.*$"
_POSITIONS = r"^\s*%.+=.+$"
_SELECTOR = r"^(?:NOT\s+)?(?:\*|[A-Za-z]+\d*(?:_[A-Za-z])?(?:-[A-Za-z]+\d*(?:_[A-Za-z])?)?|\d+%-\d+%)$"
_ELEMENT = r"^[^:]*:[^:]*:[^:]*(?:[,\n][^:]*:[^:]*:[^:]*)*$"


def preset_schema() -> dict[str, Any]:
    """The JSON Schema of presets.yaml, draft 2020-12."""
    source, value, text, rules = ({"$ref": f"#/$defs/{name}"} for name in ("source", "value", "text", "rules"))
    element = {"type": "string", "pattern": _ELEMENT}
    families = {name: {"description": family.title, **source} for name, family in FAMILIES.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Presets of LoRA block weights",
        "description": "A vector (one weight per block), a list, or a mapping of blocks and ranges, for any family "
        "or for each of several.",
        "type": "object",
        "propertyNames": {"pattern": r"^[^,:=<>%\s](?:[^,:=<>]*[^,:=<>\s])?$"},
        "additionalProperties": {"anyOf": [source, {"$ref": "#/$defs/families"}]},
        "$defs": {
            "value": {
                "description": "A number, R or U (drawn by --seed), X (--x), A or B (--a, --b).",
                "anyOf": [{"type": "number"}, {"type": "string", "pattern": f"^{_VALUE}$"}],
            },
            "text": {"type": "string", "anyOf": [{"pattern": pattern} for pattern in (_VECTOR, _RULES, _POSITIONS)]},
            "rules": {
                "description": "Blocks and ranges with a weight each; * means every block not named.",
                "type": "object",
                "propertyNames": {"pattern": _SELECTOR},
                "additionalProperties": value,
                "minProperties": 1,
            },
            "source": {
                "anyOf": [
                    text,
                    rules,
                    {"type": "array", "items": value, "minItems": 2},
                    {"type": "array", "items": text, "minItems": 1},
                ]
            },
            "elements": {
                "description": "Other weights for some layers of some blocks: BLOCKS:WORDS:WEIGHT.",
                "anyOf": [element, {"type": "array", "items": element, "minItems": 1}],
            },
            "families": {
                "type": "object",
                "properties": {
                    **families,
                    "weights": {"description": "For every family the weights fit.", **source},
                    "elements": {"$ref": "#/$defs/elements"},
                    "description": {"type": "string"},
                },
                "additionalProperties": False,
                "minProperties": 1,
            },
        },
    }
