"""The promise: the update of every module is multiplied by its weight, and nothing else changes."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import ml_dtypes
import numpy as np
import pytest
from conftest import (
    MODULE,
    SD1_BLOCKS,
    BakeFile,
    BakeTensors,
    Entry,
    Run,
    Tensors,
    content_of,
    data_of,
    entries_of,
    header_of,
    kohya_lora,
    lbw,
    measured,
    metadata_of,
    python,
    unet_lora,
    update_of,
    write,
    write_raw,
)
from formulas import BY_NAME, FORMULAS, Formula, for_each
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from lbw_bake.errors import FileFormatError
from lbw_bake.lora import read_lora
from lbw_bake.outputs import Target
from lbw_bake.planning import make_plan
from lbw_bake.rewrite import rewrite
from lbw_bake.scaling import Backend, Multiply, Transform, numpy_dtype
from lbw_bake.tensordata import TensorData
from lbw_bake.weights import parse_source, resolve

CASES = for_each()
NAMES = [MODULE.removeprefix("lora_")]


def numbers(dtype: str, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(5).uniform(0.2, 1.0, shape) * scale).astype(dtype)


def raw(name: str, dtype: str, values: np.ndarray) -> Entry:
    return name, dtype, values.shape, values.tobytes()


def changed(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, array in before.items() if array.tobytes() != after[name].tobytes()}


class TestLaw:
    @CASES
    @settings(max_examples=10, deadline=None)
    @given(weight=st.just(0.0) | st.floats(1e-3, 4) | st.floats(-4, -1e-3))
    @example(weight=-1.0)
    @example(weight=0.5)
    def test_the_update_is_multiplied_by_the_weight(
        self, case: Formula, weight: float, bake_tensors: BakeTensors
    ) -> None:
        original = case.tensors(MODULE)
        baked = bake_tensors(original, "-w", f"MID={weight!r}")
        expected = weight * case.update(original, MODULE)
        error = np.linalg.norm(case.update(baked, MODULE) - expected)
        assert error <= 1e-6 * np.linalg.norm(expected)

    @pytest.mark.parametrize("weight", [0.0, 0.3, -0.7, -1.0, 1.5])
    @CASES
    def test_one_factor_of_each_product_takes_it_and_nothing_else_changes(
        self, case: Formula, weight: float, bake_tensors: BakeTensors
    ) -> None:
        original = case.tensors(MODULE)
        baked = bake_tensors(original, "-w", f"MID={weight}")
        assert changed(original, baked) == case.carriers(MODULE, weight)

    @CASES
    def test_weight_zero_writes_zeros_where_trainers_start_with_them(
        self, case: Formula, bake_tensors: BakeTensors
    ) -> None:
        baked = bake_tensors(case.tensors(MODULE), "-w", "MID=0")
        assert {name for name, array in baked.items() if not array.any()} == case.carriers(MODULE, 0)

    @pytest.mark.parametrize(
        "options", [("-w", "*=1"), ("-p", "ALL", "--rest", "1"), ("-s", "1", "-w", ",".join("1" * 26))]
    )
    def test_weights_of_one_copy_the_data_byte_for_byte(
        self, options: tuple[str, ...], tmp_path: Path, bake_file: BakeFile
    ) -> None:
        tensors: Tensors = unet_lora(dtype="float16") | {"unknown": numbers("float32", 7)}
        for i, case in enumerate(FORMULAS):
            tensors |= case.tensors(f"lora_unet_input_blocks_{i % 12}_1_{i}")
        source = write(tmp_path / "a.safetensors", tensors)
        assert data_of(bake_file(source, "--family", "sd1", *options)) == data_of(source)

    def test_every_block_gets_its_own_weight(self, bake_tensors: BakeTensors) -> None:
        weights = [round(-1 + 0.15 * i, 2) for i in range(len(SD1_BLOCKS))]
        original = unet_lora()
        baked = bake_tensors(original, f"--weights={','.join(map(str, weights))}")
        assert measured(original, baked) == pytest.approx(weights)


class TestPrecision:
    @pytest.mark.parametrize("weight", [0.01, 0.1, 0.3, -0.3, 0.5, 0.7, 0.999])
    def test_tiny_factors_do_not_underflow(self, weight: float, bake_tensors: BakeTensors) -> None:
        tensors = kohya_lora(NAMES, dtype="float32")
        tensors[f"{MODULE}.lora_up.weight"] *= 2e-5
        tensors[f"{MODULE}.lora_down.weight"] *= 0.02
        original = {name: array.astype(np.float16) for name, array in tensors.items()}
        expected = weight * update_of(original, MODULE)
        error = np.linalg.norm(update_of(bake_tensors(original, "-w", f"*={weight}"), MODULE) - expected)
        assert error <= 2e-3 * np.linalg.norm(expected)

    def test_a_factor_that_would_overflow_leaves_it_to_the_other(self, bake_tensors: BakeTensors) -> None:
        original = kohya_lora(NAMES)
        original[f"{MODULE}.lora_up.weight"][0, 0] = 60000
        baked = bake_tensors(original, "-w", "*=2")
        assert changed(original, baked) == {f"{MODULE}.lora_down.weight"}
        np.testing.assert_allclose(update_of(baked, MODULE), 2 * update_of(original, MODULE))

    def test_infinities_that_were_there_stay(self, bake_tensors: BakeTensors) -> None:
        original = kohya_lora(NAMES)
        original[f"{MODULE}.lora_up.weight"][0, :2] = np.inf, np.nan
        up = bake_tensors(original, "-w", "*=2")[f"{MODULE}.lora_up.weight"]
        assert np.isposinf(up[0, 0])
        assert np.isnan(up[0, 1])
        np.testing.assert_array_equal(up[1:], 2 * original[f"{MODULE}.lora_up.weight"][1:])

    @pytest.mark.parametrize(("dtype", "weight"), [("float16", 3.0), ("float16", -1.5), ("float32", 1e38)])
    def test_where_every_factor_overflows_it_names_the_module_and_the_largest_safe_weight(
        self, dtype: str, weight: float, tmp_path: Path, run: Run
    ) -> None:
        tensors = kohya_lora(NAMES, dtype=dtype)
        for role, share in (("lora_up", 0.9), ("lora_down", 0.77)):
            tensors[f"{MODULE}.{role}.weight"][0, 0] = np.finfo(dtype).max * np.array(share, dtype)
        source, output = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
        error = run.refused("bake", source, "-w", f"*={weight}", "-o", output)
        assert f"{MODULE}: weight {weight:g} overflows" in error
        assert ("--dtype f32" in error) == (dtype == "float16")
        assert list(tmp_path.iterdir()) == [source]
        safe = float(error.split("largest safe weight is ")[1].split()[0])
        assert 1 / 0.78 < safe < 1 / 0.76
        run.done("bake", source, "-w", f"*={safe}", "-o", output)
        assert all(np.isfinite(array).all() for array in load_file(output).values())

    @pytest.mark.parametrize("product", [0.4, 0.9])
    def test_of_several_that_overflow_it_names_what_is_safe_for_all(
        self, product: float, tmp_path: Path, run: Run
    ) -> None:
        tensors = kohya_lora(NAMES)
        for role in ("lora_up", "lora_down"):
            tensors[f"{MODULE}.{role}.weight"][0, 0] = product * np.finfo(np.float16).max
        tensors[f"{MODULE}.diff_b"] = np.full(8, 40000, np.float16)
        source, output = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
        error = run.refused("bake", source, "-w", "*=4", "-o", output)
        safe = float(error.split("largest safe weight is ")[1].split()[0])
        run.done("bake", source, "-w", f"*={safe}", "-o", output)
        run.refused("bake", source, "-w", f"*={safe * 1.001}", "-o", tmp_path / "c.safetensors")

    def test_an_additive_tensor_that_overflows_is_an_error(self, tmp_path: Path, run: Run) -> None:
        source = write(tmp_path / "a.safetensors", {f"{MODULE}.diff": np.full((4, 4), 40000, np.float16)})
        error = run.refused("bake", source, "-w", "*=2", "-o", tmp_path / "b.safetensors")
        assert f"{MODULE}: weight 2 overflows F16; the largest safe weight is 1.6376" in error

    def test_a_neutral_value_is_a_number_also_where_integers_were(self, bake_tensors: BakeTensors) -> None:
        whole = {f"{MODULE}.oft_blocks": np.ones((2, 4, 4), np.float32), f"{MODULE}.rescale": np.full((8, 1), 3)}
        rescale = bake_tensors(whole, "-w", "*=0")[f"{MODULE}.rescale"]
        assert (rescale == 1).all()

    @pytest.mark.parametrize(
        ("value", "said"), [(60000.0, "weight 2 overflows F16"), (np.nan, "are no rotation"), (np.inf, "no rotation")]
    )
    def test_a_rotation_that_would_be_none_is_an_error(self, value: float, said: str, tmp_path: Path, run: Run) -> None:
        blocks = np.full((2, 4, 4), value, np.float16)
        source = write(tmp_path / "a.safetensors", {f"{MODULE}.oft_blocks": blocks})
        error = run.refused("bake", source, "-w", "*=2", "--inexact", "allow", "-o", tmp_path / "out.safetensors")
        assert said in error

    def test_wider_numbers_take_what_overflows(self, bake_tensors: BakeTensors) -> None:
        baked = bake_tensors({f"{MODULE}.diff": np.full((4, 4), 40000, np.float16)}, "-w", "*=2", "--dtype", "f32")
        np.testing.assert_array_equal(baked[f"{MODULE}.diff"], np.full((4, 4), 80000, np.float32))


FLOAT8 = {
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}


@pytest.fixture(params=FLOAT8)
def float8_lora(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Two modules of float8, one in MID, one in OUT03, of numbers around 1."""
    dtype = str(request.param)
    entries = [
        raw(f"{module}.{role}", dtype, numbers("float32", *shape, scale=2).astype(FLOAT8[dtype]))
        for module in (MODULE, "lora_unet_output_blocks_3_1_proj_in")
        for role, shape in (("alpha", ()), ("lora_down.weight", (2, 8)), ("lora_up.weight", (8, 2)))
    ]
    return write_raw(tmp_path / f"{dtype}.safetensors", entries)


class TestFloat8:
    @pytest.mark.parametrize("weight", [0.5, -1.0, 2.0, 0.0])
    def test_it_stays_where_the_product_is_exact(self, weight: float, float8_lora: Path, bake_file: BakeFile) -> None:
        before, after = entries_of(float8_lora), entries_of(bake_file(float8_lora, "-w", f"MID={weight} *=1"))
        assert {name: entry[0] for name, entry in after.items()} == {name: entry[0] for name, entry in before.items()}

    def test_a_module_is_widened_as_a_whole_where_it_is_not(self, float8_lora: Path, bake_file: BakeFile) -> None:
        before, after = entries_of(float8_lora), entries_of(bake_file(float8_lora, "-w", "MID=0.3 *=1"))
        float8 = FLOAT8[float8_lora.stem]
        for name, (dtype, _, data) in after.items():
            if not name.startswith(MODULE):
                assert (dtype, data) == (before[name][0], before[name][2])
                continue
            weight = 0.3 if name.endswith("down.weight") else 1.0
            old = np.frombuffer(before[name][2], float8).astype(np.float64)
            new = np.frombuffer(data, ml_dtypes.bfloat16).astype(np.float64)
            assert dtype == "BF16"
            np.testing.assert_allclose(new, weight * old, rtol=2**-8 if weight != 1 else 0)

    def test_wider_tensors_of_a_widened_module_keep_their_bytes(self, tmp_path: Path, bake_file: BakeFile) -> None:
        entries = [
            raw(f"{MODULE}.alpha", "F32", np.array(1.7, np.float32)),
            *(
                raw(f"{MODULE}.{role}.weight", "F8_E4M3", numbers("float32", *shape).astype(ml_dtypes.float8_e4m3fn))
                for role, shape in (("lora_down", (2, 8)), ("lora_up", (8, 2)))
            ),
        ]
        source = write_raw(tmp_path / "a.safetensors", entries)
        alpha = entries_of(bake_file(source, "-w", "*=0.3"))[f"{MODULE}.alpha"]
        assert alpha == ("F32", (), np.array(1.7, np.float32).tobytes())

    def test_a_wide_factor_beside_a_float8_one_loses_nothing(self, tmp_path: Path, bake_file: BakeFile) -> None:
        down, up = numbers("float32", 2, 8), numbers("float32", 8, 2).astype(ml_dtypes.float8_e4m3fn)
        entries = [raw(f"{MODULE}.lora_down.weight", "F32", down), raw(f"{MODULE}.lora_up.weight", "F8_E4M3", up)]
        baked = entries_of(bake_file(write_raw(tmp_path / "a.safetensors", entries), "-w", "*=0.3"))
        dtype, _, data = baked[f"{MODULE}.lora_down.weight"]
        assert dtype == "F32"
        assert data == (0.3 * down.astype(np.float64)).astype(np.float32).tobytes()


NUMPY = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16), "f32": np.dtype(np.float32)}


class TestDtype:
    @pytest.mark.parametrize("weight", [1.0, 0.5, 0.0, 1.5])
    @pytest.mark.parametrize("target", NUMPY)
    @pytest.mark.parametrize("source", NUMPY)
    def test_all_floats_of_modules_are_re_encoded(
        self, source: str, target: str, weight: float, bake_tensors: BakeTensors
    ) -> None:
        original = {name: array.astype(NUMPY[source]) for name, array in kohya_lora(NAMES, dtype="float32").items()}
        baked = bake_tensors(original, "-w", f"*={weight}", "--dtype", target)
        scaled = "lora_down" if 0 < weight < 1 else "lora_up"
        for name, array in original.items():
            factor = weight if scaled in name else 1.0
            # Products of these weights are exact in float32, so this cast is the only rounding.
            expected = (array.astype(np.float32) * np.float32(factor)).astype(NUMPY[target])
            assert baked[name].dtype == NUMPY[target]
            np.testing.assert_array_equal(baked[name], expected)

    def test_the_exact_product_is_rounded_once(self, bake_tensors: BakeTensors) -> None:
        tensors = kohya_lora(NAMES, dtype="float32")
        tensors[f"{MODULE}.lora_up.weight"][:] = 1 + 2.0**-8
        baked = bake_tensors(tensors, "-w", f"*={1 + 2.0**-40!r}", "--dtype", "bf16")
        assert (baked[f"{MODULE}.lora_up.weight"].astype(np.float32) == 1 + 2.0**-7).all()

    @pytest.mark.parametrize(("alpha", "kept"), [(1.0, False), (0.3, True), (1e6, True)])
    def test_alpha_is_re_encoded_only_where_that_does_not_change_it(
        self, alpha: float, kept: bool, bake_tensors: BakeTensors
    ) -> None:
        tensors = kohya_lora(NAMES, dtype="float32") | {f"{MODULE}.alpha": np.array(alpha, np.float32)}
        result = bake_tensors(tensors, "-w", "*=0.5", "--dtype", "f16")[f"{MODULE}.alpha"]
        assert result.dtype == (np.float32 if kept else np.float16)
        assert result.astype(np.float32) == np.float32(alpha)

    @pytest.mark.parametrize(
        ("role", "factors"),
        [
            ("scale", ("lora_down.weight", "lora_up.weight")),
            ("dora_scale", ("lora_down.weight", "lora_up.weight")),
            ("lora_magnitude_vector", ("lora_A.weight", "lora_B.weight")),
            ("rescale", ("oft_blocks",)),
            ("oft_diag", ()),
        ],
    )
    def test_what_is_no_factor_is_not_rounded(
        self, role: str, factors: tuple[str, ...], bake_tensors: BakeTensors
    ) -> None:
        tensors = {f"{MODULE}.{name}": numbers("float32", 4, 4) for name in (role, *factors)}
        result = bake_tensors(tensors, "-w", "*=1", "--dtype", "bf16")
        assert changed(tensors, result) == {f"{MODULE}.{name}" for name in factors}

    def test_integers_and_unknown_tensors_are_not_re_encoded(self, bake_tensors: BakeTensors) -> None:
        case = next(case for case in FORMULAS if case.integers)
        tensors = case.tensors(MODULE) | {"unknown": numbers("float64", 3)}
        result = bake_tensors(tensors, "-w", "*=0.5", "--dtype", "f16")
        kept = {f"{MODULE}.{role}" for role in case.integers} | {"unknown"}
        assert {name for name, array in result.items() if array.dtype != np.float16} == kept

    def test_values_beyond_the_new_dtype_are_an_error(self, tmp_path: Path, run: Run) -> None:
        tensors = kohya_lora(NAMES, dtype="float32")
        tensors[f"{MODULE}.lora_up.weight"][0, 0] = 1e6
        source = write(tmp_path / "a.safetensors", tensors)
        error = run.refused("bake", source, "-w", "*=1", "--dtype", "f16", "-o", tmp_path / "b.safetensors")
        assert MODULE in error
        assert list(tmp_path.iterdir()) == [source]


class Nonlinear(NamedTuple):
    """A module linear in none of its tensors: what weight 0 leaves of it, and which of that it makes constant."""

    tensors: Tensors
    left: tuple[str, ...] = ()
    constants: Mapping[str, float] = MappingProxyType({})


def module(**roles: np.ndarray) -> Tensors:
    return {f"{MODULE}.{role}": array for role, array in roles.items()}


MAGNITUDE = numbers("float16", 1, 8)
PEFT = {"lora_A.weight": numbers("float16", 2, 8), "lora_B.weight": numbers("float16", 8, 2)}
LOHA = BY_NAME["loha"].tensors(MODULE, "float16")
OFT = {"oft_blocks": numbers("float16", 2, 4, 4), "alpha": np.array(0.01, np.float16)}
SPLIT_OFT = {f"oft_blocks.{i}": numbers("float16", 2, 4, 4) for i in range(3)}
TLORA = {role: numbers("float16", 4, 4) for role in ("q_layer.weight", "p_layer.weight", "lambda_layer")}
NONLINEAR = {
    "dora": Nonlinear(
        kohya_lora(NAMES) | module(dora_scale=MAGNITUDE),
        ("lora_down.weight", "lora_up.weight", "alpha"),
        {"lora_up.weight": 0},
    ),
    "dora of loha": Nonlinear(
        LOHA | module(dora_scale=MAGNITUDE),
        ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha"),
        {"hada_w2_a": 0},
    ),
    "peft dora": Nonlinear(module(**PEFT, lora_magnitude_vector=MAGNITUDE)),
    "oft": Nonlinear(module(**OFT), tuple(OFT), {"oft_blocks": 0}),
    "rescaled oft": Nonlinear(
        module(**OFT, rescale=numbers("float16", 8, 1)),
        (*OFT, "rescale"),
        {"oft_blocks": 0, "rescale": 1},
    ),
    "split oft": Nonlinear(module(**SPLIT_OFT), tuple(SPLIT_OFT), dict.fromkeys(SPLIT_OFT, 0)),
    "set": Nonlinear(module(set_weight=numbers("float16", 8, 8))),
    "tlora": Nonlinear(module(**TLORA)),
}
NONLINEAR_CASES = pytest.mark.parametrize("case", NONLINEAR.values(), ids=NONLINEAR)
# A module that no weight of MID touches, so that something is left.
BYSTANDER = kohya_lora(["unet_output_blocks_3_1_proj_in"])


class TestNonlinear:
    @NONLINEAR_CASES
    def test_weight_zero_is_neutral(self, case: Nonlinear, tmp_path: Path, run: Run) -> None:
        tensors = case.tensors | BYSTANDER
        source, output = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
        error = run.done("bake", source, "-w", "MID=0 *=1", "-o", output)
        assert f"warning: {source}: 1 " in error
        assert MODULE in error
        baked = load_file(output)
        assert baked.keys() == {f"{MODULE}.{role}" for role in case.left} | BYSTANDER.keys()
        for name, array in baked.items():
            constant = case.constants.get(name.removeprefix(f"{MODULE}."))
            expected = tensors[name] if constant is None else np.full_like(array, constant)
            np.testing.assert_array_equal(array, expected)

    @NONLINEAR_CASES
    def test_weight_one_copies_it(self, case: Nonlinear, bake_tensors: BakeTensors) -> None:
        tensors = case.tensors | BYSTANDER
        assert changed(tensors, bake_tensors(tensors, "-w", "MID=1 *=0.5")) == {
            "lora_unet_output_blocks_3_1_proj_in.lora_down.weight"
        }

    @pytest.mark.parametrize("weight", [0.5, -1.0, 2.0])
    @NONLINEAR_CASES
    def test_any_other_weight_is_refused_by_name(
        self, case: Nonlinear, weight: float, tmp_path: Path, run: Run
    ) -> None:
        source = write(tmp_path / "a.safetensors", case.tensors | BYSTANDER)
        error = run.refused("bake", source, "-w", f"MID={weight} *=1", "-o", tmp_path / "b.safetensors")
        assert MODULE in error
        assert "hint: give 0 or 1 to MID" in error
        assert list(tmp_path.iterdir()) == [source]

    def test_a_refusal_counts_the_modules_by_kind(self, tmp_path: Path, run: Run) -> None:
        names = [f"unet_output_blocks_{i}_1_proj_in" for i in (3, 4, 5)]
        tensors = kohya_lora(names) | {f"lora_{name}.dora_scale": MAGNITUDE for name in names} | module(**OFT)
        source = write(tmp_path / "a.safetensors", tensors)
        error = run.refused("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
        assert "1 oft, 3 lora+dora modules" in error

    def test_what_is_left_after_a_removal_is_a_valid_file_in_the_old_order(
        self, tmp_path: Path, bake_file: BakeFile
    ) -> None:
        tensors = {f"{MODULE}.set_weight": numbers("float16", 8, 8)} | BYSTANDER
        entries = [raw(name, "F16", np.asarray(array)) for name, array in tensors.items()]
        source = write_raw(tmp_path / "a.safetensors", [*entries[2:], *entries[:2]], header_order=lambda name: name)
        baked = bake_file(source, "-w", "MID=0 *=1")
        assert list(entries_of(baked)) == sorted(BYSTANDER)
        with safe_open(baked, framework="np") as judge:
            assert {name: judge.get_tensor(name).tobytes() for name in judge.keys()} == {  # noqa: SIM118
                name: array.tobytes() for name, array in BYSTANDER.items()
            }


UNKNOWN = {
    "unknown": ("F16", (2,), b"abcd"),
    f"{MODULE}.novel_factor": ("F8_E8M0", (4,), b"wxyz"),
    "bundle_emb.doraemon.string_to_param.*": ("F32", (1,), b"1234"),
    "first_stage_model.conv.weight": ("BF16", (1,), b"12"),
    "lora_unet_orphan.alpha": ("I64", (), b"12345678"),
}


class TestUntouched:
    def source(self, folder: Path) -> Path:
        known = [raw(name, "F16", array) for name, array in kohya_lora(NAMES).items()]
        return write_raw(folder / "a.safetensors", [*((name, *facts) for name, facts in UNKNOWN.items()), *known])

    @pytest.mark.parametrize("options", [("-w", "*=0"), ("-w", "*=0.5", "--dtype", "f32"), ("-w", "*=1"), ("-s", "0")])
    def test_what_is_not_understood_survives(
        self, options: tuple[str, ...], tmp_path: Path, bake_file: BakeFile
    ) -> None:
        baked = entries_of(bake_file(self.source(tmp_path), *options))
        assert {name: baked[name] for name in UNKNOWN} == UNKNOWN

    def test_it_is_listed_by_name(self, tmp_path: Path, run: Run) -> None:
        _, _, error = run("bake", self.source(tmp_path), "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
        # Embeddings that come with a LoRA are understood: they have no weight.
        unknown = [name for name in UNKNOWN if not name.startswith("bundle_emb")]
        assert f"{len(unknown)} unknown tensors copied untouched" in error
        assert all(name in error for name in unknown)

    def test_a_model_that_nobody_described_is_doubted(self, tmp_path: Path, run: Run) -> None:
        names = [f"unet_blocks_{n}_self_attn_q" for n in range(30)]
        source = write(tmp_path / "a.safetensors", kohya_lora(names, width=2000))
        options = ("bake", source, "-w", "*=0.5", "--family", "wan_1_3b", "-o", tmp_path / "b.safetensors")
        doubt = "few of its modules are layers of Wan 1.3B"
        assert doubt in run.done(*options)
        assert "ss_base_model_version" not in metadata_of(tmp_path / "b.safetensors")
        error = run.refused(*options, "-f", "--strict")
        assert doubt in error
        assert doubt in run("inspect", source)[2]

    def test_absolute_norm_scales_are_kept_and_said(self, tmp_path: Path, run: Run) -> None:
        name = "double_blocks.0.img_attn.norm.key_norm.scale"
        tensors = kohya_lora(["unet_double_blocks_0_img_attn_proj"]) | {name: numbers("float16", 4)}
        source = write(tmp_path / "a.safetensors", tensors)
        options = ("-w", "*=0.5", "--family", "flux", "-o", tmp_path / "b.safetensors")
        error = run.done("bake", source, *options)
        assert "1 absolute value kept" in error
        np.testing.assert_array_equal(load_file(tmp_path / "b.safetensors")[name], tensors[name])


class TestFile:
    @pytest.mark.parametrize("order", [lambda name: name, lambda name: name[::-1]], ids=["a-z", "mixed"])
    def test_tensors_and_header_keep_their_order(
        self, order: Callable[[str], str], tmp_path: Path, bake_file: BakeFile
    ) -> None:
        entries = [raw(name, "F16", array) for name, array in unet_lora(dtype="float16").items()]
        source = write_raw(tmp_path / "a.safetensors", entries[::-1], {"z": "1"}, order)
        before, after = header_of(source), header_of(bake_file(source, "-p", "MIDD"))
        del before["__metadata__"], after["__metadata__"]
        assert list(after.items()) == list(before.items())

    def test_the_same_bytes_in_every_process(self, tmp_path: Path) -> None:
        source = write(tmp_path / "a.safetensors", unet_lora(), {f"key {i}": str(i) for i in range(20)})
        for seed in ("1", "2"):
            output = tmp_path / seed / "out.safetensors"
            output.parent.mkdir()
            options = ("-w", "R,U,X," + ",".join("R" * 14), "--seed", "3", "--x", "0.5", "-o", output)
            assert lbw("bake", source, *options, PYTHONHASHSEED=seed).returncode == 0
        one, two = ((tmp_path / seed / "out.safetensors").read_bytes() for seed in "12")
        assert one == two

    @pytest.mark.parametrize(("weight", "dtype"), [(0.5, "keep"), (1.5, "f32"), (0.0, "keep"), (0.0, "f32")])
    def test_tensors_of_many_pieces(self, weight: float, dtype: str, bake_tensors: BakeTensors) -> None:
        """A piece is a megabyte: nothing may go wrong at its ends."""
        diff = np.random.default_rng(0).standard_normal((1000, 1111)).astype(np.float16)
        expected = (diff.astype(np.float64) * weight).astype(np.float32 if dtype == "f32" else np.float16)
        baked = bake_tensors({f"{MODULE}.diff": diff}, "-w", f"*={weight}", "--dtype", dtype)
        np.testing.assert_array_equal(baked[f"{MODULE}.diff"], expected)

    @pytest.mark.parametrize("weight", [0.5, 0.0, 1.0])
    def test_empty_tensors(self, weight: float, bake_tensors: BakeTensors) -> None:
        tensors = kohya_lora(NAMES) | {f"{MODULE}.diff_b": np.zeros((0,), np.float16)}
        assert bake_tensors(tensors, "-w", f"*={weight}")[f"{MODULE}.diff_b"].shape == (0,)

    @pytest.mark.parametrize("presets", [("NONE",), ("ALL",), ("MIDD", "OUTALL")], ids=" ".join)
    def test_only_long_runs_are_left_to_the_kernel(
        self, presets: tuple[str, ...], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Some file systems have each of its copies wait for the disk."""
        source = write(
            tmp_path / "a.safetensors", kohya_lora([*NAMES, "unet_output_blocks_3_1_proj_in"], width=1 << 16)
        )
        asked, long = [], 128 * 1024

        def refuse(_: int, __: int, count: int, **___: int) -> int:
            asked.append(count)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
        monkeypatch.setattr("lbw_bake.outputs._LONG", long)
        options = [option for preset in presets for option in ("-p", preset)]
        run.done("bake", source, *options, "--out-dir", tmp_path / "out", "--name", "{preset}", "--family", "sd1")
        assert asked
        assert min(asked) >= long

    @pytest.mark.parametrize("metadata", [{}, {"sshs_model_hash": "0"}], ids=["", "hashed"])
    @pytest.mark.parametrize("weights", ["IN04=0.5 MID=0 OUT03=1", "IN04=0.5 OUT03=1 *=-0.75", "*=1", "*=0.3"])
    @pytest.mark.parametrize("seed", range(4))
    def test_tensors_are_read_in_many_ways_and_all_come_out_the_same(
        self,
        seed: int,
        weights: str,
        metadata: dict[str, str],
        tmp_path: Path,
        bake_file: BakeFile,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """By themselves or together, by this thread, the one that writes or the kernel: by how many bytes they have."""
        for limit, nbytes in (("_SHORT", 200), ("_TOGETHER", 1000), ("_LONG", 4000)):
            monkeypatch.setattr(f"lbw_bake.outputs.{limit}", nbytes)
        pick = np.random.default_rng(seed)
        layers = {"IN04": "input_blocks_4_1", "MID": "middle_block_1", "OUT03": "output_blocks_3_1"}
        given = {block: float(weight) for block, _, weight in (rule.partition("=") for rule in weights.split())}
        entries, expected = [], {}
        for i in range(40):
            block, dtype = pick.choice(list(layers)), pick.choice(["F16", "F32", "BF16"])
            values = pick.uniform(0.1, 1, pick.choice([1, 30, 99, 101, 499, 501, 2500])).astype(numpy_dtype(dtype))
            name = f"lora_unet_{layers[block]}_transformer_blocks_{i}_attn1_to_q.diff"
            entries.append(raw(name, dtype, values))
            product = values.astype(np.float64) * given.get(block, given.get("*"))
            expected[name] = raw(name, dtype, product.astype(values.dtype))[1:]
        source = write_raw(tmp_path / "a.safetensors", entries, metadata)
        baked = entries_of(bake_file(source, "-w", weights, "--family", "sd1"))
        assert {name: baked[name] for name in expected} == expected

    def test_the_input_stays_as_it_was(self, lora: Path, bake_file: BakeFile) -> None:
        before = lora.read_bytes(), lora.stat().st_mtime_ns
        bake_file(lora, "-p", "MIDD")
        assert (lora.read_bytes(), lora.stat().st_mtime_ns) == before

    @pytest.mark.parametrize("dtype", ["I8", "BOOL", "C64", "F8_E8M0", "F4"])
    def test_numbers_that_cannot_be_multiplied_are_refused_by_name(self, dtype: str, tmp_path: Path, run: Run) -> None:
        nbytes = {"C64": 8, "F4": 0.5}.get(dtype, 1)
        entries = [
            (f"{MODULE}.{role}.weight", dtype, shape, bytes(int(16 * nbytes)))
            for role, shape in (("lora_down", (2, 8)), ("lora_up", (8, 2)))
        ]
        source = write_raw(tmp_path / "a.safetensors", entries)
        error = run.refused("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
        assert f"{MODULE}.lora_down.weight has dtype {dtype}" in error

    @pytest.mark.parametrize("dtype", ["I8", "BOOL", "C64", "F8_E8M0", "F4"])
    def test_weight_zero_needs_no_multiplication(self, dtype: str, tmp_path: Path, bake_file: BakeFile) -> None:
        nbytes = {"C64": 8, "F4": 0.5}.get(dtype, 1)
        content = b"\x01" * int(16 * nbytes)
        entries = [
            (f"{MODULE}.{role}.weight", dtype, shape, content)
            for role, shape in (("lora_down", (2, 8)), ("lora_up", (8, 2)))
        ]
        baked = entries_of(bake_file(write_raw(tmp_path / "a.safetensors", entries), "-w", "*=0"))
        assert baked[f"{MODULE}.lora_up.weight"] == (dtype, (8, 2), bytes(len(content)))


class TestSourceThatChanges:
    """The backend is where a bake can be caught in the middle."""

    HASHED: ClassVar = {"sshs_model_hash": "0"}

    @pytest.fixture(
        params=[({}, 0, 0), ({}, 200, 200), (HASHED, 0, 0), (HASHED, 0, 200)],
        ids=["read by the thread that writes", "read together", "hashed", "hashed, read together"],
    )
    def source(self, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
        metadata, short, together = request.param
        monkeypatch.setattr("lbw_bake.outputs._SHORT", short)
        monkeypatch.setattr("lbw_bake.outputs._TOGETHER", together)
        return write(tmp_path / "a.safetensors", unet_lora(dtype="float16"), metadata)

    @pytest.fixture
    def bake_while(self, source: Path, tmp_path: Path) -> Iterator[Callable[[Callable[[], object]], None]]:
        lora = read_lora(source)
        weights = resolve(parse_source("*=0.5"), lora.candidates[0])
        with TensorData(lora.file) as data:
            plan = make_plan(lora, weights, data.survey)

        def call(meddle: Callable[[], object]) -> None:
            class Meddling(Backend):
                def transform(self, step: Multiply) -> Transform:
                    meddle()
                    return step.transform()

            rewrite([Target(plan, tmp_path / "b.safetensors")], Meddling())

        yield call
        assert {path.name for path in tmp_path.iterdir()} <= {"a.safetensors", "kept"}

    def test_a_source_that_shrinks(self, source: Path, bake_while: Callable[[Callable[[], object]], None]) -> None:
        def shrink() -> None:
            with source.open("r+b") as file:
                file.truncate(source.stat().st_size // 2)

        with pytest.raises(FileFormatError, match=r"a\.safetensors: became shorter while it was read"):
            bake_while(shrink)

    @pytest.mark.skipif(not hasattr(os, "copy_file_range"), reason="the kernel copies nothing here")
    def test_a_source_that_shrinks_while_the_kernel_copies(
        self, lora: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        copy = os.copy_file_range

        def shrink_and_copy(*given: int, **where: int) -> int:
            os.truncate(lora, lora.stat().st_size // 2)
            return copy(*given, **where)

        monkeypatch.setattr("lbw_bake.outputs._LONG", 0)
        monkeypatch.setattr(os, "copy_file_range", shrink_and_copy)
        error = run.refused("bake", lora, "-w", "*=1", "-o", tmp_path / "b.safetensors")
        assert "a.safetensors: became shorter while it was read" in error
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    def test_a_source_that_is_written_to(
        self, source: Path, bake_while: Callable[[Callable[[], object]], None]
    ) -> None:
        def scribble() -> None:
            with source.open("ab") as file:
                file.write(b"x")

        with pytest.raises(FileFormatError, match=r"a\.safetensors: changed while it was read"):
            bake_while(scribble)

    @pytest.mark.parametrize("same", [False, True], ids=["another file", "a copy with the same times"])
    def test_a_source_whose_name_goes_to_another_file(
        self, same: bool, source: Path, bake_while: Callable[[Callable[[], object]], None]
    ) -> None:
        def rename() -> None:
            copy = source.with_name("copy")
            shutil.copy2(source, copy) if same else copy.write_bytes(b"something else")
            copy.replace(source)

        with pytest.raises(FileFormatError, match=r"a\.safetensors: was replaced while it was read"):
            bake_while(rename)

    def test_a_source_that_is_removed_is_still_baked(self, source: Path, tmp_path: Path, run: Run) -> None:
        """It may have been the only copy: what is open is whole."""
        code = (
            "import sys; from pathlib import Path; from lbw_bake import cli, rewrite\n"
            "carry_out = rewrite._carry_out\n"
            "def remove(*given): Path(sys.argv[2]).unlink(); return carry_out(*given)\n"
            "rewrite._carry_out = remove; cli.main(sys.argv[1:])"
        )
        run.done("bake", source, "-w", "*=0.5", "-o", tmp_path / "c.safetensors")
        assert python("-c", code, "bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors").returncode == 0
        assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()


# Dtype -> the bits of a NaN, of another one, of infinity and of its negative, where the dtype has them.
NOT_FINITE = {
    "F64": (0x7FF8000000000001, 0xFFF0000000000001, 0x7FF0000000000000, 0xFFF0000000000000),
    "F32": (0x7FC00001, 0xFF800001, 0x7F800000, 0xFF800000),
    "F16": (0x7E01, 0xFC01, 0x7C00, 0xFC00),
    "BF16": (0x7FC1, 0xFF81, 0x7F80, 0xFF80),
    "F8_E5M2": (0x7E, 0xFD, 0x7C, 0xFC),
    "F8_E4M3": (0x7F, 0xFF),
    "F8_E4M3FNUZ": (0x80,),
    "F8_E5M2FNUZ": (0x80,),
}


class TestNumbersThatAreNone:
    """NaN and infinity that are there stay, and are reported where the data is read; none are made."""

    @staticmethod
    def lora_of(dtype: str, bits: Sequence[int], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
        size = numpy_dtype(dtype).itemsize
        values = np.zeros(16, f"u{size}")
        values[: len(bits)] = bits
        entries = [
            (f"{MODULE}.lora_down.weight", dtype, (2, 8), values.tobytes()),
            (f"{MODULE}.lora_up.weight", dtype, (8, 2), bytes(16 * size)),
        ]
        return write_raw(path, entries, metadata)

    @pytest.mark.parametrize("dtype", NOT_FINITE)
    def test_they_stay_and_are_counted(self, dtype: str, tmp_path: Path, run: Run) -> None:
        bits = NOT_FINITE[dtype]
        source = self.lora_of(dtype, bits, tmp_path / "a.safetensors")
        error = run.done("bake", source, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")
        nan = min(len(bits), 2)
        down = f"{MODULE}.lora_down.weight"
        counted = f"{nan} NaN and {len(bits) - nan} infinite numbers in 1 tensor are kept as they are"
        assert f"{counted} (the first is {down})" in error
        assert entries_of(tmp_path / "b.safetensors")[down][2] == entries_of(source)[down][2]

    def test_under_strict_nothing_appears(self, tmp_path: Path, run: Run) -> None:
        source = self.lora_of("F16", NOT_FINITE["F16"], tmp_path / "a.safetensors")
        output = tmp_path / "b.safetensors"
        output.write_bytes(b"old")
        error = run.refused("bake", source, "-w", "*=0.5", "-o", output, "--force", "--strict")
        assert "2 NaN and 2 infinite numbers" in error
        assert content_of(tmp_path) == {"a.safetensors": source.read_bytes(), "b.safetensors": b"old"}

    @pytest.mark.parametrize("weight", [1, 0.5])
    def test_a_dtype_without_room_for_a_tensor_is_said(self, weight: float, tmp_path: Path, run: Run) -> None:
        tensors = kohya_lora(NAMES, dtype="float32")
        tensors[f"{MODULE}.lora_up.weight"] *= 1e-9
        tensors[f"{MODULE}.lora_down.weight"] = np.ones((4, 320), np.float32)
        tensors[f"{MODULE}.lora_down.weight"][0, 0] = 1e-12  # one of many is no loss
        source = write(tmp_path / "a.safetensors", tensors)
        bake = ("bake", source, "-w", f"*={weight}", "-o", tmp_path / "b.safetensors")
        count = tensors[f"{MODULE}.lora_up.weight"].size
        said = f"{count} numbers in 1 tensor (the first is {MODULE}.lora_up.weight) are too small for the new dtype"
        assert said in run.refused(*bake, "--dtype", "f16", "--strict")
        assert said in run.done(*bake, "--dtype", "f16")
        assert "too small" not in run.done(*bake, "--dtype", "bf16", "--force", "--strict")

    @pytest.mark.parametrize("hashed", [False, True])
    def test_what_is_copied_unread_is_not_looked_at(self, hashed: bool, tmp_path: Path, run: Run) -> None:
        metadata = {"sshs_model_hash": "0"} if hashed else None
        source = self.lora_of("F16", NOT_FINITE["F16"], tmp_path / "a.safetensors", metadata)
        error = run.done("bake", source, "-w", "*=1", "-o", tmp_path / "b.safetensors")
        assert ("NaN" in error) == hashed

    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
    def test_the_signs_of_zeros_stay_and_denormals_are_rounded_once(
        self, dtype: str, bake_tensors: BakeTensors
    ) -> None:
        tiny = np.finfo(dtype).smallest_subnormal
        values = np.array([[0.0, -0.0, tiny, -tiny, 3 * tiny, -3 * tiny, 5 * tiny, 2 * tiny]], dtype)
        tensors = {f"{MODULE}.lora_down.weight": values, f"{MODULE}.lora_up.weight": np.ones((8, 1), dtype)}
        baked = bake_tensors(tensors, "-w", "*=0.5")[f"{MODULE}.lora_down.weight"]
        # Halves between two numbers go to the even one.
        expected = np.array([[0.0, -0.0, 0.0, -0.0, 2 * tiny, -2 * tiny, 2 * tiny, tiny]], dtype)
        np.testing.assert_array_equal(baked.view(f"u{baked.itemsize}"), expected.view(f"u{baked.itemsize}"))
