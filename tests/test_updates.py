"""Norms and inner products by small matrices are those of the dense updates."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest
from conftest import MODULE
from formulas import BY_NAME, FORMULAS, Formula, for_each

from lbw_bake.modules import Module, group_modules
from lbw_bake.tensorfile import Tensor
from lbw_bake.updates import Read, alpha_of, arrays_of, inner, measurable, norm

# VeRA and IA3 are nothing without what they share or multiply; GLoRA counts without its half of the base weight.
UNMEASURED = {"vera", "ia3 on the input"}
MEASURED = [case for case in FORMULAS if case.name not in {*UNMEASURED, "glora"}]
CASES = for_each(MEASURED)


def scale_of(module: Module, read: Read) -> float:
    """alpha / rank, 1 for a module without, or a LoKr of two whole factors."""
    alpha = alpha_of(module, read)
    whole = {"lokr_w1", "lokr_w2"} <= module.tensors.keys()
    return 1.0 if alpha is None or not module.rank or whole else alpha / module.rank


def module_of(tensors: Mapping[str, np.ndarray]) -> tuple[Module, Read]:
    entries = [Tensor(name, "F32", array.shape, i, i + 1) for i, (name, array) in enumerate(tensors.items())]
    return group_modules(entries).modules[0], lambda tensor: tensors[tensor.name]


@CASES
def test_the_norm_is_that_of_the_dense_update(case: Formula) -> None:
    tensors = case.tensors(MODULE)
    assert norm(*module_of(tensors), scale_of) == pytest.approx(float(np.linalg.norm(case.update(tensors, MODULE))))


@CASES
def test_the_inner_product_is_that_of_the_dense_updates(case: Formula) -> None:
    rng = np.random.default_rng(3)
    one = case.tensors(MODULE)
    two = {
        name: array if array.dtype == np.int64 else rng.standard_normal(array.shape).astype(np.float32)
        for name, array in one.items()
    }
    (module, read), (other, read_other) = module_of(one), module_of(two)
    scale = scale_of(module, read) * scale_of(other, read_other)
    got = inner(module, arrays_of(module, read), arrays_of(other, read_other), scale)
    assert got == pytest.approx(float(np.vdot(case.update(one, MODULE), case.update(two, MODULE))))


def test_glora_counts_without_the_base_weight() -> None:
    case = BY_NAME["glora"]
    tensors = case.tensors(MODULE)
    alone = tensors | {f"{MODULE}.a1.weight": 0 * tensors[f"{MODULE}.a1.weight"]}
    assert norm(*module_of(tensors), scale_of) == pytest.approx(float(np.linalg.norm(case.update(alone, MODULE))))


def test_glora_may_have_a_core() -> None:
    rng = np.random.default_rng(0)
    shapes = {"a1": (8, 2), "a2": (2, 8), "b1": (6, 2), "b2": (2, 8), "bm": (2, 2, 3, 3)}
    t = {role: rng.standard_normal(shape) for role, shape in shapes.items()}
    dense = np.einsum("op,pqhw,qi->oihw", t["b1"], t["bm"], t["b2"])
    measured = norm(*module_of({f"{MODULE}.{role}.weight": array for role, array in t.items()}), lambda *_: 1.0)
    assert measured == pytest.approx(float(np.linalg.norm(dense)))


def test_the_factors_of_glora_may_be_swapped_as_before_lycoris_2() -> None:
    tensors = BY_NAME["glora"].tensors(MODULE)
    swapped = {
        re.sub(r"([ab])([12])", lambda m: m[1] + "21"[int(m[2]) - 1], name): one for name, one in tensors.items()
    }
    one, other = (norm(*module_of(each), lambda *_: 1.0) for each in (tensors, swapped))
    assert one == pytest.approx(other)


@pytest.mark.parametrize("swapped", [False, True])
def test_glora_of_a_layer_with_fewer_rows_than_its_rank_is_measured(swapped: bool) -> None:
    """As the last convolution of a UNet, which has 4."""
    rng = np.random.default_rng(0)
    a1, a2, b1, b2 = (rng.standard_normal(shape) for shape in ((9, 5), (5, 9), (4, 5), (5, 9)))
    roles = (("a2", "a1"), ("b2", "b1")) if swapped else (("a1", "a2"), ("b1", "b2"))
    named = zip((role for pair in roles for role in pair), (a1, a2, b1, b2), strict=True)
    tensors = {f"{MODULE}.{role}.weight": array for role, array in named}
    assert norm(*module_of(tensors), lambda *_: 1.0) == pytest.approx(float(np.linalg.norm(b1 @ b2)))


@for_each(case for case in FORMULAS if case.name in UNMEASURED)
def test_what_depends_on_the_base_model_has_no_norm(case: Formula) -> None:
    module, read = module_of(case.tensors(MODULE))
    assert not measurable(module)
    assert norm(module, read, scale_of) is None


def test_a_large_loha_is_measured_in_bands() -> None:
    rng = np.random.default_rng(0)
    shapes = {"hada_w1_a": (1500, 2), "hada_w1_b": (2, 1200), "hada_w2_a": (1500, 2), "hada_w2_b": (2, 1200)}
    roles = {role: rng.standard_normal(shape) for role, shape in shapes.items()}
    dense = (roles["hada_w1_a"] @ roles["hada_w1_b"]) * (roles["hada_w2_a"] @ roles["hada_w2_b"])
    measured = norm(*module_of({f"{MODULE}.{role}": array for role, array in roles.items()}), scale_of)
    assert measured == pytest.approx(float(np.linalg.norm(dense)))


@pytest.mark.parametrize("alpha", [np.array(2.5), np.array([2.5]), np.array([[2.5]])])
def test_alpha_may_have_any_shape(alpha: np.ndarray) -> None:
    assert alpha_of(*module_of({f"{MODULE}.diff": np.ones(2), f"{MODULE}.alpha": alpha})) == 2.5


def test_alpha_may_be_absent() -> None:
    assert alpha_of(*module_of({f"{MODULE}.diff": np.ones(2)})) is None
