"""What loaders multiply the product of a module's factors by: alpha / rank, wherever a file says it.

PEFT files have no alpha. diffusers keeps the adapter's configuration in the metadata, PEFT beside the file; without
either, loaders take alpha for the rank. LoRA's alpha is `lora_alpha` there, that of LoHa and LoKr `alpha`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from .errors import AlphaError
from .lora import Lora
from .modules import Module
from .updates import Read, Scale

ADAPTER_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"
_ALPHAS = ("lora_alpha", "alpha")


def scales_of(lora: Lora, *beside: Path) -> Scale:
    """What tells the alpha / rank of a file's modules, 1 where loaders use none.

    A configuration that is neither in the file nor beside it is looked for in the folders `beside`. What is returned
    raises AlphaError.
    """

    @cache
    def config() -> Mapping[str, Any]:
        return _adapter_config(lora, (lora.file.path.parent, *beside))

    def scale_of(module: Module, read: Read) -> float:
        if not module.rank or ("lokr_w1" in module.tensors and "lokr_w2" in module.tensors):
            return 1.0
        try:
            if "alpha" in module.tensors:
                return float(read(module.tensors["alpha"][0]).reshape(-1)[0]) / module.rank
            return _peft_scale(module, module.rank, config())
        except (AttributeError, IndexError, TypeError, ValueError, re.error) as error:
            raise AlphaError(lora.file.path, f"the alpha of {module.name} cannot be read: {error}") from error

    return scale_of


def _peft_scale(module: Module, rank: int, config: Mapping[str, Any]) -> float:
    """As `peft.utils.get_pattern_key` finds a module's own alpha: by a pattern for the end of its name."""
    component, _, name = module.name.partition(".")
    prefix = f"{component}."
    if not any(f"{prefix}{key}" in config for key in _ALPHAS):
        prefix, name = "", module.name
    alpha = next((config[f"{prefix}{key}"] for key in _ALPHAS if f"{prefix}{key}" in config), rank)
    for pattern, value in (config.get(f"{prefix}alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get(f"{prefix}use_rslora") else rank)


def _adapter_config(lora: Lora, folders: Iterable[Path]) -> dict[str, Any]:
    if text := lora.file.metadata.get(ADAPTER_METADATA):
        return _parsed(text)
    for folder in folders:
        with suppress(OSError, ValueError):
            return _parsed((folder / _CONFIG).read_text(encoding="utf-8"))
    return {}


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
