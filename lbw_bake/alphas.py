"""What loaders multiply the product of a module's factors by: alpha / rank, wherever a file says it.

PEFT files have no alpha. diffusers keeps the adapter's configuration in the metadata, PEFT beside the file; without
either, loaders take alpha for the rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from .lora import Lora
from .modules import Module
from .updates import Read

ADAPTER_METADATA = "lora_adapter_metadata"
_CONFIG = "adapter_config.json"


def scale_of(module: Module, read: Read, lora: Lora) -> float:
    """A module's alpha / rank, 1 where loaders use none."""
    if not module.rank or ("lokr_w1" in module.tensors and "lokr_w2" in module.tensors):
        return 1.0
    if alpha := module.tensors.get("alpha"):
        return float(read(alpha[0]).reshape(-1)[0]) / module.rank
    return _peft_scale(module, module.rank, _adapter_config(lora))


def _peft_scale(module: Module, rank: int, config: Mapping[str, Any]) -> float:
    """As `peft.utils.get_pattern_key` finds a module's own alpha: by a pattern for the end of its name."""
    component, _, name = module.name.partition(".")
    prefix = f"{component}."
    if f"{prefix}lora_alpha" not in config:
        prefix, name = "", module.name
    alpha = config.get(f"{prefix}lora_alpha", rank)
    for pattern, value in (config.get(f"{prefix}alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if config.get(f"{prefix}use_rslora") else rank)


def _adapter_config(lora: Lora) -> dict[str, Any]:
    beside = lora.file.path.with_name(_CONFIG)
    try:
        text = lora.file.metadata.get(ADAPTER_METADATA) or beside.read_text(encoding="utf-8")
        config = json.loads(text)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
