"""OFT and BOFT baked with their base model: LyCORIS judges the difference that takes their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from .conftest import MULTIPLIERS, TOLERANCES, BakeTorch, StateDict, assert_close, cast, dtypes, perturb
from .test_dora import LAYERS, PATHS, RULES, WEIGHTS, base_file, inputs, kohya_name

lycoris = pytest.importorskip("lycoris.modules", reason="needs lycoris-lora")

CASES = {
    "oft": ("DiagOFTModule", {"constraint": 0.0}),
    "coft": ("DiagOFTModule", {"constraint": 0.01}),
    "oft rescaled": ("DiagOFTModule", {"constraint": 0.0, "rescaled": True}),
    "boft": ("ButterflyOFTModule", {"constraint": 0.0}),
    "coft with stages": ("ButterflyOFTModule", {"constraint": 0.01}),
    "boft rescaled": ("ButterflyOFTModule", {"constraint": 0.0, "rescaled": True}),
}


def update(module: Any, multiplier: float, layer: nn.Module) -> torch.Tensor:
    return module.get_merged_weight(multiplier, layer.weight.shape)[0] - layer.weight


def forward(module: Any, multiplier: float, layer: nn.Module, kind: str) -> torch.Tensor:
    x = inputs(kind, torch.float32)
    module.multiplier = multiplier
    return module(x) - layer(x)


@dtypes
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("kind", "options"), CASES.values(), ids=CASES)
def test_the_difference_is_the_weighted_update(
    kind: str, options: dict[str, Any], layer: str, dtype: torch.dtype, bake_torch: BakeTorch, tmp_path: Path
) -> None:
    layers = {path: LAYERS[layer]() for path in PATHS}
    tensors: StateDict = {}
    for path, module in layers.items():
        name = kohya_name(path)
        adapter = getattr(lycoris, kind)(name, module, lora_dim=4, **options)
        perturb(adapter)
        tensors |= {f"{name}.{role}": tensor for role, tensor in adapter.state_dict().items()}
    original = cast(tensors, dtype)
    baked = bake_torch(original, RULES, "--base", base_file(tmp_path, layers))
    for path, block in PATHS.items():
        name, module = kohya_name(path), layers[path]
        before, after = (lycoris.make_module(*lycoris.get_module(t, name), name, module) for t in (original, baked))
        weight = WEIGHTS[block]
        assert type(after).__name__ == (kind if weight == 1.0 else "FullModule")
        wanted = weight * update(before.float(), 1.0, module)
        tolerance = max(TOLERANCES[dtype], 1e-5)
        if weight == 1.0:
            assert_close(update(after.float(), 1.0, module), wanted, tolerance)
            continue
        for m in MULTIPLIERS:
            assert_close(update(after.float(), m, module), m * wanted, tolerance)
            spatial = forward(before, 1.0, module, layer)
            assert_close(forward(after, m, module, layer), m * weight * spatial, tolerance)
