"""LyCORIS judges every algorithm it can train, by its merge and by its forward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

torch = pytest.importorskip("torch")
lycoris = pytest.importorskip("lycoris.modules", reason="needs lycoris-lora")
nn = torch.nn


@dataclass(frozen=True)
class Case:
    """An algorithm on a kind of layer. `from_file`: whether LyCORIS can rebuild the module from its own tensors."""

    name: str
    kind: Any
    layer: Callable[[], nn.Module]
    options: dict[str, Any] = field(default_factory=dict)
    from_file: bool = True
    small: str = ""

    def __str__(self) -> str:
        return self.name

    def build(self, name: str, layer: nn.Module, rank: int, alpha: float) -> Any:
        return self.kind(name, layer, **{"lora_dim": rank, "alpha": alpha} | self.options)


def linear() -> nn.Module:
    return nn.Linear(36, 64)


def conv1() -> nn.Module:
    return nn.Conv2d(16, 36, 1)


def conv3() -> nn.Module:
    return nn.Conv2d(16, 36, 3, padding=1)


def layer_norm() -> nn.Module:
    return nn.LayerNorm(36)


def group_norm() -> nn.Module:
    return nn.GroupNorm(4, 16)


INPUTS = {nn.Linear: (5, 36), nn.LayerNorm: (5, 36), nn.Conv2d: (2, 16, 4, 4), nn.GroupNorm: (2, 16, 4, 4)}

LOCON, LOHA, LOKR, GLORA = lycoris.LoConModule, lycoris.LohaModule, lycoris.LokrModule, lycoris.GLoRAModule
TUCKER = {"use_tucker": True}
# Ranks at which LoKr leaves a factor whole.
WHOLE = {"lora_dim": 10}
UNBALANCED = {"factor": 2, "unbalanced_factorization": True, "decompose_both": True, "lora_dim": 10}

LINEAR_CASES = (
    Case("lora", LOCON, linear, small="lora_up.weight"),
    Case("lora rs", LOCON, linear, {"rs_lora": True}),
    Case("lora scalar", LOCON, linear, {"use_scalar": True}),
    Case("locon 1x1", LOCON, conv1),
    Case("locon 3x3", LOCON, conv3),
    Case("locon tucker", LOCON, conv3, TUCKER, small="lora_up.weight"),
    Case("dylora", lycoris.DyLoraModule, linear, {"lora_dim": 4, "block_size": 2}),
    Case("loha", LOHA, linear, small="hada_w2_a"),
    Case("loha 3x3", LOHA, conv3),
    Case("loha tucker", LOHA, conv3, TUCKER, small="hada_w2_a"),
    Case("lokr w1 w2", LOKR, linear, WHOLE, small="lokr_w2"),
    Case("lokr w1 w2_ab", LOKR, linear, small="lokr_w2_b"),
    Case("lokr w1_ab w2", LOKR, linear, UNBALANCED, from_file=False, small="lokr_w2"),
    Case("lokr w1_ab w2_ab", LOKR, linear, {"decompose_both": True}, small="lokr_w2_b"),
    Case("lokr 3x3", LOKR, conv3),
    Case("lokr w1 t2", LOKR, conv3, TUCKER),
    Case("lokr w1_ab t2", LOKR, conv3, TUCKER | {"decompose_both": True}),
    Case("glora", GLORA, linear, small="b2.weight"),
    Case("glora 1x1", GLORA, conv1),
    Case("glora 3x3", GLORA, conv3),
    Case("ia3 input", lycoris.IA3Module, linear, {"train_on_input": True}, from_file=False),
    Case("ia3 output", lycoris.IA3Module, linear, from_file=False),
    Case("ia3 3x3", lycoris.IA3Module, conv3, from_file=False),
    Case("full", lycoris.FullModule, linear),
    Case("full 3x3", lycoris.FullModule, conv3),
    Case("norm layer", lycoris.NormModule, layer_norm),
    Case("norm group", lycoris.NormModule, group_norm),
)
for case in LINEAR_CASES:
    torch.manual_seed(0)
    layer = case.layer()
    for r in (2,3):
        m = case.build("x", layer, r, 1.5)
        sd = m.state_dict()
        print(case, r, {k: (tuple(v.shape), v.dtype) for k, v in sd.items()})
        sdd = {f"x.{k}": v for k, v in sd.items()}
        kind, params = lycoris.get_module(sdd, "x")
        try:
            mm = lycoris.make_module(kind, params, "x", layer)
            assert {k: v.shape for k,v in mm.state_dict().items()} == {k: v.shape for k,v in sd.items()}, {k: v.shape for k,v in mm.state_dict().items()}
        except Exception as e:
            print("   FAIL", kind, type(e), e)
