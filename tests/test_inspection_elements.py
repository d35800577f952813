"""Where a LoRA lives: shares, elements, components and spectra, against dense computation; files side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import (
    MODULE,
    SD1_ALL_BLOCKS,
    SD1_BLOCKS,
    SDXL_BLOCKS,
    Run,
    Tensors,
    kohya_lora,
    sdxl_lora,
    unet_lora,
    update_of,
    write,
)
from formulas import OUT, Formula, for_each

from lbw_bake.elements import element_of
from lbw_bake.spectra import effective_rank

ORDER = SD1_ALL_BLOCKS
LAYERS = {
    "te_text_model_encoder_layers_0_mlp_fc1": "mlp",
    "te_text_model_encoder_layers_0_self_attn_q_proj": "self_attn",
    "unet_down_blocks_0_attentions_0_proj_in": "proj",
    "unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": "attn1",
    "unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k": "attn2",
    "unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj": "ff",
    "unet_down_blocks_0_resnets_0_conv1": "conv",
    "unet_down_blocks_0_resnets_0_time_emb_proj": "time_emb",
}


def squared(tensors: Tensors, module: str) -> float:
    return float(np.linalg.norm(update_of(tensors, module)) ** 2)


@pytest.mark.parametrize(
    ("path", "element"),
    [
        *((name.split("_", 1)[1], element) for name, element in LAYERS.items()),
        ("double_blocks_3_img_attn_qkv", "attn"),
        ("double_blocks_3_txt_mlp_0", "mlp"),
        ("double_blocks_3_img_mod_lin", "mod"),
        ("single_blocks_7_linear1", "linear"),
        ("single_transformer_blocks_7_norm_linear", "mod"),
        ("blocks_3_cross_attn_k", "cross_attn"),
        ("blocks_3_ffn_0", "ff"),
        ("encoder_block_0_layer_0_SelfAttention_q", "self_attn"),
        ("encoder_block_0_layer_1_DenseReluDense_wi_0", "mlp"),
        ("input_blocks_4_0_in_layers_2", "conv"),
        ("input_blocks_4_0_emb_layers_1", "time_emb"),
        ("input_blocks_4_0_skip_connection", "conv"),
        ("middle_block_1_norm", "norm"),
        ("never_heard_of_it", "other"),
    ],
)
def test_an_element_is_read_off_the_path(path: str, element: str) -> None:
    assert element_of(path) == element


def test_shares_are_of_squared_norms(tmp_path: Path, run: Run) -> None:
    tensors = unet_lora()
    facts = run.json("inspect", "--json", write(tmp_path / "a.safetensors", tensors))
    modules = [name.removesuffix(".alpha") for name in tensors if name.endswith(".alpha")]
    each = np.array([squared(tensors, module) for module in modules])
    assert [block["share"] for block in facts["blocks"].values()] == pytest.approx(each / each.sum())
    assert facts["components"].keys() == {"clip_l", "unet"}
    assert facts["components"]["clip_l"]["share"] == pytest.approx(facts["blocks"]["BASE"]["share"])
    assert facts["components"]["unet"]["norm"] == pytest.approx(np.sqrt(each[1:].sum()))
    assert facts["blocks"]["MID"]["parameters"] == 4 * 8 + 8 * 4 + 1


def test_elements_hold_every_module_once(tmp_path: Path, run: Run) -> None:
    tensors = kohya_lora(list(LAYERS))
    path = write(tmp_path / "a.safetensors", tensors)
    elements = run.json("inspect", "--json", path)["elements"]
    assert {name: group["modules"] for name, group in elements.items()} == dict.fromkeys(LAYERS.values(), 1)
    assert sum(group["share"] for group in elements.values()) == pytest.approx(1)
    for name, element in LAYERS.items():
        assert elements[element]["norm"] ** 2 == pytest.approx(squared(tensors, f"lora_{name}"))
    out = run.out("inspect", "--elements", path)
    assert sorted(line.split()[0] for line in out.splitlines()[2:]) == sorted(LAYERS.values())


def test_what_has_no_norm_has_no_share_and_is_counted(tmp_path: Path, run: Run) -> None:
    tensors = unet_lora()
    tensors[f"{MODULE}.lora_up.weight"][:] = np.nan
    path = write(tmp_path / "a.safetensors", tensors)
    facts = run.json("inspect", "--json", path, "--spectrum")
    assert facts["blocks"]["MID"]["share"] == 0
    assert facts["blocks"]["MID"]["largest"] is None
    assert sum(block["share"] for block in facts["blocks"].values()) == pytest.approx(1)
    assert facts["blocks"]["MID"]["unmeasured"] == 1
    _, out, error = run("inspect", path)
    assert "1 module not measured" in error
    assert next(line.split()[-2:] for line in out.splitlines() if line.startswith("MID")) == ["?", "?"]


# Their update depends on the base model, or is no matrix.
WITHOUT_SPECTRUM = ("glora", "vera", "ia3 on the input", "norm", "bias alone")


@for_each()
def test_the_spectrum_is_that_of_the_dense_update(case: Formula, tmp_path: Path, run: Run) -> None:
    tensors = case.tensors(MODULE)
    block = run.json("inspect", "--json", write(tmp_path / "a.safetensors", tensors), "--spectrum")["blocks"]["MID"]
    if case.name in WITHOUT_SPECTRUM:
        assert (block["largest"], block["effective_rank"]) == (None, None)
        return
    additive = sum(tensors[f"{MODULE}.{role}"].size for role in case.additive if role != "diff")
    update = case.update(tensors, MODULE)
    values = np.linalg.svd(update[: update.size - additive].reshape(OUT, -1), compute_uv=False)
    assert block["largest"] == pytest.approx(values[0], rel=1e-6)
    assert block["effective_rank"] == pytest.approx(effective_rank(values), rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 50), (50, 3), (40, 40)])
def test_a_rank_as_large_as_the_layer_is_no_trouble(shape: tuple[int, int], tmp_path: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    rows, columns = shape
    tensors = {
        f"{MODULE}.lora_up.weight": rng.standard_normal((rows, 30)).astype(np.float32),
        f"{MODULE}.lora_down.weight": rng.standard_normal((30, columns)).astype(np.float32),
    }
    block = run.json("inspect", "--json", write(tmp_path / "a.safetensors", tensors), "--spectrum")["blocks"]["MID"]
    values = np.linalg.svd(np.matmul(*(array.astype(np.float64) for array in tensors.values())), compute_uv=False)
    assert block["largest"] == pytest.approx(values[0], rel=1e-6)
    assert block["effective_rank"] == pytest.approx(effective_rank(values), rel=1e-5)


def test_the_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.array([5.0])) == pytest.approx(1)
    assert effective_rank(np.zeros(4)) is None


def test_the_median_and_the_largest_are_taken_over_a_block(tmp_path: Path, run: Run) -> None:
    names = [f"unet_middle_block_1_transformer_blocks_{i}_attn1_to_q" for i in range(3)]
    tensors: Tensors = {}
    for i, name in enumerate(names):
        one = kohya_lora([name], seed=i)
        one[f"lora_{name}.lora_up.weight"][:, : 3 - i] = 0  # ranks 1, 2, 3
        tensors |= one
    facts = run.json("inspect", "--json", write(tmp_path / "a.safetensors", tensors), "--family", "sdxl", "--spectrum")
    spectra = [module["spectrum"] for module in facts["modules"]]
    assert facts["blocks"]["MID"]["largest"] == max(one["largest"] for one in spectra)
    assert facts["blocks"]["MID"]["effective_rank"] == sorted(one["effective_rank"] for one in spectra)[1]
    out = run.out("inspect", tmp_path / "a.safetensors", "--family", "sdxl", "--spectrum")
    assert f"{facts['blocks']['MID']['effective_rank']:.1f}" in out.splitlines()[2].split()


def test_without_being_asked_there_is_no_spectrum(lora: Path, run: Run) -> None:
    facts = run.json("inspect", "--json", lora)
    assert "largest" not in facts["blocks"]["MID"]
    assert "spectrum" not in facts["modules"][0]


def test_several_files_are_one_table_in_block_order(tmp_path: Path, run: Run) -> None:
    one = write(tmp_path / "one.safetensors", unet_lora())
    two = write(tmp_path / "two.safetensors", sdxl_lora())
    out = run.out("inspect", two, one)
    lines = out.splitlines()
    assert lines[1].split() == ["block", "two", "one"]
    rows = [line.split() for line in lines[2:-2]]
    assert [row[0] for row in rows] == sorted({*SD1_BLOCKS, *SDXL_BLOCKS}, key=ORDER.index)
    norms = {path: run.json("inspect", "--json", path)["blocks"]["MID"]["norm"] for path in (one, two)}
    middle = next(row for row in rows if row[0] == "MID")
    assert middle[1::2] == [f"{norms[two]:.3g}", f"{norms[one]:.3g}"]
    assert [line.split(":")[0] for line in lines[-2:]] == ["two.safetensors", "one.safetensors"]
