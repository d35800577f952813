"""What PEFT says of an adapter beside its tensors: in the metadata, as diffusers does, or in a file beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import NotBakeableError
from .lora import Lora

ADAPTER_METADATA = "lora_adapter_metadata"
CONFIG = "adapter_config.json"
_LONGEST = 1 << 24  # bytes

# Ways to begin that take something out of the base model's weights, whenever the adapter is loaded. Source: PEFT's
# LoraConfig and `LoraLayer.update_layer`.
_INITIAL = "init_lora_weights"
_FROM_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KASA = "kasa_config"

# What makes PEFT's factors others than those of one matrix: stacks of matrices, blocks of a diagonal, inputs in groups.
# Of two stacks of one layer, one has `base_layer` in its name. Source: PEFT's `ParamWrapper` and LoRA variants.
_UNLIKE_PRODUCTS = ("target_parameters", "use_bdlora", "use_qalora")
_NESTED = ".base_layer"


def configuration(lora: Lora, folders: Iterable[Path] = ()) -> dict[str, Any]:
    """The adapter's configuration: in the file, beside it, or in one of the folders; empty if there is none.

    PEFT writes no alphas: what lies beside a file that has some is another's.
    """
    if text := lora.file.metadata.get(ADAPTER_METADATA):
        return _parsed(text)
    if any("alpha" in module.tensors for module in lora.grouping.modules):
        return {}
    for folder in (lora.file.path.parent, *folders):
        with suppress(OSError, ValueError), (folder / CONFIG).open("rb") as file:
            return _parsed(file.read(_LONGEST).decode())
    return {}


def check_origin(lora: Lora) -> None:
    """Raise NotBakeableError for an adapter that can only be used as it is."""
    if origin := taken_from_base(lora):
        raise NotBakeableError(
            f"{lora.file.path}: its configuration says {origin}: PEFT takes a part of it out of the base model when it "
            "is loaded, so no tensor in the file is proportional to what it does",
            "have PEFT turn it into a plain LoRA: save_pretrained(..., path_initial_model_for_weight_conversion=...)",
        )


def taken_from_base(lora: Lora) -> str:
    """What the configuration calls it that loaders take a part of the adapter out of the base model; empty if not.

    The update is what is left, and no factor of the file scales it.
    """
    for name, value in _said(lora):
        if name == _INITIAL and isinstance(value, str) and value.lower().startswith(_FROM_BASE):
            return f"{name} {value}"
        if name == _KASA and value:
            return name
    return ""


def check_products(lora: Lora) -> None:
    """Raise NotBakeableError for an adapter whose factors a weight scales, but which are none to add up or truncate."""
    said = (name for name, value in _said(lora) if value)
    nested = (module.name for module in lora.grouping.modules if _NESTED in module.name)
    found = [*(f"its configuration says {name}" for name in said if name in _UNLIKE_PRODUCTS), *nested]
    if found:
        raise NotBakeableError(
            f"{lora.file.path}: {found[0]}: factors of PEFT that are not those of one matrix, of which no sum is known",
            "leave this file out; lbw bake gives it any weight, without --rank",
        )


def is_made_anew(lora: Lora) -> bool:
    """Whether PEFT fills modules that its configuration names and the file lacks with random numbers, not zeros."""
    return any(name == _INITIAL and value is False for name, value in _said(lora))


def _said(lora: Lora) -> Iterator[tuple[str, Any]]:
    """What the configuration says, by names without the component that diffusers writes before each."""
    return ((key.rpartition(".")[2], value) for key, value in configuration(lora).items())


def _parsed(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}
