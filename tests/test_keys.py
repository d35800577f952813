"""A tensor name taken apart: every spelling of a layer gives one path, and nothing is split twice or in the middle."""

from __future__ import annotations

import pytest
from tables import TABLES, grouping, rows

from lbw_bake.algorithms import ROLES
from lbw_bake.keys import DENOISER, Key, parse_key

PATH = "down_blocks_0_attentions_1_proj_in"
DOTTED = "down_blocks.0.attentions.1.proj_in"


@pytest.mark.parametrize("table", TABLES)
def test_every_tensor_of_the_tables_is_understood(table: str) -> None:
    assert [name for name in rows(table) if parse_key(name) is None] == []
    assert not grouping(table).unknown


@pytest.mark.parametrize(
    ("stem", "component", "path"),
    [
        *((f"{prefix}{PATH}", DENOISER, PATH) for prefix in ("lora_unet_", "lora_unet__", "lora_transformer_")),
        *((f"{prefix}{PATH}", DENOISER, PATH) for prefix in ("lora_prior_unet_", "oft_unet_", "lycoris_")),
        *((f"{prefix}{DOTTED}", DENOISER, PATH) for prefix in ("", "unet.", "transformer.", "base_model.model.")),
        *((f"{prefix}{DOTTED}", DENOISER, PATH) for prefix in ("diffusion_model.", "unet.base_model.model.")),
        ("lora_te_text_model_x", "te", "text_model_x"),
        ("lora_te3_encoder_block_0", "te3", "encoder_block_0"),
        ("lora_prior_te_text_model_x", "prior_te", "text_model_x"),
        ("text_encoder.text_model.x", "te1", "text_model_x"),
        ("text_encoder_2.encoder.block.0", "te2", "encoder_block_0"),
        ("clip_l.text_model.x", "clip_l", "text_model_x"),
        ("text_encoders.clip_g.transformer.text_model.x", "clip_g", "text_model_x"),
        ("text_encoders.t5xxl.transformer.encoder.block.0", "t5", "encoder_block_0"),
        ("text_encoders.qwen3_06b.transformer.model.layers.0", "te", "layers_0"),
        ("base_model.model.text_model.x", "te", "text_model_x"),
        # CLIP's root in transformers since 5.
        ("base_model.model.encoder.layers.0.self_attn.q_proj", "te", "encoder_layers_0_self_attn_q_proj"),
        # Names that hold what is a prefix elsewhere.
        ("lora_unet_context_embedder", DENOISER, "context_embedder"),
        ("transformer_blocks.0.attn", DENOISER, "transformer_blocks_0_attn"),
        ("text_conditioner.blocks.0", DENOISER, "text_conditioner_blocks_0"),
        ("lora_te_te_x", "te", "te_x"),
    ],
)
def test_the_prefix_is_the_component(stem: str, component: str, path: str) -> None:
    assert parse_key(f"{stem}.lora_down.weight") == Key(stem, component, path, "down")


@pytest.mark.parametrize(
    ("ending", "role"),
    [
        (".lora_down.weight", "down"),
        *((f".lora_A{end}", "down") for end in ("", ".weight", ".default.weight")),
        *((f"{end}.down.weight", "down") for end in ("_lora", ".lora", ".lora_linear_layer")),
        (".lora_up.weight", "up"),
        *((f".lora_B{end}", "up") for end in ("", ".weight", ".default.weight")),
        *((f"{end}.up.weight", "up") for end in ("_lora", ".lora", ".lora_linear_layer")),
        *((f".lora_B{end}", "up_bias") for end in (".bias", ".default.bias")),
        *((f".lora_magnitude_vector{end}", "magnitude") for end in ("", ".default", ".weight", ".default.weight")),
        (".oft_blocks", "oft_blocks"),
        (".oft_blocks.2", "oft_blocks"),
        (".weight", "weight"),
        (".a1.weight", "a1"),
        *((f".{role}", role) for role in ("alpha", "diff", "diff_b", "w_norm", "dora_scale", "hada_t1", "lokr_w2_b")),
    ],
)
def test_the_ending_is_the_role(ending: str, role: str) -> None:
    assert role in ROLES
    assert parse_key(f"unet.{DOTTED}{ending}") == Key(f"unet.{DOTTED}", DENOISER, PATH, role)


def test_a_named_adapter_is_a_module_of_its_own() -> None:
    one, other = (parse_key(f"unet.{DOTTED}.lora_A.{name}.weight") for name in ("style", "face"))
    assert one is not None
    assert other is not None
    assert one.stem != other.stem
    assert one.path == other.path == PATH


@pytest.mark.parametrize("layer", ["attn1.{}to_q", "attn2.{}to_k", "attn2.{}to_v", "attn2.{}to_out"])
def test_layers_of_processors_have_the_names_they_have_elsewhere(layer: str) -> None:
    """So that the words of element rules, as `attn2.to_k` or `to_out_0`, mean them too."""
    old = parse_key(f"unet.{DOTTED}.{layer.format('processor.')}_lora.down.weight")
    new = parse_key(f"unet.{DOTTED}.{layer.format('')}{'.0' * layer.endswith('out')}.lora.down.weight")
    assert old is not None
    assert new is not None
    assert old.path == new.path


def test_processors_of_one_layer_are_two_modules() -> None:
    first, second = (parse_key(f"double_blocks.0.processor.qkv_lora{n}.down.weight") for n in (1, 2))
    assert first is not None
    assert second is not None
    assert first.path == "double_blocks_0_processor_qkv_lora1"
    assert second.path == "double_blocks_0_processor_qkv_lora2"


@pytest.mark.parametrize("name", ["", ".", ".alpha", "lora_unet_x", "lora_unet_x.lora_down", "x.lora_up.weight.more"])
def test_other_names_are_no_keys(name: str) -> None:
    assert parse_key(name) is None
