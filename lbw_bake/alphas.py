"""What loaders multiply the product of a module's factors by: alpha / rank, wherever a file says it.

PEFT files have no alpha. diffusers keeps the adapter's configuration in the metadata, PEFT beside the file; without
either, loaders take alpha for the rank. LoRA's alpha is `lora_alpha` there, that of LoHa and LoKr `alpha`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .configuration import configuration
from .errors import AlphaError
from .lora import Lora
from .modules import Module
from .updates import Read, Scale, alpha_of

_PEFT_ROOT = "base_model.model."  # of every name PEFT writes, and of none its configuration holds
_ALPHAS = ("lora_alpha", "alpha")
_MEND = "write plain module names and numbers into it, or give the LoRA tensors of alpha"

# What `alpha_pattern` maps: PEFT takes its keys for regular expressions. Names with `.*` and digits (`\d+`) in them are
# understood, with `.` for any character that is no digit; an expression out of a stranger's file is never run.
_PATTERN = re.compile(r"(\^?)((?:[A-Za-z0-9_-]|\.\*?|\\\.|\\d\+(?![0-9]|\\d))+)\$?")


def scales_of(lora: Lora, *beside: Path) -> Scale:
    """What tells the alpha / rank of a file's modules, 1 where loaders use none.

    A configuration that is neither in the file nor beside it is looked for in the folders `beside`. What is returned
    raises AlphaError.
    """

    @cache
    def config() -> Mapping[str, Any]:
        return configuration(lora, beside)

    def scale_of(module: Module, read: Read) -> float:
        # LyCORIS takes alpha for the rank where both factors are whole, PEFT does not.
        whole = "lokr_w1" in module.tensors and "lokr_w2" in module.tensors
        if "alpha" in module.tensors and not whole and module.rank:
            return known_alpha(lora.file.path, module, read) / module.rank
        if "alpha" in module.tensors or not (whole or module.rank):
            return 1.0
        try:
            return _peft_scale(module, config())
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise AlphaError(lora.file.path, f"the alpha of {module.name} cannot be read: {error}", _MEND) from error

    return scale_of


def known_alpha(path: Path, module: Module, read: Read) -> float:
    """The alpha of a module that has a tensor of it. Raises AlphaError, naming the file, if it is no number."""
    alpha = alpha_of(module, read)
    if alpha is None:
        raise AlphaError(path, f"the alpha of {module.name} is no number", "leave this file out")
    return alpha


def _peft_scale(module: Module, config: Mapping[str, Any]) -> float:
    """As `peft.utils.get_pattern_key` finds a module's own numbers: by a pattern for the end of its name."""
    component, _, name = module.name.partition(".")
    prefix = f"{component}."
    if not any(f"{prefix}{key}" in config for key in _ALPHAS):
        prefix, name = "", module.name.removeprefix(_PEFT_ROOT)

    def said(keys: Sequence[str], patterns: str, default: float | None) -> Any:
        value = next((config[f"{prefix}{key}"] for key in keys if f"{prefix}{key}" in config), default)
        own = (config.get(f"{prefix}{patterns}") or {}).items()
        return next((number for pattern, number in own if _fits(pattern, name)), value)

    if (rank := module.rank or said(("r",), "rank_pattern", None)) is None:
        return 1.0
    alpha = float(said(_ALPHAS, "alpha_pattern", rank))
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
