"""LyCORIS judges every algorithm it can train, in its merge and in its forward pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import Run
from torch import nn

from .conftest import (
    MULTIPLIERS,
    TOLERANCES,
    BakeTorch,
    StateDict,
    assert_close,
    cast,
    dtypes,
    perturb,
    save,
    vector,
)

lycoris = pytest.importorskip("lycoris.modules", reason="needs lycoris-lora")


class Site(NamedTuple):
    """Where a module sits, and how it was trained."""

    block: str
    rank: int
    alpha: float


SITES = {
    "lora_te_text_model_encoder_layers_0_self_attn_out_proj": Site("BASE", 3, 2.0),
    "lora_unet_down_blocks_1_attentions_0_proj_in": Site("IN04", 2, 1.0),
    "lora_unet_mid_block_attentions_0_proj_in": Site("MID", 3, 0.5),
    "lora_unet_up_blocks_1_attentions_1_proj_in": Site("OUT04", 2, 6.0),
    "lora_unet_up_blocks_3_attentions_2_proj_in": Site("OUT11", 3, 1.5),
}
WEIGHTS = {"BASE": -0.7, "IN04": 0.0, "MID": 1.0, "OUT04": 0.3, "OUT11": 1.5}
ON_OR_OFF = {"BASE": 1.0, "IN04": 0.0, "MID": 0.0, "OUT04": 1.0, "OUT11": 0.0}
SHRINKING = {"BASE": -0.7, "IN04": 0.01, "MID": 0.99, "OUT04": 0.3, "OUT11": 0.5}


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(36, 64),
    "1x1": lambda: nn.Conv2d(36, 64, 1),
    "3x3": lambda: nn.Conv2d(36, 64, 3, padding=1),
    "layer": lambda: nn.LayerNorm(36),
    "group": lambda: nn.GroupNorm(4, 36),
}


@dataclass(frozen=True)
class Case:
    """An algorithm on a kind of layer; `small` are the factors that training starts at zero.

    Some LyCORIS versions cannot rebuild some modules `from_file`: those are built anew and given their tensors.
    """

    name: str
    kind: Any
    layer: str
    options: dict[str, Any] = field(default_factory=dict)
    small: str = ""
    from_file: bool = True

    def __str__(self) -> str:
        return self.name.replace(" ", "-")

    def build(self, name: str, layer: nn.Module, rank: int, alpha: float) -> Any:
        """A new module of the algorithm on the layer."""
        return self.kind(name, layer, **{"lora_dim": rank, "alpha": alpha, **self.options})

    def load(self, tensors: StateDict, name: str, layer: nn.Module) -> Any:
        """The module a file holds, as LyCORIS reads it; None if it finds none."""
        kind, params = lycoris.get_module(tensors, name)
        if kind is None:
            return None
        if self.from_file:
            return lycoris.make_module(kind, params, name, layer).to(layer.weight.dtype)
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        module = self.build(name, layer, SITES[name].rank, own.get("alpha", torch.ones(())).item())
        module.load_state_dict(own)
        return module.to(layer.weight.dtype)


LOCON, LOHA, LOKR = lycoris.LoConModule, lycoris.LohaModule, lycoris.LokrModule
GLORA, IA3, FULL, NORM = lycoris.GLoRAModule, lycoris.IA3Module, lycoris.FullModule, lycoris.NormModule
OFT, BOFT = lycoris.DiagOFTModule, lycoris.ButterflyOFTModule
TUCKER, BOTH, DORA = {"use_tucker": True}, {"decompose_both": True}, {"weight_decompose": True}
OBLONG = {"factor": 2, "unbalanced_factorization": True, "lora_dim": 10}

LINEAR_CASES = (
    Case("lora", LOCON, "linear", small="lora_up.weight"),
    Case("lora rs", LOCON, "linear", {"rs_lora": True}),
    Case("lora scalar", LOCON, "linear", {"use_scalar": True}),
    Case("locon 1x1", LOCON, "1x1"),
    Case("locon 3x3", LOCON, "3x3"),
    Case("locon tucker", LOCON, "3x3", TUCKER, small="lora_up.weight"),
    Case("dylora", lycoris.DyLoraModule, "linear", {"lora_dim": 4, "block_size": 2}),
    Case("loha", LOHA, "linear", small="hada_w2_a"),
    Case("loha 3x3", LOHA, "3x3"),
    Case("loha tucker", LOHA, "3x3", TUCKER, small="hada_w2_a"),
    Case("lokr w1 w2", LOKR, "linear", {"lora_dim": 10}, small="lokr_w2"),
    Case("lokr w1 w2_ab", LOKR, "linear", small="lokr_w2_b"),
    Case("lokr w1_ab w2", LOKR, "linear", BOTH | OBLONG, small="lokr_w2", from_file=False),
    Case("lokr w1_ab w2_ab", LOKR, "linear", BOTH, small="lokr_w2_b"),
    Case("lokr 3x3", LOKR, "3x3"),
    Case("lokr tucker", LOKR, "3x3", TUCKER, from_file=False),
    Case("lokr tucker w1_ab", LOKR, "3x3", TUCKER | BOTH, from_file=False),
    Case("glora", GLORA, "linear", small="a2.weight b2.weight"),
    Case("glora 1x1", GLORA, "1x1"),
    Case("glora 3x3", GLORA, "3x3"),
    Case("ia3 input", IA3, "linear", {"train_on_input": True}, from_file=False),
    Case("ia3 output", IA3, "linear", from_file=False),
    Case("ia3 3x3", IA3, "3x3", from_file=False),
    Case("full", FULL, "linear"),
    Case("full 3x3", FULL, "3x3"),
    Case("norm layer", NORM, "layer"),
    Case("norm group", NORM, "group"),
)
NONLINEAR_CASES = (
    Case("dora", LOCON, "linear", DORA),
    Case("dora 3x3", LOCON, "3x3", DORA),
    Case("dora loha", LOHA, "linear", DORA),
    Case("dora lokr", LOKR, "linear", DORA),
    Case("oft", OFT, "linear", {"constraint": 0.0}),
    Case("coft", OFT, "3x3", {"constraint": 0.01}),
    Case("oft rescaled", OFT, "linear", {"constraint": 0.0, "rescaled": True}),
    Case("boft", BOFT, "linear", {"constraint": 0.0}),
    Case("boft rescaled", BOFT, "3x3", {"constraint": 0.0, "rescaled": True}),
    Case("tlora", lycoris.TLoraModule, "linear"),
)


def trained(case: Case, layers: dict[str, nn.Module], dtype: torch.dtype, small: float = 1.0) -> StateDict:
    """The file of a network with a module at every site, none of its tensors at their starting values."""
    tensors: StateDict = {}
    for name, site in SITES.items():
        module = case.build(name, layers[name], site.rank, site.alpha)
        perturb(module)
        own = module.state_dict()
        for factor in case.small.split():
            own[factor] *= small / own[factor].abs().mean()
        tensors |= {f"{name}.{key}": value for key, value in own.items()}
    return cast(tensors, dtype)


def merged(module: Any, multiplier: float) -> torch.Tensor:
    """What merging adds to the weight and the bias of the layer."""
    layer = module.org_module[0]
    weight, bias = module.get_merged_weight(multiplier, layer.weight.shape)
    parts = [weight - layer.weight] + ([bias - layer.bias] if bias is not None else [])
    return torch.cat([part.flatten() for part in parts])


def forward(module: Any, multiplier: float) -> torch.Tensor:
    """What the module adds to the output of the layer."""
    layer = module.org_module[0]
    spatial = (4, 4) if isinstance(layer, nn.Conv2d | nn.GroupNorm) else ()
    inputs = torch.randn(3, 36, *spatial, generator=torch.Generator().manual_seed(1), dtype=layer.weight.dtype)
    module.multiplier = multiplier
    return module(inputs) - layer(inputs)


PATHS = (merged, forward)


def assert_law(
    case: Case, original: StateDict, baked: StateDict, layers: dict[str, nn.Module], weights: dict[str, float]
) -> None:
    """At every site the baked module does at any multiplier what the original does at that times the weight."""
    tolerance = TOLERANCES[next(t.dtype for t in original.values() if t.is_floating_point())]
    for name, site in SITES.items():
        before, after = (case.load(tensors, name, layers[name]) for tensors in (original, baked))
        for path, multiplier in itertools.product(PATHS, MULTIPLIERS):
            expected = path(before, multiplier * weights[site.block])
            assert expected.any() or not weights[site.block]
            assert_close(path(after, multiplier), expected, tolerance)


@pytest.fixture
def layers(case: Case) -> dict[str, nn.Module]:
    """The model: double precision keeps its rounding out of the comparison, but LyCORIS' rotations know only single."""
    precision = torch.float64 if case in LINEAR_CASES else torch.float32
    return {name: LAYERS[case.layer]().to(precision) for name in SITES}


@dtypes
@pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
def test_update_is_scaled_by_the_weight_of_its_block(
    case: Case, dtype: torch.dtype, layers: dict[str, nn.Module], bake_torch: BakeTorch
) -> None:
    original = trained(case, layers, dtype)
    assert_law(case, original, bake_torch(original, vector(WEIGHTS)), layers, WEIGHTS)


@pytest.mark.parametrize("case", [case for case in LINEAR_CASES if case.small], ids=str)
def test_small_factors_do_not_underflow(case: Case, layers: dict[str, nn.Module], bake_torch: BakeTorch) -> None:
    original = trained(case, layers, torch.float16, small=2e-5)
    assert_law(case, original, bake_torch(original, vector(SHRINKING)), layers, SHRINKING)


@pytest.mark.parametrize("case", NONLINEAR_CASES, ids=str)
def test_nonlinear_updates_are_kept_or_switched_off(
    case: Case, layers: dict[str, nn.Module], bake_torch: BakeTorch
) -> None:
    original = trained(case, layers, torch.float16)
    baked = bake_torch(original, vector(ON_OR_OFF))
    for name, site in SITES.items():
        before, after = (case.load(tensors, name, layers[name]) for tensors in (original, baked))
        for path, multiplier in itertools.product(PATHS, MULTIPLIERS):
            expected = ON_OR_OFF[site.block] * path(before, multiplier)
            got = path(after, multiplier) if after else torch.zeros(())
            assert_close(got, expected, 0.0)


@pytest.mark.parametrize("case", NONLINEAR_CASES, ids=str)
def test_nonlinear_updates_refuse_other_weights(
    case: Case, layers: dict[str, nn.Module], run: Run, tmp_path: Path
) -> None:
    target = tmp_path / "baked.safetensors"
    error = run.refused("bake", save(trained(case, layers, torch.float16), tmp_path), "-o", target, vector(WEIGHTS))
    assert "cannot take a weight other than 0 or 1" in " ".join(error.split())
    assert not target.exists()
