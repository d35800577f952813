"""Tensors become modules: by name alone, and each tensor exactly once."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from conftest import MODULE
from formulas import BY_NAME, IN, RANK, Formula, for_each

from lbw_bake import algorithms
from lbw_bake.modules import Module, group_modules
from lbw_bake.tensorfile import Tensor

CASES = for_each()
ALGORITHMS = {
    **{name: name for name in ("lora", "adalora", "loha", "glora", "vera", "full", "norm")},
    "lora without alpha": "lora",
    "convolution": "lora",
    "tucker": "lora",
    "lora with bias difference": "lora",
    "peft with bias": "lora",
    "peft embedding": "lora_embedding",
    "tucker loha": "loha",
    "tucker lokr": "lokr",
    **{f"lokr {kind}": "lokr" for kind in ("in full", "with a low second factor", "with a low first factor")},
    "lokr with two low factors": "lokr",
    "ia3 on the input": "ia3",
    "bias alone": "bias",
    "sparse bias": "lora",
}


def test_every_algorithm_has_a_formula_or_is_treated_apart() -> None:
    apart = {"kasa", "norm_scale", "oft", "oft_diag", "set", "tlora"}
    assert {*ALGORITHMS.values()} | apart == {algorithm.name for algorithm in algorithms.ALGORITHMS}


def tensors_of(*names: str) -> list[Tensor]:
    return [Tensor(name, "F16", (), i, i + 1) for i, name in enumerate(names)]


def modules_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Module, ...]:
    """The modules of tensors that have these shapes by what follows the module's name."""
    tensors = [Tensor(f"{MODULE}.{role}", "F16", shape, i, i + 1) for i, (role, shape) in enumerate(shapes.items())]
    return group_modules(tensors).modules


@CASES
def test_every_tensor_of_a_module_is_found(case: Formula) -> None:
    names = [name for name in case.tensors(MODULE) if name.startswith(MODULE)]
    grouping = group_modules(tensors_of(*case.tensors(MODULE)))
    (module,) = grouping.modules
    assert (module.name, module.algorithm.name) == (MODULE, ALGORITHMS[case.name])
    assert [tensor.name for tensor in module.all_tensors] == names
    assert [tensor.name for tensor in grouping.shared] == list(case.shared)
    assert grouping.unknown == ()


@pytest.mark.parametrize(
    ("name", "rank", "width"),
    [
        *((name, RANK, IN) for name in ("lora", "convolution", "tucker", "peft with bias", "loha", "tucker loha")),
        *((name, RANK, IN) for name in ("glora", "adalora", "tucker lokr", "lokr with two low factors")),
        *((f"lokr with a low {which} factor", RANK, IN) for which in ("first", "second")),
        ("lokr in full", None, IN),
        ("full", None, IN),
        ("peft embedding", RANK, None),
        ("norm", None, None),
    ],
)
def test_rank_and_width_are_read_from_the_shapes(name: str, rank: int | None, width: int | None) -> None:
    (module,) = modules_of(BY_NAME[name].shapes)
    assert (module.rank, module.width) == (rank, width)


def test_a_layer_may_be_narrower_than_the_rank() -> None:
    (module,) = modules_of({"lora_down.weight": (8, 4, 3, 3), "lora_up.weight": (320, 8, 1, 1)})
    assert (module.rank, module.width) == (8, 4)


def test_modules_come_in_the_order_of_their_first_tensors() -> None:
    names = ["b.lora_up.weight", "a.lora_up.weight", "c.diff", "a.lora_down.weight", "b.lora_down.weight"]
    assert [module.name for module in group_modules(tensors_of(*names)).modules] == ["b", "a", "c"]


ORPHANS = [
    "lora_unet_x.alpha",
    "lora_unet_x.dora_scale",
    "lora_unet_x.lora_up.weight",
    "lora_unet_x.hada_w1_a",
    "weight",
]


@pytest.mark.parametrize("name", [*ORPHANS, "lora_unet_x.lora_up.weight.extra", "", "alpha", ".alpha", "x.y"])
def test_what_makes_no_module_is_unknown(name: str) -> None:
    grouping = group_modules(tensors_of(name))
    assert grouping.modules == ()
    assert [tensor.name for tensor in grouping.unknown] == [name]


@pytest.mark.parametrize("magnitude", ["dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.default.weight"])
def test_a_magnitude_makes_a_module_nonlinear(magnitude: str) -> None:
    names = (f"{MODULE}.{role}" for role in ("lora_A.weight", "lora_B.weight", magnitude))
    (module,) = group_modules(tensors_of(*names)).modules
    assert (module.algorithm_name, module.linear) == ("lora+dora", False)


def test_adapters_of_several_names_on_one_layer_are_several_modules() -> None:
    names = [f"layer.lora_{factor}.{adapter}.weight" for adapter in ("default", "style") for factor in "AB"]
    assert [module.name for module in group_modules(tensors_of(*names)).modules] == ["layer", "layer[style]"]


@pytest.mark.parametrize(
    "shapes",
    [
        {"a1": (768, 4), "a2": (4, 768), "b1": (320, 4), "b2": (4, 768)},
        {"a1": (4, 768), "a2": (768, 4), "b1": (4, 768), "b2": (320, 4)},
    ],
    ids=["LyCORIS 2", "before it"],
)
def test_glora_of_either_order_has_one_rank_and_width(shapes: dict[str, tuple[int, ...]]) -> None:
    (module,) = modules_of({f"{role}.weight": shape for role, shape in shapes.items()})
    assert (module.rank, module.width) == (4, 768)
