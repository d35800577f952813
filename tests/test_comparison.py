"""The weight each block really got, measured, and held to what the file says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MODULE, SD1_BLOCKS, BakeFile, Run, kohya_lora, metadata_of, unet_lora, write
from formulas import BY_NAME, FORMULAS, Formula, for_each
from safetensors.numpy import load_file


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write(tmp_path / "original.safetensors", unet_lora())


def compared(run: Run, original: Path, baked: Path, expect: int = 0) -> dict[str, Any]:
    code, out, error = run("diff", original, baked, "--json")
    assert code == expect, error
    return dict(json.loads(out))


def rewritten(baked: Path, tensors: Mapping[str, np.ndarray] = {}, **metadata: str) -> Path:
    """The same file with some tensors and metadata replaced, by another tool."""
    return write(
        baked.with_name("rewritten.safetensors"), load_file(baked) | dict(tensors), metadata_of(baked) | metadata
    )


def test_it_measures_the_weight_of_every_block(original: Path, bake_file: BakeFile, run: Run) -> None:
    weights = [round(-1 + 0.15 * i, 2) for i in range(len(SD1_BLOCKS))]
    facts = compared(run, original, bake_file(original, f"--weights={','.join(map(str, weights))}"))
    assert facts["matches_record"] is True
    assert list(facts["blocks"]) == SD1_BLOCKS
    assert [block["weight"] for block in facts["blocks"].values()] == pytest.approx(weights)
    assert all(block["modules"] == 1 and block["error"] < 1e-6 for block in facts["blocks"].values())


def test_what_is_in_no_block_is_measured_after_those_that_are(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", kohya_lora(["unet_time_embed_0", "unet_middle_block_1_proj_in"]))
    facts = compared(run, source, bake_file(source, "-w", "MID=0.5", "--other", "0.25", "--family", "sd1"))
    assert facts["matches_record"] is True
    assert [(block, of["weight"]) for block, of in facts["blocks"].items()] == [("MID", 0.5), ("OTHER", 0.25)]


@for_each(case for case in FORMULAS if case.name not in ("vera", "ia3 on the input"))
def test_every_measurable_algorithm_is_measured(case: Formula, tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", case.tensors(MODULE))
    facts = compared(run, source, bake_file(source, "-w", "*=-0.3"))
    assert facts["blocks"]["MID"]["weight"] == pytest.approx(-0.3, rel=1e-6)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("options", [("-w", "*=0.3"), ("-w", "*=0.3", "-s", "0.5", "--element", "MID:proj:1.1")])
def test_rounding_is_no_contradiction(
    dtype: str, options: tuple[str, ...], original: Path, bake_file: BakeFile, run: Run
) -> None:
    assert compared(run, original, bake_file(original, *options, "--dtype", dtype))["matches_record"] is True


@pytest.mark.parametrize("weight", [0.3, -0.3, 2.0])
def test_the_weight_may_be_in_the_other_factor(weight: float, original: Path, bake_file: BakeFile, run: Run) -> None:
    """As other tools have it: the update is the same."""
    tensors, other = load_file(original), "lora_up" if abs(weight) < 1 else "lora_down"
    scaled = {name: (weight * array).astype(np.float32) for name, array in tensors.items() if other in name}
    same = rewritten(bake_file(original, "-w", f"*={weight}"), tensors | scaled)
    assert compared(run, original, same)["matches_record"] is True


def test_a_block_of_another_weight_contradicts_the_record(original: Path, bake_file: BakeFile, run: Run) -> None:
    baked = bake_file(original, "-w", "*=0.5")
    wrong = rewritten(baked, {f"{MODULE}.lora_up.weight": 1.01 * load_file(baked)[f"{MODULE}.lora_up.weight"]})
    facts = compared(run, original, wrong, expect=1)
    assert facts["matches_record"] is False
    assert len(facts["contradictions"]) == 1
    assert MODULE in facts["contradictions"][0]
    assert facts["blocks"]["MID"]["weight"] == pytest.approx(0.505)


def test_noise_contradicts_the_record_even_where_the_weight_is_right(
    original: Path, bake_file: BakeFile, run: Run
) -> None:
    baked = bake_file(original, "-w", "*=0.5")
    down, up = (load_file(baked)[f"{MODULE}.{role}.weight"] for role in ("lora_down", "lora_up"))
    noise = 0.05 * np.random.default_rng(0).standard_normal(up.shape).astype(np.float32)
    # Without the part of it that lies in the direction of the update.
    noise -= np.vdot(up @ down, noise @ down) / np.vdot(up @ down, up @ down) * up
    facts = compared(run, original, rewritten(baked, {f"{MODULE}.lora_up.weight": up + noise}), expect=1)
    assert facts["blocks"]["MID"]["weight"] == pytest.approx(0.5)
    assert facts["blocks"]["MID"]["error"] > 0.01
    assert facts["blocks"]["OUT03"]["error"] < 1e-6


def test_what_was_zero_and_is_not_has_no_weight(original: Path, bake_file: BakeFile, run: Run) -> None:
    """As where the two files are given in the wrong order."""
    baked = bake_file(original, "-w", "MID=0 *=1")
    assert compared(run, baked, original)["blocks"]["MID"] == {"weight": None, "error": 1.0, "modules": 1}
    assert compared(run, baked, baked)["blocks"]["MID"] == {"weight": None, "error": None, "modules": 1}
    for other, said in ((original, ["none", "1"]), (baked, ["any"])):
        _, out, _ = run("diff", baked, other)
        assert next(line for line in out.splitlines() if line.startswith("MID")).split()[2:] == said


def test_a_file_without_a_record_is_measured_all_the_same(original: Path, tmp_path: Path, run: Run) -> None:
    halves = {name: array / 2 if "lora_up" in name else array for name, array in unet_lora().items()}
    facts = compared(run, original, write(tmp_path / "halves.safetensors", halves))
    assert facts["matches_record"] is None
    assert [block["weight"] for block in facts["blocks"].values()] == pytest.approx([0.5] * len(SD1_BLOCKS))


@pytest.mark.parametrize("record", ["", "{}", "null", "5", '{"weights": {"MID": "x"}}', "[" * 10_000])
def test_a_record_that_cannot_be_read_is_said(record: str, original: Path, bake_file: BakeFile, run: Run) -> None:
    baked = rewritten(bake_file(original, "-w", "*=0.5"), lbw_bake=record)
    assert compared(run, original, baked, expect=1)["contradictions"] == ["its lbw_bake record cannot be read"]


def test_modules_that_are_gone_or_new_are_named(original: Path, tmp_path: Path, run: Run) -> None:
    tensors = {name: array for name, array in unet_lora().items() if not name.startswith(MODULE)}
    tensors |= unet_lora(["IN03"])
    facts = compared(run, original, write(tmp_path / "other.safetensors", tensors))
    assert facts["removed"] == [MODULE]
    assert facts["added"] == ["lora_unet_input_blocks_3_0_in_layers_2"]
    assert facts["blocks"]["MID"]["weight"] == 0


def test_modules_of_the_same_name_and_another_rank_are_compared_by_what_they_do(
    original: Path, tmp_path: Path, run: Run
) -> None:
    tensors = unet_lora()
    down, up = (tensors[f"{MODULE}.{role}.weight"] for role in ("lora_down", "lora_up"))
    # The same update as a product of rank 8: each factor twice, its alpha twice, so half as strong.
    tensors[f"{MODULE}.lora_down.weight"] = np.concatenate([down, down])
    tensors[f"{MODULE}.lora_up.weight"] = np.concatenate([up, up], axis=1)
    facts = compared(run, original, write(tmp_path / "other.safetensors", tensors))
    assert facts["blocks"]["MID"]["weight"] == pytest.approx(1.0)


@pytest.mark.parametrize("up", [np.ones((9, 4)), np.full((8, 4), np.inf)], ids=["another shape", "infinities"])
def test_modules_that_cannot_be_compared_are_named(up: np.ndarray, original: Path, tmp_path: Path, run: Run) -> None:
    tensors = unet_lora() | {f"{MODULE}.lora_up.weight": up.astype(np.float32)}
    other = write(tmp_path / "other.safetensors", tensors)
    assert compared(run, original, other)["unmeasured"] == [MODULE]


def test_factors_of_another_form_are_not_measured(tmp_path: Path, run: Run) -> None:
    """LoKr's may be whole or a product."""
    ones = {role: np.ones((2, 2), np.float32) for role in ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")}
    one, other = (
        write(
            tmp_path / f"{roles[1]}.safetensors",
            unet_lora(["IN04"]) | {f"{MODULE}.{role}": ones[role] for role in roles},
        )
        for roles in (("lokr_w1", "lokr_w2"), ("lokr_w1", "lokr_w2_a", "lokr_w2_b"))
    )
    for pair in ((one, other), (other, one)):
        assert compared(run, *pair)["unmeasured"] == [MODULE]


def test_people_read_a_line_per_block(original: Path, bake_file: BakeFile, run: Run) -> None:
    code, out, error = run("diff", original, bake_file(original, "-p", "MIDD"))
    assert code == 0
    rows = [line.split()[:4] for line in out.splitlines()[2:]]
    midd = {"BASE", *SD1_BLOCKS[4:12]}
    assert rows == [[block, "1", "1" if block in midd else "0", "0"] for block in SD1_BLOCKS]
    assert "it is what its lbw_bake record says" in error


def test_what_is_no_lora_is_refused(original: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no LoRA")
    for pair in ((original, tmp_path / "bad.safetensors"), (tmp_path / "bad.safetensors", original)):
        code, out, error = run("diff", *pair)
        assert (code, out) == (1, "")
        assert error.startswith(f"error: {tmp_path / 'bad.safetensors'}: ")


def test_files_without_a_common_module_are_not_compared(original: Path, tmp_path: Path, run: Run) -> None:
    other = write(tmp_path / "other.safetensors", kohya_lora(["unet_double_blocks_0_img_attn_proj"], width=3072))
    code, out, error = run("diff", original, other, "--family", "flux")
    assert (code, out) == (1, "")
    code, out, error = run("diff", original, write(tmp_path / "one.safetensors", kohya_lora(["unet_conv_in"])))
    assert (code, out) == (1, "")
    assert f"has no module in common with {original}" in error


def test_a_module_that_the_record_does_not_tell_of_contradicts_it(
    original: Path, bake_file: BakeFile, tmp_path: Path, run: Run
) -> None:
    baked = bake_file(original, "-p", "MIDD")
    more = write(tmp_path / "more.safetensors", load_file(baked) | kohya_lora(["unet_conv_in"]), metadata_of(baked))
    facts = compared(run, original, more, expect=1)
    assert facts["matches_record"] is False
    assert facts["contradictions"] == ["lora_unet_conv_in was added, of which its record says nothing"]


@pytest.mark.parametrize(("weight", "certain"), [(1, True), (0, True), (0.5, None)])
def test_what_cannot_be_measured_is_certified_only_bit_for_bit(
    weight: float, certain: bool | None, tmp_path: Path, bake_file: BakeFile, run: Run
) -> None:
    dora = kohya_lora(["unet_middle_block_1_proj_in"]) | {f"{MODULE}.dora_scale": np.ones((1, 8), np.float32)}
    source = write(tmp_path / "dora.safetensors", dora)
    baked = bake_file(source, "-w", f"*={weight}", "--family", "sd1", "--inexact", "allow")
    assert compared(run, source, baked)["matches_record"] is certain


# Algorithms by their marks -> modules of tensors that no least squares measure, and weights that need no base model.
_OPAQUE = {
    "dora": ({**kohya_lora(["unet_middle_block_1_proj_in"]), f"{MODULE}.dora_scale": np.ones((1, 8), np.float32)}, 1),
    "oft": ({f"{MODULE}.oft_blocks": np.ones((2, 4, 4), np.float32)}, 1),
    "scale": ({**kohya_lora(["unet_middle_block_1_proj_in"]), f"{MODULE}.scale": np.array(0.5, np.float32)}, 0.5),
    **{case.name: (case.tensors(MODULE), 0.5) for case in FORMULAS},
}


@pytest.mark.parametrize(("tensors", "weight"), _OPAQUE.values(), ids=_OPAQUE)
def test_whatever_number_of_whatever_algorithm_is_another_contradicts_the_record(
    tensors: dict[str, np.ndarray], weight: float, tmp_path: Path, bake_file: BakeFile, run: Run
) -> None:
    source = write(tmp_path / "a.safetensors", tensors)
    baked = bake_file(source, "-w", f"*={weight}", "--family", "sd1")
    assert compared(run, source, baked)["matches_record"] is True
    for name, array in load_file(baked).items():
        if np.issubdtype(array.dtype, np.floating) and not name.endswith(".alpha"):  # which not all loaders heed
            facts = compared(run, source, rewritten(baked, {name: 3 * array}), expect=1)
            assert facts["contradictions"][0].startswith((MODULE, name))


def test_a_tensor_more_in_a_module_contradicts_the_record(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    lokr = next(case for case in FORMULAS if f"{MODULE}.lokr_w1_a" in case.tensors(MODULE)).tensors(MODULE)
    source = write(tmp_path / "a.safetensors", lokr)
    baked = bake_file(source, "-w", "*=0.5", "--family", "sd1")
    whole = lokr[f"{MODULE}.lokr_w1_a"] @ lokr[f"{MODULE}.lokr_w1_b"]
    facts = compared(run, source, rewritten(baked, {f"{MODULE}.lokr_w1": whole}), expect=1)
    assert facts["contradictions"] == [f"{MODULE} is not what a weight of 0.5 makes of it"]


def test_both_products_of_glora_are_measured(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    case = BY_NAME["glora"]
    source = write(tmp_path / "a.safetensors", case.tensors(MODULE))
    baked = bake_file(source, "-w", "*=0.5")
    for factor in ("a1", "b2"):
        altered = rewritten(baked, {f"{MODULE}.{factor}.weight": 2 * load_file(baked)[f"{MODULE}.{factor}.weight"]})
        assert MODULE in compared(run, source, altered, expect=1)["contradictions"][0]


def test_a_tensor_of_no_module_that_is_not_what_it_was_contradicts_the_record(
    tmp_path: Path, bake_file: BakeFile, run: Run
) -> None:
    strays = {"stray": np.arange(4.0), "bundle_emb.puppy.string_to_param.*": np.ones((2, 8), np.float16)}
    source = write(tmp_path / "a.safetensors", unet_lora() | strays)
    baked = bake_file(source, "-w", "*=0.5")
    assert compared(run, source, baked)["altered"] == []
    for name, array in strays.items():
        for other in (array + 1, array.astype(np.float32)[:1], array[None]):
            facts = compared(run, source, rewritten(baked, {name: other}), expect=1)
            assert facts["altered"] == [name]
            assert facts["contradictions"] == [f"{name} is not what it was, of which its record says nothing"]
    assert (
        "1 tensor of no module not the same: stray" in run("diff", source, rewritten(baked, {"stray": np.ones(1)}))[2]
    )


def test_a_record_of_more_than_weights_is_said_not_to_be_checked(original: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.safetensors"
    run.done("bake", original, "-w", "*=0.5", "--rank", 2, "-o", out)
    assert "record is of more than weights (a merge, a truncation, DoRA)" in run.done("diff", original, out)


def test_what_cannot_be_measured_must_be_there_still(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    ia3 = BY_NAME["ia3 on the input"].tensors(MODULE)
    source = write(tmp_path / "a.safetensors", unet_lora(["OUT03"]) | ia3)
    baked = bake_file(source, "-w", "*=0.5", "--family", "sd1")
    assert compared(run, source, baked)["matches_record"] is True
    rest = {name: array for name, array in load_file(baked).items() if name not in ia3}
    gone = write(tmp_path / "gone.safetensors", rest, metadata_of(baked))
    assert compared(run, source, gone, expect=1)["contradictions"] == [f"{MODULE} was removed, its record says 0.5"]


def test_every_module_that_is_gone_is_one_contradiction_in_the_order_of_the_file(
    original: Path, bake_file: BakeFile, run: Run
) -> None:
    baked = bake_file(original, "-w", "*=0.5")
    first, *rest = (module["name"] for module in run.json("inspect", original, "--json")["modules"])
    kept = {name: array for name, array in load_file(baked).items() if name.startswith(first)}
    few = write(baked.with_name("few.safetensors"), kept, metadata_of(baked))
    assert compared(run, original, few, expect=1)["contradictions"] == [
        f"{name} was removed, its record says 0.5" for name in rest
    ]


def test_a_module_of_zeros_must_stay_one(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    up = f"{MODULE}.lora_up.weight"
    tensors = unet_lora()
    source = write(tmp_path / "a.safetensors", tensors | {up: 0 * tensors[up]})
    baked = bake_file(source, "-w", "*=0.5")
    assert compared(run, source, baked)["matches_record"] is True
    facts = compared(run, source, rewritten(baked, {up: tensors[up]}), expect=1)
    assert facts["contradictions"] == [f"{MODULE} was zero, and is not now"]


def test_integers_are_no_excuse_for_other_numbers(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    tensors = BY_NAME["sparse bias"].tensors(MODULE)
    source = write(tmp_path / "a.safetensors", tensors)
    baked = bake_file(source, "-w", "*=0.5", "--family", "sd1")
    up, indices = f"{MODULE}.lora_up.weight", f"{MODULE}.bias_indices"
    assert (
        "got 0.5" in compared(run, source, rewritten(baked, {up: 1.05 * load_file(baked)[up]}), 1)["contradictions"][0]
    )
    assert compared(run, source, rewritten(baked, {indices: 2 * tensors[indices]}), 1)["altered"] == [indices]


def test_what_is_altered_is_named_in_the_files_order(tmp_path: Path, bake_file: BakeFile, run: Run) -> None:
    case = BY_NAME["sparse bias"]
    modules = [f"lora_unet_output_blocks_{i}_1_proj_in" for i in range(3, 12)]
    tensors = {name: array for module in modules for name, array in case.tensors(module).items()}
    source = write(tmp_path / "a.safetensors", tensors)
    indices = {name: 2 * array for name, array in tensors.items() if name.endswith("bias_indices")}
    found = compared(run, source, rewritten(bake_file(source, "-w", "*=0.5", "--family", "sd1"), indices), 1)
    assert found["altered"] == sorted(indices)


@pytest.mark.parametrize("dtype", ["keep", "f32"])
def test_few_digits_of_small_numbers_are_no_contradiction(
    dtype: str, tmp_path: Path, bake_file: BakeFile, run: Run
) -> None:
    arrays = unet_lora()
    small = {name: (array * 1e-5 if array.ndim > 1 else array).astype(np.float16) for name, array in arrays.items()}
    source = write(tmp_path / "a.safetensors", small)
    baked = bake_file(source, "--preset", "MIDD", "--strength", "0.7", "--dtype", dtype)
    found = compared(run, source, baked)
    assert found["matches_record"]
    if dtype == "keep":
        assert found["blocks"]["MID"]["error"] > 2e-3  # more than rounding of larger ones
        name = f"{MODULE}.lora_down.weight"
        one = load_file(baked)[name]
        one[0, 0] = np.nextafter(one[0, 0], np.float16(1))
        assert not compared(run, source, rewritten(baked, {name: one}), expect=1)["matches_record"]
