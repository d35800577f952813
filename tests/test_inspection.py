"""What is in a file: facts for programs, a table for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import (
    MODULE,
    SD1_BLOCKS,
    Run,
    Tensors,
    kohya_lora,
    peft_lora,
    sdxl_lora,
    unet_lora,
    update_of,
    write,
    write_raw,
)
from formulas import FORMULAS

from lbw_bake.algorithms import ALGORITHMS

BASE = "lora_te_text_model_encoder_layers_0_mlp_fc1"


@pytest.fixture
def tensors() -> Tensors:
    return unet_lora(["BASE", "MID"]) | {"unknown": np.ones(3, np.float64)}


def test_it_says_all_there_is_to_know(tmp_path: Path, run: Run, tensors: Tensors) -> None:
    path = write(tmp_path / "a.safetensors", tensors, {"key": "value"})
    norms = {name: float(np.linalg.norm(update_of(tensors, name))) for name in (BASE, MODULE)}
    facts = run.json("inspect", "--json", path)
    assert facts["file"] == str(path)
    assert facts["family"] == "sd1"
    assert facts["layouts"] == [17, 26]
    assert facts["dtype"] == {"F32": 6, "F64": 1}
    assert facts["metadata"] == {"key": "value"}
    assert facts["unknown"] == ["unknown"]
    parameters = {BASE: 4 * 768 + 8 * 4 + 1, MODULE: 4 * 8 + 8 * 4 + 1}
    assert facts["blocks"] == {
        block: {
            "modules": 1,
            "bytes": parameters[name] * 4,
            "norm": pytest.approx(norms[name]),
            "unmeasured": 0,
            "parameters": parameters[name],
            "share": pytest.approx(norms[name] ** 2 / sum(norm**2 for norm in norms.values())),
        }
        for block, name in (("BASE", BASE), ("MID", MODULE))
    }
    assert [{key: module[key] for key in module if key not in ("norm", "tensors")} for module in facts["modules"]] == [
        {"name": BASE, "component": "clip_l", "block": "BASE", "algorithm": "lora", "rank": 4, "alpha": 1.0},
        {"name": MODULE, "component": "unet", "block": "MID", "algorithm": "lora", "rank": 4, "alpha": 2.0},
    ]
    assert [set(module["tensors"]) for module in facts["modules"]] == [
        {f"{name}.{role}" for role in ("lora_down.weight", "lora_up.weight", "alpha")} for name in (BASE, MODULE)
    ]


@pytest.mark.parametrize(("tensors", "family"), [(unet_lora(), "sd1"), (sdxl_lora(), "sdxl")])
def test_a_family_that_is_certain_is_named(tensors: Tensors, family: str, tmp_path: Path, run: Run) -> None:
    facts = run.json("inspect", "--json", write(tmp_path / "a.safetensors", tensors))
    assert (facts["family"], facts["candidates"]) == (family, [family])


def test_where_several_fit_all_are_named_and_the_first_names_the_blocks(tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", kohya_lora(["unet_middle_block_1_proj_in"]))
    facts = run.json("inspect", "--json", source)
    assert facts["family"] == "sd1"
    assert facts["candidates"][:3] == ["sd1", "sd2", "sdxl"]


def test_a_family_may_be_given(tmp_path: Path, run: Run) -> None:
    path = write(tmp_path / "a.safetensors", kohya_lora(["unet_middle_block_1_proj_in"]))
    assert run.json("inspect", "--json", path, "--family", "sdxl")["layouts"] == [12, 20]


def test_every_algorithm_is_named(tmp_path: Path, run: Run) -> None:
    tensors: Tensors = {}
    for i, case in enumerate(FORMULAS):
        tensors |= case.tensors(f"lora_unet_input_blocks_{i % 12}_1_{i}")
    facts = run.json("inspect", "--json", write(tmp_path / "a.safetensors", tensors), "--family", "sd1")
    assert len(facts["modules"]) == len(FORMULAS)
    exact = {algorithm.name for algorithm in ALGORITHMS if algorithm.exact and not algorithm.fixed}
    assert {module["algorithm"] for module in facts["modules"]} == exact - {"oft_diag"}


def test_several_files_are_one_object_each_and_a_bad_one_does_not_stop_the_others(tmp_path: Path, run: Run) -> None:
    good = [write(tmp_path / f"{name}.safetensors", unet_lora()) for name in "ab"]
    (tmp_path / "bad.safetensors").write_bytes(b"no LoRA")
    code, out, error = run("inspect", "--json", good[0], tmp_path / "bad.safetensors", good[1])
    assert code == 1
    results = {json.loads(line)["file"]: json.loads(line).get("error") for line in out.splitlines()}
    assert [*results] == [str(good[0]), str(tmp_path / "bad.safetensors"), str(good[1])]
    assert [file for file, problem in results.items() if problem] == [str(tmp_path / "bad.safetensors")]
    assert f"error: {tmp_path / 'bad.safetensors'}: " in error


def test_people_read_a_line_per_block(tmp_path: Path, run: Run, tensors: Tensors) -> None:
    code, out, error = run("inspect", write(tmp_path / "a.safetensors", unet_lora() | tensors))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("a.safetensors: Stable Diffusion 1.x, weights of 17, 26 blocks")
    assert [line.split()[:5] for line in lines[2:]] == [[block, "1", "lora", "4", "F32"] for block in SD1_BLOCKS]
    assert "1 unknown tensor: unknown" in error


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("role", ["lora_up.weight", "alpha"])
def test_a_file_with_infinities_is_still_inspected(tmp_path: Path, run: Run, role: str, value: float) -> None:
    """JSON has no NaN: what has no norm says null."""
    tensors = unet_lora(dtype="float16")
    tensors[f"{MODULE}.{role}"].reshape(-1)[0] = value
    path = write(tmp_path / "a.safetensors", tensors)
    facts = run.json("inspect", "--json", path)
    assert facts["blocks"].keys() == set(SD1_BLOCKS)
    assert facts["blocks"]["OUT03"]["norm"] > 0
    run.done("inspect", path)


@pytest.mark.parametrize("dtype", ["BOOL", "I8", "C64", "F8_E8M0", "F4", "F6_E2M3"])
def test_a_file_of_any_dtype_is_inspected(tmp_path: Path, run: Run, dtype: str) -> None:
    nbytes = {"C64": 8.0, "F4": 0.5, "F6_E2M3": 0.75}.get(dtype, 1.0)
    shapes = {"lora_down.weight": (4, 8), "lora_up.weight": (8, 4), "alpha": (4,)}
    entries = [
        (f"{MODULE}.{role}", dtype, shape, b"\1" * int(nbytes * int(np.prod(shape)))) for role, shape in shapes.items()
    ]
    facts = run.json("inspect", "--json", write_raw(tmp_path / "a.safetensors", entries))
    assert facts["dtype"] == {dtype: 3}
    assert facts["blocks"]["MID"]["modules"] == 1


def test_factors_that_do_not_fit_together_are_not_measured(tmp_path: Path, run: Run) -> None:
    tensors = unet_lora() | {f"{MODULE}.lora_up.weight": np.ones((8, 3), np.float32)}
    blocks = run.json("inspect", write(tmp_path / "a.safetensors", tensors), "--json")["blocks"]
    assert {block for block, facts in blocks.items() if facts["unmeasured"]} == {"MID"}


KINDS: dict[str, tuple[list[str], str]] = {
    "a checkpoint": (
        [
            "model.diffusion_model.middle_block.1.proj_in.weight",
            "model.diffusion_model.middle_block.1.proj_in.bias",
        ],
        "checkpoint",
    ),
    "a VAE": (["encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.bias"], "another kind of model"),
    "a textual inversion": (["emb_params"], "textual inversion"),
    "a textual inversion for SDXL": (["clip_g", "clip_l"], "textual inversion"),
    "a ControlNet-LLLite": (["lllite_unet_input_blocks_4_1_proj_in.down.0.weight"], "ControlNet-LLLite"),
    "a Control-LoRA": (["lora_controlnet", "input_blocks.1.0.in_layers.2.down"], "Control-LoRA"),
    "an empty file": ([], "empty"),
}


class TestRefused:
    """Files that are no LoRA say what they look like, and nothing is written."""

    @pytest.mark.parametrize(
        "command", [("inspect",), ("bake", "-p", "MIDD"), ("bake", "-p", "MIDD", "--family", "sd1")]
    )
    @pytest.mark.parametrize(("names", "said"), KINDS.values(), ids=KINDS)
    def test_it_says_what_it_looks_like(
        self, names: list[str], said: str, command: tuple[str, ...], tmp_path: Path, run: Run
    ) -> None:
        path = write(tmp_path / "a.safetensors", {name: np.ones((2, 2), np.float16) for name in names})
        output = ("-o", tmp_path / "b.safetensors") if command[0] == "bake" else ()
        code, out, error = run(*command, path, *output)
        assert (code, out) == (1, "")
        assert error.startswith(f"error: {path}: ")
        assert said in error
        assert list(tmp_path.iterdir()) == [path]

    def test_a_lora_of_no_known_model_says_that(self, tmp_path: Path, run: Run) -> None:
        path = write(tmp_path / "a.safetensors", kohya_lora(["unet_never_heard_of_it_0_proj"]))
        error = run.refused("inspect", path)
        assert "none of its 1 modules (the first is lora_unet_never_heard_of_it_0_proj)" in error


class TestAlphaInMetadata:
    """PEFT keeps alpha in its configuration: what is wrong there is not guessed, and stops nothing."""

    NAME = "unet.mid_block.attentions.0.proj_in"

    def norm(self, tmp_path: Path, run: Run, config: str) -> float | None:
        tensors = peft_lora([self.NAME], 4, inputs=1280)
        path = write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": config})
        (module,) = run.json("inspect", "--json", path, "--family", "sd1")["modules"]
        return None if module["norm"] is None else float(module["norm"])

    def test_it_multiplies_the_norm(self, tmp_path: Path, run: Run) -> None:
        plain = self.norm(tmp_path, run, "{}")
        assert plain
        assert self.norm(tmp_path, run, '{"unet.lora_alpha": 2}') == pytest.approx(plain / 2)
        assert self.norm(tmp_path, run, '{"unet.lora_alpha": 2, "unet.use_rslora": true}') == pytest.approx(plain)
        pattern = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"proj_in": 12}}
        assert self.norm(tmp_path, run, json.dumps(pattern)) == pytest.approx(3 * plain)
        assert self.norm(tmp_path, run, "no JSON") == plain

    @pytest.mark.parametrize("pattern", ["proj", "roj_in", "attentions.0", "^proj_in", "mid_block.*proj"])
    def test_a_pattern_is_for_whole_names_and_for_their_ends(self, pattern: str, tmp_path: Path, run: Run) -> None:
        config = {"unet.lora_alpha": 2, "unet.alpha_pattern": {pattern: 12}}
        plain = self.norm(tmp_path, run, "{}")
        assert plain
        assert self.norm(tmp_path, run, json.dumps(config)) == pytest.approx(plain / 2)

    @pytest.mark.parametrize(
        "config",
        [
            {"lora_alpha": None},
            {"lora_alpha": "x"},
            {"lora_alpha": 2, "alpha_pattern": {"(": 1}},
            {"lora_alpha": 2, "alpha_pattern": [1]},
        ],
    )
    def test_what_is_no_alpha_has_no_norm(self, config: dict[str, Any], tmp_path: Path, run: Run) -> None:
        named = {f"unet.{key}": value for key, value in config.items()}
        assert self.norm(tmp_path, run, json.dumps(named)) is None
