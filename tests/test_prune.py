"""`--prune`: modules of weight 0 leave the file whole, or stay as zeros and the reason is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, Tensors, header_of, metadata_of, peft_lora, record_in, write

Bake = Callable[..., tuple[set[str], str]]

ATTENTION = [f"unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_{part}" for part in "qkv"]
OUT = "unet_up_blocks_1_attentions_0_proj_in"
TEXT = [f"te_text_model_encoder_layers_0_self_attn_{part}_proj" for part in ("q", "k", "v", "out")]
MLP = "te_text_model_encoder_layers_0_mlp_fc1"


def lora(names: Iterable[str], alpha: float | None = 1.0) -> Tensors:
    tensors: Tensors = {}
    for name in names:
        tensors[f"lora_{name}.lora_down.weight"] = np.ones((2, 8), np.float16)
        tensors[f"lora_{name}.lora_up.weight"] = np.ones((8, 2), np.float16)
        if alpha is not None:
            tensors[f"lora_{name}.alpha"] = np.array(alpha, np.float16)
    return tensors


@pytest.fixture
def bake(tmp_path: Path, run: Run) -> Bake:
    """Bake with --prune; returns the modules that are left, without `lora_`, and what was said."""

    def call(
        tensors: Tensors, rules: str, *options: str, family: str = "sd1", metadata: dict[str, str] | None = None
    ) -> tuple[set[str], str]:
        source, target = write(tmp_path / "a.safetensors", tensors, metadata), tmp_path / "b.safetensors"
        said = run.done("bake", source, "-w", rules, "-o", target, "--force", "--prune", "--family", family, *options)
        left = {name.split(".")[0].removeprefix("lora_") for name in header_of(target) if name != "__metadata__"}
        assert record_in(target)["prune"] is True
        return left, said

    return call


@pytest.mark.parametrize("alpha", [1.0, None], ids=["one alpha", "no alpha"])
def test_all_keys_of_a_module_go(alpha: float | None, bake: Bake) -> None:
    left, said = bake(lora([*ATTENTION, OUT, MLP], alpha), "OUT03=0 BASE=0 *=0.5")
    assert left == set(ATTENTION)
    assert "kept as zeros" not in said
    assert "2 removed" in said


def test_nothing_goes_unless_it_is_asked_for(tmp_path: Path, run: Run) -> None:
    source, target = write(tmp_path / "a.safetensors", lora([*ATTENTION, OUT])), tmp_path / "b.safetensors"
    run.done("bake", source, "-w", "OUT=0 *=1", "-o", target, "--family", "sd1")
    assert header_of(source).keys() <= header_of(target).keys()
    assert "prune" not in record_in(target)


@pytest.mark.parametrize("alpha", [2.0, None], ids=["another", "none"])
def test_different_alphas_keep_all(alpha: float | None, bake: Bake) -> None:
    left, said = bake(lora(ATTENTION) | lora([OUT], alpha), "OUT=0 *=1")
    assert left == {*ATTENTION, OUT}
    assert "1 module at weight 0 kept as zeros: their alphas (or ranks, without any) differ" in said


def test_different_ranks_without_alphas_keep_all(bake: Bake) -> None:
    """Old versions of diffusers take that of the first module for the alpha of all."""
    tensors = lora([*ATTENTION, OUT], None)
    up, down = (f"lora_{ATTENTION[0]}.lora_{role}.weight" for role in ("up", "down"))
    tensors |= {down: np.ones((4, 8), np.float16), up: np.ones((8, 4), np.float16)}
    left, said = bake(tensors, "OUT03=0 *=1")
    assert left == {*ATTENTION, OUT}
    assert "1 module at weight 0 kept as zeros: their alphas (or ranks, without any) differ" in said


def test_what_has_neither_rank_nor_alpha_keeps_nothing(bake: Bake) -> None:
    norm = "unet_up_blocks_1_attentions_0_norm"
    tensors = lora([*ATTENTION, OUT]) | {f"lora_{norm}.w_norm": np.ones(8), f"lora_{norm}.b_norm": np.ones(8)}
    assert bake(tensors, "OUT03=0 *=1")[0] == set(ATTENTION)
    assert bake(tensors, "*=1", "--element", "OUT03:proj_in:0")[0] == {*ATTENTION, norm}


def test_metadata_that_name_the_modules_keep_all(bake: Bake) -> None:
    left, said = bake(lora([*ATTENTION, OUT]), "OUT=0 *=1", metadata={"lora_adapter_metadata": "{}"})
    assert left == {*ATTENTION, OUT}
    assert "PEFT would make missing ones anew" in said


def test_a_configuration_beside_the_file_names_the_modules_too(tmp_path: Path, run: Run) -> None:
    layers = [f"base_model.model.down_blocks.0.attentions.{i}.transformer_blocks.0.attn2.to_k" for i in (0, 1)]
    tensors = peft_lora(layers, inputs=768)
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "init_lora_weights": false}')
    source, target = write(tmp_path / "adapter_model.safetensors", tensors), tmp_path / "b.safetensors"
    said = run.done("bake", source, "-w", "IN01=0 *=1", "--family", "sd1", "--prune", "-o", target)
    assert header_of(target).keys() >= tensors.keys()
    assert "PEFT would make missing ones anew" in said


def test_a_layer_of_another_size_stays(bake: Bake) -> None:
    tensors = lora([*ATTENTION, OUT]) | {f"lora_{OUT}.reshape_weight": np.array([8, 8])}
    left, said = bake(tensors, "OUT=0 *=1")
    assert OUT in left
    assert "they change the size of their layer" in said


def test_a_layer_with_a_tensor_nobody_knows_stays(bake: Bake) -> None:
    """The tensor is kept, and A1111 refuses a file in which a layer has no tensors but such."""
    left, said = bake(lora([*ATTENTION, OUT, MLP]) | {f"lora_{OUT}.mask.weight": np.ones(2)}, "OUT=0 BASE=0 *=1")
    assert left == {*ATTENTION, OUT}
    assert f"1 module at weight 0 kept as zeros: unknown tensors of their layer stay (lora_{OUT})" in said


class TestAttentions:
    def test_of_a_text_encoder_go_together(self, bake: Bake) -> None:
        left, _ = bake(lora([*ATTENTION, *TEXT, MLP]), "BASE=0 *=1")
        assert left == set(ATTENTION)

    def test_stay_together(self, bake: Bake) -> None:
        left, said = bake(lora([*ATTENTION, *TEXT, MLP]), "BASE=1 *=1", "--element", "BASE:q_proj fc1:0")
        assert left == {*ATTENTION, *TEXT}
        assert f"the rest of their attention is not at weight 0 (lora_{TEXT[0]})" in said

    def test_stay_or_go_by_themselves(self, bake: Bake) -> None:
        other = [name.replace("layers_0", "layers_1") for name in TEXT]
        left, said = bake(lora([*ATTENTION, *TEXT, *other]), "*=1", "--element", "BASE:layers_0:0")
        assert left == {*ATTENTION, *other}
        assert "kept as zeros" not in said

    def test_of_a_unet_may_be_parted(self, bake: Bake) -> None:
        left, _ = bake(lora([*ATTENTION, OUT]), "*=1", "--element", "IN04:to_q:0")
        assert left == {*ATTENTION[1:], OUT}


class TestTelltales:
    """What loaders tell the base model by must not vanish."""

    @pytest.mark.parametrize(
        "name",
        [
            ATTENTION[1],
            "unet_input_blocks_4_0_emb_layers_1",
            "unet_down_blocks_1_resnets_0_time_emb_proj",
            "te_text_model_encoder_layers_3_self_attn_q_proj",
        ],
    )
    def test_the_last_one_stays(self, name: str, bake: Bake) -> None:
        left, said = bake(lora([OUT, MLP, name]), "OUT=1 *=0")
        assert left == {OUT, name}
        assert "loaders tell the base model by them" in said

    def test_with_its_attention(self, bake: Bake) -> None:
        left, _ = bake(lora([OUT, *TEXT]), "BASE=0 *=0.5")
        assert left == {OUT, *TEXT}

    def test_something_is_left_when_all_is_zero(self, bake: Bake) -> None:
        assert bake(lora([*ATTENTION, *TEXT, OUT]), "*=0")[0] == {ATTENTION[1]}
        assert bake(lora([OUT, MLP]), "*=0")[0] == {OUT}


class TestTransformers:
    NAMES = ("unet_double_blocks_0_img_attn_qkv", "unet_img_in", "te1_text_model_encoder_layers_0_mlp_fc1")

    def test_keep_their_blocks(self, bake: Bake) -> None:
        left, said = bake(
            lora([*self.NAMES, *(f"te1_{name[3:]}" for name in TEXT)]), "D00=0 IN=0 CLIP=1", family="flux"
        )
        assert {*self.NAMES} <= left
        assert "loaders of Flux.1 count its blocks" in said

    def test_lose_their_text_encoders(self, bake: Bake) -> None:
        left, _ = bake(lora(self.NAMES), "CLIP=0 *=1", family="flux")
        assert left == {*self.NAMES[:2]}


def test_the_hashes_are_those_of_the_smaller_file(tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", lora([*ATTENTION, OUT]), {"sshs_model_hash": "0" * 64})
    small, smaller = tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    for target, options in ((small, ()), (smaller, ("--prune",))):
        run.done("bake", source, "-w", "OUT=0 *=1", "-o", target, "--family", "sd1", *options)
    hashes = {metadata_of(path)["sshs_model_hash"] for path in (small, smaller)}
    assert len(hashes) == 2
    assert smaller.stat().st_size < small.stat().st_size
