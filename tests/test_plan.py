"""Deciding: what becomes of every module, where families disagree, and what a look at the data is needed for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import MODULE, SD1_BLOCKS, Run, kohya_lora, unet_lora, write

from lbw_bake.edits import Drop, Fill
from lbw_bake.errors import AmbiguousFamilyError, LbwError, WeightCountError
from lbw_bake.factors import Look
from lbw_bake.families import Family
from lbw_bake.lora import Lora, read_lora
from lbw_bake.plan import Plan
from lbw_bake.planning import agree, make_plan
from lbw_bake.scaling import Multiply, Survey
from lbw_bake.sources import Weights
from lbw_bake.tensordata import TensorData
from lbw_bake.tensorfile import Tensor
from lbw_bake.weights import FamilyWeights, parse_source, resolve


def lora_of(folder: Path, tensors: Mapping[str, np.ndarray], family: str | None = None) -> Lora:
    return read_lora(write(folder / "a.safetensors", tensors), family)


def must_not_look(tensor: Tensor, step: Multiply) -> Survey:
    raise AssertionError(f"looked at {tensor.name} for {step}")


def nothing_to_see(*_: object) -> Survey:
    return Survey(peak=1.0)


def plan_of(lora: Lora, weights: str, dtype: str | None = None, look: Look = nothing_to_see) -> Plan:
    return make_plan(lora, resolve(parse_source(weights), lora.candidates[0]), look, dtype)


def test_every_module_is_copied_scaled_zeroed_or_removed(tmp_path: Path) -> None:
    tensors = unet_lora() | {"lora_unet_input_blocks_4_1_proj_out.set_weight": np.ones((2, 2), np.float32)}
    plan = plan_of(lora_of(tmp_path, tensors), "BASE=0.5 IN04=0 MID=0 OUT=-0.5 *=1")
    assert plan.counts == {"copied": 5, "scaled": 10, "zeroed": 2, "removed": 1}
    assert {decision.place.block: decision.weight for decision in plan.decisions} == {
        block: {"BASE": 0.5, "IN04": 0, "MID": 0}.get(block, -0.5 if block.startswith("OUT") else 1)
        for block in SD1_BLOCKS
    }


@pytest.mark.parametrize("weight", [0, 0.5, -1, 1])
def test_factors_that_cannot_overflow_need_no_look_at_the_data(tmp_path: Path, weight: float) -> None:
    """Which makes a dry run as quick as reading a header."""
    assert plan_of(lora_of(tmp_path, unet_lora(dtype="float16")), f"*={weight}", look=must_not_look).decisions


def test_edits_say_what_happens_to_each_tensor(tmp_path: Path) -> None:
    tensors = unet_lora(["MID", "OUT03"]) | {f"{MODULE[:-8]}_out.set_weight": np.ones((2, 2), np.float32)}
    plan = plan_of(lora_of(tmp_path, tensors), "OUT03=0.5 MID=0", "F16")
    assert plan.edition.edits == {
        f"{MODULE}.lora_up.weight": Fill(0.0, "F16"),
        f"{MODULE}.lora_down.weight": Multiply("F32", "F16", 1.0),
        f"{MODULE}.alpha": Multiply("F32", "F16", 1.0),
        "lora_unet_middle_block_1_out.set_weight": Drop(),
        "lora_unet_output_blocks_3_1_proj_in.lora_down.weight": Multiply("F32", "F16", 0.5),
        "lora_unet_output_blocks_3_1_proj_in.lora_up.weight": Multiply("F32", "F16", 1.0),
        "lora_unet_output_blocks_3_1_proj_in.alpha": Multiply("F32", "F16", 1.0),
    }


@pytest.mark.parametrize("dtype", [None, "F16", "F64"])
def test_the_layout_has_neither_gaps_nor_overlaps(tmp_path: Path, dtype: str | None) -> None:
    tensors = unet_lora() | {"lora_unet_input_blocks_4_1_proj_out.set_weight": np.ones((2, 2), np.float32)}
    lora = lora_of(tmp_path, tensors)
    plan = plan_of(lora, "IN04=0 *=0.5", dtype)
    position = 0
    itemsize = {"F16": 2, "F64": 8}.get(dtype or "", 4)
    for tensor in plan.edition.outputs.values():
        assert (tensor.start, tensor.nbytes) == (position, tensor.size * itemsize)
        position = tensor.end
    assert len(plan.edition.outputs) == len(lora.file.tensors) - 1


class TestAlike:
    """Files of a folder that list the same tensors share what was made of the list; nobody can tell."""

    @pytest.fixture
    def loras(self, tmp_path: Path) -> list[Lora]:
        """Two files that list the same tensors. A weight of 2 would take the first one's `lora_up` beyond float16."""
        tensors = unet_lora(["IN05", "MID"], dtype="float16")
        large = tensors | {f"{MODULE}.lora_up.weight": np.full_like(tensors[f"{MODULE}.lora_up.weight"], 60000)}
        metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
        write(tmp_path / "a.safetensors", large, metadata | {"ss_output_name": "a"})
        write(tmp_path / "b.safetensors", tensors, metadata)
        return [read_lora(tmp_path / f"{name}.safetensors") for name in "ab"]

    @staticmethod
    def planned(lora: Lora, weights: str, dtype: str | None = None) -> Plan:
        with TensorData(lora.file) as data:
            return plan_of(lora, weights, dtype, data.survey)

    def test_they_share_what_does_not_depend_on_their_data(self, loras: list[Lora]) -> None:
        one, other = (self.planned(lora, "OUT=0 *=0.5") for lora in loras)
        assert one.edition is other.edition
        assert [plan.lora.file.path.name for plan in (one, other)] == ["a.safetensors", "b.safetensors"]

    def test_what_depends_on_their_data_is_their_own(self, loras: list[Lora]) -> None:
        one, other, again = (self.planned(lora, "*=2") for lora in (*loras, loras[0]))
        name = f"{MODULE}.lora_{{}}.weight"
        assert (name.format("up") in one.edition.edits, name.format("up") in other.edition.edits) == (False, True)
        assert (name.format("down") in one.edition.edits, name.format("down") in other.edition.edits) == (True, False)
        assert one.edition.edits == again.edition.edits

    @pytest.mark.parametrize("other", [("*=0.25", None), ("MID=0.5", None), ("*=0.5 MID=1", None), ("*=0.5", "BF16")])
    def test_other_weights_or_dtypes_are_other_editions(self, loras: list[Lora], other: tuple[str, str | None]) -> None:
        first, second = self.planned(loras[0], "*=0.5"), self.planned(loras[0], *other)
        assert first.edition.edits != second.edition.edits
        assert self.planned(loras[1], "*=0.5").edition.edits == first.edition.edits

    def test_a_zero_is_one_whatever_its_sign_and_whichever_came_first(self, loras: list[Lora]) -> None:
        plans = [self.planned(lora, weights) for weights in ("*=-0", "*=0") for lora in loras]
        assert {str(decision.weight) for plan in plans for decision in plan.decisions} == {"0.0"}

    def test_the_family_is_each_ones_own(self, loras: list[Lora], tmp_path: Path) -> None:
        other = lora_of(tmp_path, unet_lora(["IN05", "MID"], dtype="float16"))
        assert (other.anatomy, loras[0].candidates) == (loras[0].anatomy, loras[1].candidates)
        assert [family.name for family in loras[0].candidates] == ["sdxl"]
        assert [family.name for family in other.candidates][:2] == ["sd1", "sd2"]


def by_family(sources: dict[str, str], default: str) -> Callable[[Family], FamilyWeights]:
    """Weights that say different things to different families."""
    return lambda family: Weights.of(sources.get(family.name, default)).for_family(family)


class TestFamilies:
    """One module that several families have: `IN05` of SD1, SD2 and SDXL."""

    @pytest.fixture
    def lora(self, tmp_path: Path) -> Lora:
        lora = lora_of(tmp_path, kohya_lora(["unet_input_blocks_5_1_proj_in"]))
        assert {"sd1", "sd2", "sdxl"} <= {family.name for family in lora.candidates}
        return lora

    @pytest.mark.parametrize(
        ("text", "family"),
        [("IN05=0.5 *=1", "sd1"), ("*=0.3", "sd1"), (",".join("1" * 17), "sd1"), (",".join("1" * 12), "sdxl")],
    )
    def test_they_may_differ_where_the_weights_mean_the_same(self, lora: Lora, text: str, family: str) -> None:
        assert agree(lora, Weights.of(text).for_family).family.name == family

    def test_they_may_not_differ_about_what_the_weights_mean(self, lora: Lora) -> None:
        sources = {"sd1": "IN05=1", "sd2": "IN05=1"}
        with pytest.raises(AmbiguousFamilyError) as problem:
            agree(lora, by_family(sources, "IN05=0"))
        assert {"sd1", "sd2", "sdxl"} <= set(problem.value.candidates)
        assert "fits sd1, sd2, " in problem.value.message
        assert problem.value.hint == "name the family: --family sd1"

    def test_families_for_which_the_weights_mean_nothing_do_not_count(self, lora: Lora) -> None:
        sources = {"sdxl": "IN05=0.5"}
        weights = agree(lora, by_family(sources, "1,2,3"))
        assert weights.family.name == "sdxl"

    def test_weights_that_mean_nothing_to_any_are_an_error(self, lora: Lora) -> None:
        with pytest.raises(WeightCountError):
            agree(lora, Weights.of("1,2,3").for_family)

    def test_a_family_that_is_named_ends_the_question(self, tmp_path: Path, lora: Lora, run: Run) -> None:
        command = ("bake", lora.file.path, "-p", "MIDD", "-o", tmp_path / "b.safetensors")
        error = run.refused(*command)
        assert "hint: name the family: --family sd1" in error
        run.done(*command, "--family", "sdxl")

    @pytest.mark.parametrize("name", ["sdlx", "SDX", "floox"])
    def test_an_unknown_family_suggests_the_nearest(self, name: str, lora: Lora) -> None:
        with pytest.raises(LbwError, match=f"unknown family '{name}'") as problem:
            read_lora(lora.file.path, name)
        assert problem.value.hint == f"did you mean {'flux' if name == 'floox' else 'sdxl'}?"
