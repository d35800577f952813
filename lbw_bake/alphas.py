"""What loaders multiply the product of a module's factors by: alpha / rank, wherever a file says it.

PEFT files have no alpha. diffusers keeps the adapter's configuration in the metadata, PEFT beside the file; without
either, loaders take alpha for the rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from .errors import FileFormatError, NotBakeableError
from .lora import Lora
from .modules import Module
from .updates import Read, alpha_of

ADAPTER_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
_LONGEST_CONFIG = 1 << 24  # bytes
_MEND = "write plain module names into it, or give the LoRA tensors of alpha"


# What `alpha_pattern` maps: PEFT takes its keys for regular expressions. Names with `.*` and digits (`\d+`) in them are
# understood, with `.` for any character that is no digit; an expression out of a stranger's file is never run.
_PATTERN = re.compile(r"(\^?)((?:[A-Za-z0-9_-]|\.\*?|\\\.|\\d\+(?![0-9]|\\d))+)\$?")


def scale_of(module: Module, read: Read, lora: Lora) -> float:
    """A module's alpha / rank, 1 where loaders use none. Raises NotBakeableError if its alpha is no number."""
    if not module.rank or ("lokr_w1" in module.tensors and "lokr_w2" in module.tensors):
        return 1.0
    if "alpha" in module.tensors:
        return known_alpha(module, read) / module.rank
    return _peft_scale(module, module.rank, lora)


def known_alpha(module: Module, read: Read) -> float:
    """The alpha of a module that has one. Raises NotBakeableError if it is no number."""
    alpha = alpha_of(module, read)
    if alpha is None:
        raise NotBakeableError(f"{module.name}: its alpha is no number", "leave this file out")
    return alpha


def _peft_scale(module: Module, rank: int, lora: Lora) -> float:
    """As `peft.utils.get_pattern_key` finds a module's own alpha: by a pattern for the end of its name."""
    config = _adapter_config(lora)
    component, _, name = module.name.partition(".")
    prefix = f"{component}."
    if f"{prefix}lora_alpha" not in config:
        prefix, name = "", module.name
    try:
        patterns = dict(config.get(f"{prefix}alpha_pattern") or {})
        fitting = (value for pattern, value in patterns.items() if _fits(pattern, name))
        alpha = float(next(fitting, config.get(f"{prefix}lora_alpha", rank)))
    except (ValueError, TypeError, OverflowError) as error:
        raise FileFormatError(lora.file.path, f"its adapter configuration cannot be read: {error}", _MEND) from error
    return alpha / (math.sqrt(rank) if config.get(f"{prefix}use_rslora") else rank)


def _fits(pattern: str, name: str) -> bool:
    """Whether a pattern is for a name: for all of it, or for what follows one of its dots. Raises ValueError."""
    if (match := _PATTERN.fullmatch(pattern)) is None:
        raise ValueError(f"alpha_pattern {pattern!r} is more than a module's name")
    starts = [0] if match[1] else [0, *(dot.end() for dot in re.finditer(r"\.", name))]
    pieces = [re.sub(r"(?<!\\)\.", r"\\D", piece).replace("+", "+?") for piece in match[2].split(".*")]
    return any(_fits_from(start, pieces, name) for start in starts)


def _fits_from(start: int, pieces: Sequence[str], name: str) -> bool:
    """Whether the pieces stand in the name in this order, the first at the start, the last at the end."""
    first, *others = map(re.compile, (*pieces[:-1], rf"(?:{pieces[-1]})\Z"))
    found = first.match(name, start)
    for piece in others:
        found = found and piece.search(name, found.end())
    return found is not None


def _adapter_config(lora: Lora) -> dict[str, Any]:
    beside = lora.file.path.with_name(_CONFIG)
    try:
        text = lora.file.metadata.get(ADAPTER_METADATA)
        if text is None:
            with beside.open("rb") as file:
                text = file.read(_LONGEST_CONFIG).decode()
        return _config(text)
    except (OSError, ValueError, RecursionError):
        return {}


@lru_cache(maxsize=8)
def _config(text: str) -> dict[str, Any]:
    config = json.loads(text)
    return config if isinstance(config, dict) else {}
