"""Every family in every spelling: tables say what is in which block, and detection is never wrong and certain."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence

import pytest
from tables import TABLES, family_of, grouping, rows

from lbw_bake.errors import UnknownFamilyError
from lbw_bake.families import (
    FAMILIES,
    OTHER,
    Family,
    Place,
    detect_families,
    family_named,
    resembles,
    stops_short,
)
from lbw_bake.keys import DENOISER
from lbw_bake.modules import Module, group_modules
from lbw_bake.tensorfile import Tensor

# Tables that fit several families, which one spelling, or too few layers, cannot tell apart. By prefix.
UNDECIDED = {
    "cosmos_": "anima cosmos",  # Anima is Cosmos with an adapter
    "flux_uso": "flux chroma",  # attention alone, which Chroma shares
    "flux_xlabs": "flux chroma",
    **dict.fromkeys(  # a part of the stacks, in names and widths that HunyuanVideo has too
        ("flux_diffsynth", "flux_fal_kontext", "flux_lokr_bfl", "flux_peft_base_model", "flux_simpletuner"),
        "flux hunyuan_video",
    ),
    "flux_oft": "flux hunyuan_video hunyuan_image",  # OFT does not tell input widths
    **dict.fromkeys(  # no layer that LTX-2, which adds sound to it, lacks or has in another width
        ("ltx_13b_onetrainer", "ltx_13b_peft_base_model", "ltx_13b_simpletuner"), "ltx_2 ltx_13b"
    ),
    **dict.fromkeys(("sd1_locon_sgm", "sd2_locon_sgm", "sd1_oft"), "sd1 sd2"),  # no width of the text's
}


def names(families: Sequence[Family]) -> list[str]:
    return [family.name for family in families]


def modules_of(*paths: str, width: int = 3072, prefix: str = "diffusion_model.") -> tuple[Module, ...]:
    """LoRA modules of these paths."""
    roles = {"lora_down.weight": (4, width), "lora_up.weight": (8, 4)}
    return group_modules(
        Tensor(f"{prefix}{path}.{role}", "F16", shape, 0, 0) for path in paths for role, shape in roles.items()
    ).modules


def test_every_family_has_a_table() -> None:
    assert {family_of(table).name for table in TABLES} == set(FAMILIES)


@pytest.mark.parametrize("table", TABLES)
class TestTables:
    def test_every_tensor_is_in_its_block(self, table: str) -> None:
        family = family_of(table)
        found = {
            tensor.name: place and place.block
            for module in grouping(table).modules
            for place in [family.place(module)]
            for tensor in module.all_tensors
        }
        assert {name: found.get(name) for name in rows(table)} == {name: row[0] for name, row in rows(table).items()}

    def test_every_module_is_a_layer_of_its_family(self, table: str) -> None:
        family, modules = family_of(table), grouping(table).modules
        assert [m.name for m in modules if family.widths_of(m.component, m.path) is None] == []

    def test_no_layer_is_in_a_block_of_a_unet_and_in_a_transformer(self, table: str) -> None:
        # Where all modules are layers of a UNet, detection asks no transformer.
        def kinds(module: Module) -> set[str]:
            return {
                f.denoiser
                for f in FAMILIES.values()
                if (place := f.place(module)) and (f.denoiser != "unet" or place.block != OTHER)
            }

        denoiser = [module for module in grouping(table).modules if module.component == DENOISER]
        assert [module.name for module in denoiser if len(kinds(module)) > 1] == []

    def test_the_family_is_detected(self, table: str) -> None:
        undecided = next((fits for prefix, fits in UNDECIDED.items() if table.startswith(prefix)), None)
        expected = undecided.split() if undecided else [family_of(table).name]
        assert names(detect_families(grouping(table).modules, {})) == expected

    def test_the_file_resembles_its_family(self, table: str) -> None:
        assert resembles(family_of(table), grouping(table).modules)

    def test_a_model_of_unusual_size_is_told_by_its_layers(self, table: str) -> None:
        assert family_of(table) in detect_families(grouping(table, shrink=8).modules, {})

    def test_a_part_of_a_file_may_be_of_its_family(self, table: str) -> None:
        family, modules = family_of(table), grouping(table).modules
        for part in _parts(family, modules):
            assert family in detect_families(part, {}), [module.name for module in part[:3]]


def _parts(family: Family, modules: Sequence[Module]) -> Iterator[list[Module]]:
    blocks = [place.block if (place := family.place(module)) else None for module in modules]
    middle = blocks[len(blocks) // 2]
    tests: tuple[Callable[[int, Module], object], ...] = (
        lambda i, module: module.component == DENOISER,
        lambda i, module: module.component != DENOISER,
        lambda i, module: "attn" in module.path or "attention" in module.path,
        lambda i, module: blocks[i] in family.stack and i % 3 == 0,
        lambda i, module: blocks[i] == blocks[0],
        lambda i, module: blocks[i] == middle,
        lambda i, module: i % 29 == 7,
    )
    parts = ([module for i, module in enumerate(modules) if test(i, module)] for test in tests)
    return (part for part in parts if part)


@pytest.mark.parametrize(
    ("table", "metadata", "expected"),
    [
        ("flux_diffsynth", {"ss_base_model_version": "flux1"}, "flux"),
        ("flux_diffsynth", {"ss_base_model_version": "hunyuan_video"}, "hunyuan_video"),
        ("flux_diffsynth", {"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
        ("flux_xlabs", {"modelspec.architecture": "chroma/lora"}, "chroma"),
        ("cosmos_kohya", {"ss_base_model_version": "anima"}, "anima"),
        ("sd1_oft", {"ss_base_model_version": "sd_v2"}, "sd2"),
        ("sd1_oft", {"ss_base_model_version": "wan"}, "sd1 sd2"),
        ("sd1_kohya_lora", {"ss_base_model_version": "sdxl_base_v1-0"}, "sd1"),
        ("wan_5b_musubi", {"ss_base_model_version": "wan"}, "wan_5b"),
        ("hunyuan_video_1_5_musubi", {"ss_base_model_version": "hunyuan_video"}, "hunyuan_video_1_5"),
    ],
)
def test_metadata_decides_among_the_candidates_only(table: str, metadata: dict[str, str], expected: str) -> None:
    assert names(detect_families(grouping(table).modules, metadata)) == expected.split()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_claims_its_own_base_model(name: str) -> None:
    family = FAMILIES[name]
    claiming = [
        other.name for other in FAMILIES.values() if other.claimed_by({"ss_base_model_version": family.base_model})
    ]
    assert claiming == [other for other in FAMILIES if FAMILIES[other].base_model == family.base_model != ""]


@pytest.mark.parametrize(
    ("paths", "width", "expected"),
    [
        # The whole depth of one family's stacks, in layers that several have.
        ("double_blocks.{0..18}.img_attn.qkv single_blocks.{0..37}.linear1", 3072, "flux chroma"),
        ("double_blocks.{0..4}.img_attn.qkv single_blocks.{0..19}.linear1", 3072, "flux2_klein_4b"),
        ("double_blocks.{0..19}.img_attn.qkv single_blocks.{0..39}.linear1", 3072, "hunyuan_video"),
        ("double_blocks.{0..4}.img_attn.qkv", 3072, "flux flux2_klein_4b chroma hunyuan_video"),
        ("blocks.{0..29}.self_attn.q", 64, "wan_1_3b wan_5b"),
        ("blocks.{0..39}.self_attn.q", 64, "wan_14b"),
        ("blocks.7.self_attn.q", 64, "wan_14b wan_1_3b wan_5b"),
        # A layer nobody knows says nothing, nor does a width nobody has.
        ("double_blocks.3.img_mod.lin double_blocks.3.new", 3072, "flux hunyuan_video"),
        ("double_blocks.3.new", 3072, "flux flux2_klein_9b flux2_klein_4b flux2_dev chroma hunyuan_video"),
        ("elsewhere.3.new", 3072, ""),
    ],
)
def test_what_detection_goes_by(paths: str, width: int, expected: str) -> None:
    found = names(detect_families(modules_of(*_expanded(paths), width=width), {}))
    assert found[: len(expected.split())] == expected.split()
    assert "new" in paths or found == expected.split()


@pytest.mark.parametrize("texts", [1, 40])
def test_what_is_no_layer_of_a_unet_is_weighed_against_it(texts: int) -> None:
    unet = modules_of("up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", prefix="unet.", width=1280)
    encoder = modules_of(*(f"layers.{i}.mlp.gate_proj" for i in range(texts)), prefix="lora_te_", width=1024)
    expected = ["sdxl", "anima"] if texts == 1 else ["anima"]
    assert names(detect_families((*unet, *encoder), {})) == expected


def _expanded(paths: str) -> Iterator[str]:
    for path in paths.split():
        if match := re.search(r"\{(\d+)\.\.(\d+)\}", path):
            yield from (path.replace(match[0], str(i)) for i in range(int(match[1]), int(match[2]) + 1))
        else:
            yield path


@pytest.mark.parametrize(
    ("paths", "width", "alike"),
    [
        ("transformer_blocks.{0..27}.attn1.to_q", 2048, True),  # LTX-Video
        ("transformer_blocks.{0..29}.attn1.to_q", 1920, False),  # CogVideoX
        ("transformer_blocks.{0..29}.attn1.to_q", 16, True),  # too narrow for any network
        ("layers.{0..23}.self_attn.q_proj", 2048, False),  # a stack of layers as Z-Image's is, but of others
        ("layers.{0..23}.attention.to_q layers.{0..19}.new", 3840, True),
    ],
)
def test_a_network_of_similar_names_is_not_taken_for_a_family(paths: str, width: int, alike: bool) -> None:
    modules = modules_of(*_expanded(paths), width=width)
    assert resembles(detect_families(modules, {})[0], modules) == alike


@pytest.mark.parametrize(
    ("family", "path", "block"),
    [
        ("sd1", "input_blocks_1_1_proj_in", "IN01"),
        ("sd1", "input_blocks_11_0_in_layers_2", "IN11"),
        ("sd1", "output_blocks_2_1_conv", "OUT02"),
        ("sd1", "up_blocks_3_attentions_2_proj_out", "OUT11"),
        ("sd1", "down_blocks_0_motion_modules_1_x", "IN02"),
        ("sd1", "time_embedding_linear_1", OTHER),
        ("flux", "double_blocks_1_img_attn_qkv", "D01"),
        ("flux", "double_blocks_11_img_attn_qkv", "D11"),
        ("flux", "single_transformer_blocks_3_proj_out", "S03"),
        ("flux", "proj_out", "OUT"),
        ("hunyuan_video", "txt_in_individual_token_refiner_blocks_1_mlp_fc1", "IN"),
        ("anima", "llm_adapter_blocks_3_mlp_0", "A03"),
        ("cascade", "down_blocks_0_23_x", "D07"),
        ("cascade", "down_blocks_1_12_x", "D12"),
        ("cascade", "up_blocks_1_3_x", "U25"),
        # No such block, or no such place.
        *(("sd1", path, None) for path in ("input_blocks_12_0_x", "output_blocks_12_0_x", "down_blocks_4_resnets_0_x")),
        *(("sdxl", path, None) for path in ("input_blocks_9_0_x", "output_blocks_9_0_x", "up_blocks_3_resnets_0_x")),
        *(("flux", path, None) for path in ("double_blocks_19_x", "single_blocks_38_x", "double_blocks_x")),
        *(("flux2_klein_4b", path, None) for path in ("double_blocks_5_x", "single_blocks_20_x")),
        *(("hunyuan_video_1_5", path, None) for path in ("double_blocks_54_x", "single_blocks_0_x")),
        *(("z_image", path, None) for path in ("layers_30_x", "noise_refiner_2_x", "context_refiner_2_x")),
        *(("cascade", path, None) for path in ("down_blocks_0_24_x", "up_blocks_1_24_x", "down_blocks_2_0_x")),
        *(("wan_1_3b", "blocks_30_x", None), ("wan_14b", "blocks_40_x", None), ("sd3", "joint_blocks_24_x", None)),
    ],
)
def test_numbers_are_numbers_and_end_where_the_model_does(family: str, path: str, block: str | None) -> None:
    place = FAMILIES[family].place(*modules_of(path, prefix="lora_unet_"))
    assert (place and place.block) == block


# What a text encoder's layers begin with, by what families know it by.
ENCODER_PREFIXES = {
    "te": ("lora_te_", "oft_te_", "text_encoders.gemma.transformer."),
    "te1": ("lora_te1_", "text_encoder."),
    **{f"te{n}": (f"lora_te{n}_", f"text_encoder_{n}.") for n in (2, 3, 4)},
    **{f"clip_{size}": (f"clip_{size}.", f"text_encoders.clip_{size}.transformer.") for size in "lgh"},
    "t5": ("t5.", "text_encoders.t5xxl.transformer.", "text_encoders.umt5xxl.transformer."),
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
class TestEveryFamily:
    def test_its_layouts_are_lists_of_its_blocks(self, family: Family) -> None:
        assert len(set(family.blocks)) == len(family.blocks)
        assert len({len(layout) for layout in family.layouts}) == len(family.layouts)
        assert family.blocks in family.layouts
        for layout in family.layouts:
            assert [block for block in family.blocks if block in layout] == list(layout)

    def test_its_blocks_are_encoders_ends_and_a_stack(self, family: Family) -> None:
        ends = [block for block in ("IN", "OUT") if block in family.blocks]
        assert {*family.text_encoder_blocks, *ends, *family.stack} == set(family.blocks)
        assert family.text_encoder_blocks == family.blocks[: len(family.text_encoder_blocks)]
        assert len(family.text_encoder_blocks) + len(ends) + len(family.stack) == len(family.blocks)

    def test_it_is_found_by_its_name(self, family: Family) -> None:
        assert family_named(family.name.upper()) is family

    def test_its_text_encoders_are_found_in_every_spelling(self, family: Family) -> None:
        for encoder in family.encoders:
            for prefix in (
                prefix for component in encoder.components for prefix in ENCODER_PREFIXES.get(component, ())
            ):
                (module,) = modules_of("x", prefix=prefix)
                assert family.place(module) == Place(encoder.name, encoder.block), prefix

    def test_presets_of_its_relatives_mean_the_same_blocks(self, family: Family) -> None:
        assert all(FAMILIES[name].blocks == family.blocks for name in family.preset_families)


def test_the_vector_lengths_are_those_people_use() -> None:
    lengths = {name: [len(layout) for layout in family.layouts] for name, family in FAMILIES.items()}
    assert lengths["sd1"] == lengths["sd2"] == [17, 26]
    assert lengths["sdxl"] == [12, 20]
    assert lengths["flux"] == lengths["chroma"] == [61, 57]
    assert lengths["hunyuan_video"] == [64, 60]
    assert lengths["wan_14b"] == [43, 40]
    assert all(set(FAMILIES[name].lengths) == {12, 17, 20, 26} for name in ("sd1", "sd2", "sdxl", "sdxl_refiner"))


@pytest.mark.parametrize(
    ("family", "base", "ends"),
    [
        ("sd1", "BASE", "IN00 OUT11"),
        ("flux", "CLIP T5", "D00 S37"),
        ("hunyuan_video", "TE CLIP", "D00 S39"),
        ("sd3", "CLIP_L CLIP_G T5", "J00 J23"),
        ("lumina2", "TE", "NR00 L25"),
    ],
)
def test_base_is_the_text_encoders_and_the_stack_what_follows(family: str, base: str, ends: str) -> None:
    assert FAMILIES[family].text_encoder_blocks == tuple(base.split())
    assert [FAMILIES[family].stack[i] for i in (0, -1)] == ends.split()


@pytest.mark.parametrize(("wrong", "near"), [("sdxk", "sdxl"), ("wan14b", "wan_14b"), ("qwen", "qwen_image")])
def test_a_misspelt_family_gets_a_hint(wrong: str, near: str) -> None:
    with pytest.raises(UnknownFamilyError) as error:
        family_named(wrong)
    assert near in error.value.hint


def test_a_large_file_is_read_in_no_time() -> None:
    began = time.process_time()
    detect_families(grouping("sdxl_lycoris_full").modules, {})
    assert time.process_time() - began < 0.5  # about 0.06 on a slow core


@pytest.mark.parametrize(
    ("family", "component", "path", "block"),
    [
        ("flux", "te", "encoder_block_0_layer_0_SelfAttention_q", "T5"),
        ("flux", "te", "text_model_encoder_layers_0_self_attn_q_proj", "CLIP"),
        ("flux", "te2", "text_model_encoder_layers_0_self_attn_q_proj", "CLIP"),
        ("sd3", "te2", "encoder_block_0_layer_0_SelfAttention_q", "T5"),
        ("sd3", "te2", "text_model_encoder_layers_0_self_attn_q_proj", "CLIP_G"),
        ("sd3", "te3", "text_model_encoder_layers_0_self_attn_q_proj", "T5"),  # either CLIP could be meant
        ("hidream", "te", "model_layers_0_self_attn_q_proj", "TE"),
    ],
)
def test_a_text_encoder_is_the_one_that_has_the_layer(family: str, component: str, path: str, block: str) -> None:
    place = FAMILIES[family].place_of(component, path)
    assert place is not None
    assert place.block == block


@pytest.mark.parametrize(
    ("family", "blocks", "last"),
    [
        ("ltx_13b", [f"B{i:02}" for i in range(28)], "B27"),  # as CogView4, which has LTX's names
        ("ltx_13b", [f"B{i:02}" for i in range(48)], ""),
        ("ltx_13b", [f"B{i:02}" for i in range(47)], ""),
        ("ltx_13b", [f"B{i:02}" for i in (*range(28), 40)], ""),  # somebody's choice
        ("ltx_13b", ["B00", "B01", "B02"], ""),
        ("flux", [*(f"D{i:02}" for i in range(19)), *(f"S{i:02}" for i in range(20))], "S19"),
        ("sd1", [f"IN{i:02}" for i in range(8)], ""),
    ],
)
def test_a_stack_that_ends_early_may_be_a_smaller_models(family: str, blocks: list[str], last: str) -> None:
    assert stops_short(FAMILIES[family], blocks) == last
