"""Modules that no formula is needed for: which tensors take a weight, which never change, and what stays when it is 0.

Algorithms have their formulas in `formulas.py`; these are other forms of theirs, as loaders read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import MODULE, BakeTensors, Run, Tensors, unet_lora, write
from safetensors.numpy import load_file

from lbw_bake.algorithms import algorithm_of
from lbw_bake.modules import group_modules
from lbw_bake.tensorfile import Tensor

_LORA = {"lora_down.weight": (2, 8), "lora_up.weight": (8, 2)}
_PEFT = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}
_GLORA = {"a1.weight": (8, 2), "a2.weight": (2, 8), "b1.weight": (8, 2), "b2.weight": (2, 8)}


@dataclass(frozen=True)
class Row:
    """A module: shapes by role, the roles a weight of 2 doubles, and those that are integers."""

    algorithm: str
    shapes: dict[str, tuple[int, ...]]
    doubled: tuple[str, ...]
    integers: tuple[str, ...] = ()

    @property
    def tensors(self) -> Tensors:
        rng = np.random.default_rng(2)
        return {
            f"{MODULE}.{role}": (
                rng.integers(1, 9, shape) if role in self.integers else rng.uniform(0.5, 1.0, shape).astype(np.float16)
            )
            for role, shape in self.shapes.items()
        }


ROWS = {
    "scale in place of alpha": Row("lora", {**_LORA, "scale": ()}, ("lora_up.weight",)),
    "scalar": Row("lora", {**_LORA, "alpha": (), "scalar": ()}, ("lora_up.weight",)),
    "integer alpha": Row("lora", {**_LORA, "alpha": ()}, ("lora_up.weight",), integers=("alpha",)),
    "weight-shaped bias": Row("lora", {**_LORA, "bias": (8, 8)}, ("lora_up.weight", "bias")),
    "a larger layer": Row(
        "lora",
        {**_PEFT, "lora_B.bias": (8,), "reshape_weight": (2,)},
        ("lora_B.weight", "lora_B.bias"),
        integers=("reshape_weight",),
    ),
    "glora with a core": Row("glora", {**_GLORA, "bm.weight": (2, 2, 3, 3)}, ("a2.weight", "b2.weight")),
    "norm without a bias": Row("norm", {"w_norm": (8,)}, ("w_norm",)),
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
# What belongs to no module: never weighed, whatever the weights.
BYSTANDERS = {
    "bundle_emb.doraemon.string_to_param.*": np.ones((2, 4), np.float32),
    "base_model.vera_A": np.ones((2, 8), np.float16),
    "base_model.vera_B": np.ones((8, 2), np.float16),
}


def own(tensors: Tensors) -> Tensors:
    return {name.removeprefix(f"{MODULE}."): array for name, array in tensors.items() if name not in BYSTANDERS}


@rows
def test_a_weight_goes_into_one_factor_of_each_product(row: Row, bake_tensors: BakeTensors) -> None:
    original = row.tensors | BYSTANDERS
    baked = bake_tensors(original, "-w", "*=2", "--family", "sd1")
    assert own(baked).keys() == own(original).keys()
    for role, array in own(original).items():
        np.testing.assert_array_equal(own(baked)[role], array * (2 if role in row.doubled else 1), role)
        assert own(baked)[role].dtype == array.dtype


@rows
def test_weight_zero_is_zero_in_the_factor_that_training_starts_at_zero(row: Row, bake_tensors: BakeTensors) -> None:
    original = row.tensors | BYSTANDERS
    baked = bake_tensors(original, "-w", "*=0", "--family", "sd1")
    assert baked.keys() == original.keys()
    for role, array in own(original).items():
        np.testing.assert_array_equal(own(baked)[role], array * (role not in row.doubled), role)
    for name, array in BYSTANDERS.items():
        np.testing.assert_array_equal(baked[name], array, name)


@rows
def test_all_its_tensors_are_understood(row: Row) -> None:
    grouping = group_modules(Tensor(name, "F16", array.shape, 0, 0) for name, array in row.tensors.items())
    assert [module.algorithm.name for module in grouping.modules] == [row.algorithm]
    assert not grouping.unknown


def test_no_algorithm_is_none() -> None:
    assert algorithm_of(frozenset({"alpha", "dora_scale"})) is None


@pytest.mark.parametrize(
    "other", ["hada_w1_a hada_w1_b hada_w2_a hada_w2_b", "oft_blocks", "set_weight", "a1 a2 b1 b2"]
)
def test_two_algorithms_under_one_name_are_none_that_a_factor_scales(other: str) -> None:
    algorithm = algorithm_of(frozenset({"down", "up", "alpha", *other.split()}))
    assert algorithm
    assert not algorithm.exact
    assert not algorithm.products
    assert algorithm.name.startswith("lora and ")


def test_a_module_of_two_algorithms_is_refused_or_removed_never_half_baked(tmp_path: Path, run: Run) -> None:
    tensors = unet_lora()
    tensors |= {f"{MODULE}.hada_w{n}_{side}": np.ones((4, 4), np.float32) for n in "12" for side in "ab"}
    source, output = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    for options in ((), ("--inexact", "allow")):
        assert "1 lora and loha modules" in run.refused("bake", source, "-w", "*=0.5", "-o", output, *options)
    assert "1 lora and loha module at weight 0 removed" in run.done("bake", source, "-w", "*=0", "-o", output)
    assert not [name for name in load_file(output) if name.startswith(f"{MODULE}.")]


def test_what_adds_to_a_product_is_of_its_algorithm() -> None:
    for addition in ("diff", "diff_b", "w_norm", "bias", "norm_scale"):
        assert algorithm_of(frozenset({"down", "up", addition})) is algorithm_of(frozenset({"down", "up"}))
