"""Merging on the command line: what is asked for, what is refused, what is said. Interop judges trainers' modules."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    MODULE,
    BakeTensors,
    Run,
    Tensors,
    kohya_lora,
    metadata_of,
    peft_lora,
    record_in,
    unet_lora,
    update_of,
    write,
    write_raw,
)
from formulas import BY_NAME, FORMULAS, Formula, for_each
from safetensors.numpy import load_file

from lbw_bake import merge
from lbw_bake.errors import StrictError, WeightError
from lbw_bake.sources import Weights, parse_part
from lbw_bake.weights import Options


class MergeTensors:
    """`lbw merge` of state dicts, each in a file of its own; a pair is one and its strength."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder = run, folder

    def __call__(self, *parts: Tensors | tuple[Tensors, float], family: str = "sd1") -> Tensors:
        """The tensors of the sum."""
        self._run.done(*self._command(parts, family))
        return load_file(self._folder / "merged.safetensors")

    def refused(self, *parts: Tensors | tuple[Tensors, float], family: str = "sd1") -> str:
        """The stderr of what must be refused."""
        return self._run.refused(*self._command(parts, family))

    def _command(self, parts: Sequence[Tensors | tuple[Tensors, float]], family: str) -> list[object]:
        pairs = enumerate(part if isinstance(part, tuple) else (part, 1) for part in parts)
        files = [f"{write(self._folder / f'{i}.safetensors', part)}:{strength}" for i, (part, strength) in pairs]
        return ["merge", *files, "--family", family, "--force", "-o", self._folder / "merged.safetensors"]


@pytest.fixture
def merge_tensors(run: Run, tmp_path: Path) -> MergeTensors:
    return MergeTensors(run, tmp_path)


@pytest.fixture
def loras(tmp_path: Path) -> tuple[Path, Path]:
    """Two LoRAs of the same layers."""
    one = write(tmp_path / "one.safetensors", unet_lora(), {"ss_output_name": "one", "sshs_model_hash": "0" * 64})
    two = write(tmp_path / "two.safetensors", {name: -array for name, array in unet_lora().items()})
    return one, two


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a.safetensors", ("a.safetensors", 1.0, None)),
        ("a.safetensors:0.7", ("a.safetensors", 0.7, None)),
        ("a.safetensors:-.5:MIDD", ("a.safetensors", -0.5, "MIDD")),
        ("a.safetensors:5e-1", ("a.safetensors", 0.5, None)),
        ("a.safetensors:+5E-1:MIDD", ("a.safetensors", 0.5, "MIDD")),
        ("a.safetensors:MIDD", ("a.safetensors", 1.0, "MIDD")),
        ("a.safetensors:1:BASE=1 *=0", ("a.safetensors", 1.0, "BASE=1 *=0")),
        (r"C:\loras\a.safetensors:0.7:MIDD", (r"C:\loras\a.safetensors", 0.7, "MIDD")),
    ],
)
def test_a_file_comes_with_its_strength_and_weights(text: str, parts: tuple[str, float, str | None]) -> None:
    path, strength, weights = parts
    assert parse_part(text) == (Path(path), Weights.parse(weights, options=Options(strength=strength)))


def test_what_is_wrong_with_weights_says_of_which_file(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    one, two = loras
    for weights, said in (("0,5", "2 weights do not fit"), ("R=1", "R"), ("1" + 16 * ",R", "R"), ("MID==1", "rule")):
        error = run.refused("merge", one, f"{two}:{weights}", "-o", tmp_path / "out.safetensors")
        assert error.startswith(f"error: {two}: ")
        assert said in error


def test_a_prompt_token_is_no_file() -> None:
    with pytest.raises(WeightError, match="is a prompt token, not a file"):
        parse_part("<lora:doraemon:0.7>")


def test_nothing_is_no_file() -> None:
    with pytest.raises(WeightError):
        parse_part("")


def test_a_file_and_its_opposite_cancel(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    # Its factors and alpha are negated: three signs make the update negative.
    out = tmp_path / "out.safetensors"
    run.done("merge", *loras, "-o", out)
    merged = load_file(out)
    product = merged[f"{MODULE}.lora_up.weight"] @ merged[f"{MODULE}.lora_down.weight"]
    assert np.abs(product).max() < 1e-5


def test_alphas_that_only_the_adapters_configuration_tells_count(tmp_path: Path, run: Run) -> None:
    """diffusers writes them into the metadata, with the component before each word."""
    alphas = {"down_blocks.1.attentions.0.proj_in": 2, "mid_block.attentions.0.proj_in": 12}
    tensors = peft_lora([f"unet.{path}" for path in alphas], 4)
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"mid_block.*": 12}}
    source = write(tmp_path / "a.safetensors", tensors, {"lora_adapter_metadata": json.dumps(config)})
    out = tmp_path / "out.safetensors"
    run.done("merge", f"{source}:0.5", "-o", out, "--family", "sd1")
    merged = load_file(out)
    for path, alpha in alphas.items():
        original, sum_ = (t[f"unet.{path}.lora_B.weight"] @ t[f"unet.{path}.lora_A.weight"] for t in (tensors, merged))
        np.testing.assert_allclose(sum_, 0.5 * alpha / 4 * original, rtol=1e-5, atol=1e-6)


def test_ranks_that_differ_without_an_alpha_are_said(tmp_path: Path, run: Run) -> None:
    one, other = "unet.mid_block.attentions.0.proj_in", "unet.up_blocks.1.attentions.0.proj_in"
    a = write(tmp_path / "a.safetensors", peft_lora([one]))
    b = write(tmp_path / "b.safetensors", peft_lora([one, other], 4))
    command = ("merge", a, b, "--family", "sd1", "--force", "-o", tmp_path / "out.safetensors")
    assert "ranks 4, 6 and no alpha" in run.done(*command)
    assert "no alpha" not in run.done(*command, "--rank", 4)
    uneven = write(tmp_path / "c.safetensors", peft_lora([one]) | peft_lora([other], 4))
    assert "no alpha" not in run.done("merge", uneven, *command[2:])


@pytest.mark.parametrize(
    ("also", "suffix"),
    [
        ({}, "lora_B.weight"),
        ({"unet.conv_in.lora_A.weight": (2, 4, 3, 3), "unet.conv_in.lora_B.weight": (8, 2, 1, 1)}, "lora_B.weight"),
        (
            {"unet.conv_in.lora.down.weight": (2, 4, 3, 3), "unet.conv_in.lora.up.weight": (8, 2, 1, 1)},
            "lora.up.weight",
        ),
    ],
)
def test_products_that_are_new_are_called_as_those_of_the_file(
    also: dict[str, tuple[int, ...]], suffix: str, bake_tensors: BakeTensors
) -> None:
    """Or as PEFT has it, where there are none and names have dots; alpha is in the numbers then."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)}
    loha = {f"{name}.{role}": np.ones(shape, np.float32) for role, shape in shapes.items()}
    loha |= {f"{name}.alpha": np.array(1.0, np.float32)}
    loha |= {key: np.ones(shape, np.float32) for key, shape in also.items()}
    small = bake_tensors(loha, "-w", "*=1", "--rank", 1, "--family", "sd1")
    down, up = sorted(key for key in small if key.startswith(name))
    assert up == f"{name}.{suffix}"
    np.testing.assert_allclose(small[up] @ small[down], np.full((8, 8), 4 / 2), rtol=1e-5)


def test_the_record_names_every_part(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    out = tmp_path / "both.safetensors"
    run.done("merge", f"{loras[0]}:0.7:MIDD", f"{loras[1]}:0.5", "-o", out)
    metadata = metadata_of(out)
    parts = json.loads(metadata["lbw_bake"])["merged"]
    assert [(part["source"], part["preset"], part["strength"]) for part in parts] == [
        ("one.safetensors", "MIDD", 0.7),
        ("two.safetensors", None, 0.5),
    ]
    assert metadata["ss_output_name"] == "both"
    assert metadata["sshs_model_hash"] != "0" * 64


def test_the_record_of_a_truncation_is_that_of_a_bake_and_the_rank(
    loras: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    one, both = tmp_path / "one-small.safetensors", tmp_path / "both.safetensors"
    run.done("bake", loras[0], "-p", "MIDD", "--rank", 2, "-o", one)
    run.done("merge", *loras, "--rank", 2, "-o", both)
    record, merged = record_in(one), record_in(both)
    assert (record["source"], record["preset"], record["rank"]) == ("one.safetensors", "MIDD", 2)
    assert "merged" not in record
    assert ([part["source"] for part in merged["merged"]], merged["rank"]) == (
        ["one.safetensors", "two.safetensors"],
        2,
    )


def test_a_merge_of_one_file_contradicts_no_record(tmp_path: Path, run: Run) -> None:
    """Its factors may have another form, and the alphas of a configuration are in its numbers: that is no bake."""
    tucker = write(tmp_path / "a.safetensors", BY_NAME["tucker"].tensors(MODULE))
    peft = write(tmp_path / "b.safetensors", peft_lora([PEFT]))
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 4}')
    out = tmp_path / "elsewhere" / "c.safetensors"
    out.parent.mkdir()
    for source in (tucker, peft):
        run.done("merge", f"{source}:0.5", "--family", "sd1", "--force", "-o", out)
        compared = run.json("diff", source, out, "--family", "sd1", "--json")
        assert compared["matches_record"] is None
    assert compared["blocks"]["MID"]["weight"] == pytest.approx(0.5)


def test_merging_is_deterministic(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.safetensors"
    written = []
    for _ in range(2):
        run.done("merge", *loras, "-o", out, "--force")
        written.append(out.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("missing/out.safetensors", "no folder"),
        ("one.safetensors", "input itself"),
        ("old.safetensors", "already exists"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    output: str, said: str, loras: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"old")
    before = loras[0].read_bytes()
    force = ["--force"] if output == "one.safetensors" else []
    error = run.refused("merge", *loras, "-o", tmp_path / output, *force)
    assert said in error
    assert loras[0].read_bytes() == before
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"


def test_dotted_names_become_those_of_a_first_file_of_kohyas(merge_tensors: MergeTensors) -> None:
    paths = [f"unet.mid_block.attentions.0.proj_{end}" for end in ("in", "out")]
    kohya = kohya_lora(["unet_mid_block_attentions_0_proj_in"], dtype="float32")
    peft = peft_lora(paths) | {"unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.diff": np.ones((8, 8))}
    merged = merge_tensors(kohya, peft)
    stems = [f"lora_unet_mid_block_attentions_0_proj_{end}" for end in ("in", "out")]
    full = "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2.diff"
    roles = ("alpha", "lora_down.weight", "lora_up.weight")
    assert merged.keys() == {full, *(f"{stem}.{role}" for stem in stems for role in roles)}
    updates = [peft[f"{path}.lora_B.weight"] @ peft[f"{path}.lora_A.weight"] for path in paths]
    np.testing.assert_allclose(update_of(merged, stems[0]), update_of(kohya, stems[0]) + updates[0], atol=1e-5)
    np.testing.assert_allclose(update_of(merged, stems[1]), updates[1], atol=1e-5)


@pytest.mark.parametrize(
    ("family", "layer", "name"),
    [
        ("sdxl", "down_blocks.1.resnets.0.conv1", "input_blocks_4_0_in_layers_2"),
        ("sdxl", "up_blocks.0.upsamplers.0.conv", "output_blocks_2_2_conv"),
        ("sd1", "up_blocks.0.upsamplers.0.conv", "output_blocks_2_1_conv"),
        ("sd1", "up_blocks.2.upsamplers.0.conv", "output_blocks_8_2_conv"),
        ("sd1", "time_embedding.linear_2", "time_embed_2"),
        ("sdxl", "add_embedding.linear_1", "label_emb_0_0"),
    ],
)
@pytest.mark.parametrize("kohyas", [True, False])
def test_layers_of_a_unet_have_the_names_of_one_model(
    family: str, layer: str, name: str, kohyas: bool, merge_tensors: MergeTensors
) -> None:
    """Those of the original one where a file has these: diffusers passes over them beside its own."""
    layers = [layer, "mid_block.attentions.0.proj_out"]
    full = "lora_unet_conv_in.diff" if kohyas else "unet.conv_in.diff"
    flat = [f"unet_{layer.replace('.', '_')}" for layer in layers]
    other = kohya_lora(flat) if kohyas else peft_lora([f"unet.{layer}" for layer in layers])
    other |= {full: np.ones((3, 3), np.float32)}
    merged = merge_tensors(kohya_lora(["unet_middle_block_1_proj_in"]), other, family=family)
    found = {name.partition(".")[0] for name in merged}
    wanted = ("middle_block_1_proj_in", "middle_block_1_proj_out", "input_blocks_0_0", name)
    assert found == {f"lora_unet_{name}" for name in wanted}


def test_also_where_a_file_has_dotted_names_of_its_text_encoder(merge_tensors: MergeTensors) -> None:
    """Which stay as they are: no other file says what kohya's begin with."""
    encoder = peft_lora(["text_encoder.text_model.encoder.layers.0.mlp.fc1"])
    first = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32") | encoder
    found = merge_tensors(first, kohya_lora(["unet_mid_block_attentions_0_proj_out"])).keys()
    assert {name for name in found if "lora_up" in name} == {
        f"lora_unet_middle_block_1_proj_{end}.lora_up.weight" for end in ("in", "out")
    }
    assert encoder.keys() <= found


@pytest.mark.parametrize("turned", [False, True], ids=["as they are", "turned round"])
@pytest.mark.parametrize("encoder", [False, True], ids=["unet", "with a text encoder"])
@pytest.mark.parametrize("other", ["kohya", "dotted"])
def test_the_order_of_a_files_tensors_decides_no_names(
    other: str, encoder: bool, turned: bool, tmp_path: Path, run: Run
) -> None:
    """Of a file that has kohya's names and dotted ones."""
    dotted = "unet.mid_block.attentions.0.proj_out"
    te = ["text_encoder.text_model.encoder.layers.0.mlp.fc1"] if encoder else []
    both = kohya_lora(["unet_mid_block_attentions_0_proj_in"], dtype="float32") | peft_lora([dotted, *te])
    entries = [(name, "F32", array.shape, array.tobytes()) for name, array in both.items()]
    mixed = write_raw(tmp_path / "a.safetensors", entries[::-1] if turned else entries)
    plain = write(
        tmp_path / "b.safetensors",
        kohya_lora(["unet_mid_block_attentions_0_norm"]) if other == "kohya" else peft_lora([f"{dotted[:-8]}norm"]),
    )
    out = tmp_path / "out.safetensors"
    run.done("merge", f"{mixed}:2", plain, "--family", "sd1", "-o", out)
    merged = load_file(out)
    factors = {f"lora_unet_mid_block_attentions_0_{layer}.lora_up.weight" for layer in ("proj_in", "proj_out", "norm")}
    assert {name for name in merged if "lora_up" in name} == factors
    assert {name for name in merged if "lora_B" in name} == {f"{layer}.lora_B.weight" for layer in te}
    update = both[f"{dotted}.lora_B.weight"] @ both[f"{dotted}.lora_A.weight"]
    np.testing.assert_allclose(update_of(merged, "lora_unet_mid_block_attentions_0_proj_out"), 2 * update, atol=1e-5)
    if encoder or other == "dotted":  # the first file has to have kohya's names of all that others have dotted
        error = run.refused("merge", plain, mixed, "--family", "sd1", "--force", "-o", out)
        assert "as kohya does" in error
    else:
        run.done("merge", plain, f"{mixed}:2", "--family", "sd1", "--force", "-o", out)
        assert load_file(out).keys() == merged.keys()


def test_layers_beside_an_oft_are_not_called_like_it(merge_tensors: MergeTensors) -> None:
    """No loader looks for a LoRA under `oft_unet_`."""
    proj_in, proj_out = (f"mid_block.attentions.0.proj_{end}" for end in ("in", "out"))
    stem = f"oft_unet_{proj_in.replace('.', '_')}"
    oft = {f"{stem}.oft_blocks": np.zeros((2, 4, 4), np.float32), f"{stem}.alpha": np.array(1e-3, np.float32)}
    error = merge_tensors.refused(oft, peft_lora([f"unet.{proj_out}"]))
    assert f"lora_unet_{proj_out.replace('.', '_')} is in no other file" in error


@pytest.mark.parametrize("command", [("merge",), ("bake", "-w", "*=1", "--rank", 1)])
def test_layers_of_xlabs_keep_their_names(command: tuple[str, ...], tmp_path: Path, run: Run) -> None:
    """Those of single blocks are spelled as the first diffusers files have an attention's, those of double ones not."""
    layers = ("double_blocks.0.processor.qkv_lora1", "single_blocks.0.processor.proj_lora")
    roles = (("lora_A", "down"), ("lora_B", "up"))
    peft = peft_lora(layers)
    tensors = {f"{layer}.{role}.weight": peft[f"{layer}.{name}.weight"] for layer in layers for name, role in roles}
    source = write(tmp_path / "a.safetensors", tensors)
    other = write(tmp_path / "b.safetensors", peft_lora(["double_blocks.1.img_attn.proj"]))
    run.done(*command, source, "--family", "flux", "-o", tmp_path / "c.safetensors")
    assert load_file(tmp_path / "c.safetensors").keys() == tensors.keys()
    run.done("merge", source, other, "--family", "flux", "-o", tmp_path / "d.safetensors")
    known = {module["name"] for module in run.json("inspect", tmp_path / "d.safetensors", "--json")["modules"]}
    assert known == {layers[0], "single_blocks.0.processor.proj", "double_blocks.1.img_attn.proj"}


def test_layers_that_others_split_become_those_of_a_first_file_of_kohyas(merge_tensors: MergeTensors) -> None:
    """Flux: q, k and v are a third of a layer each, and with the MLP one and four sevenths of another."""
    qkv, linear1, single = "double_blocks_0_img_attn_qkv", "single_blocks_3_linear1", "single_blocks_3_linear2"
    qkv, linear1, single = (f"lora_unet_{layer}" for layer in (qkv, linear1, single))
    kohya = kohya_lora([qkv.removeprefix("lora_")], dtype="float32")
    kohya[f"{qkv}.lora_up.weight"] = np.concatenate([kohya[f"{qkv}.lora_up.weight"]] * 3)
    rows = {
        "transformer_blocks.0.attn.to_q": (qkv, 0, 24),
        "transformer_blocks.0.attn.to_v": (qkv, 16, 24),
        "single_transformer_blocks.3.attn.to_k": (linear1, 8, 56),
        "single_transformer_blocks.3.proj_mlp": (linear1, 24, 56),
        "single_transformer_blocks.3.proj_out": (single, 0, 8),
    }
    peft = peft_lora([f"transformer.{path}" for path in rows])
    mlp = "transformer.single_transformer_blocks.3.proj_mlp"
    peft[f"{mlp}.lora_B.weight"] = np.concatenate([peft[f"{mlp}.lora_B.weight"]] * 4)
    peft["transformer.transformer_blocks.0.attn.to_k.diff_b"] = np.arange(8.0, dtype=np.float32)
    merged = merge_tensors((kohya, 0.5), peft, family="flux")
    expected = {qkv: 0.5 * update_of(kohya, qkv), linear1: np.zeros((56, 8)), single: np.zeros((8, 8))}
    for path, (layer, start, _) in rows.items():
        update = peft[f"transformer.{path}.lora_B.weight"] @ peft[f"transformer.{path}.lora_A.weight"]
        expected[layer][start : start + len(update)] += update
    for layer, update in expected.items():
        np.testing.assert_allclose(update_of(merged, layer), update, atol=1e-5)
    bias = np.concatenate([np.zeros(8), np.arange(8.0), np.zeros(8)])
    np.testing.assert_array_equal(merged[f"{qkv}.diff_b"], bias)
    roles = ("alpha", "lora_down.weight", "lora_up.weight")
    assert merged.keys() == {f"{qkv}.diff_b", *(f"{layer}.{role}" for layer in expected for role in roles)}


def test_rows_that_are_no_part_of_a_layer_are_refused(merge_tensors: MergeTensors) -> None:
    path = "transformer.single_transformer_blocks.3.proj_mlp"
    odd = {name: array[:7] if "lora_B" in name else array for name, array in peft_lora([path]).items()}
    error = merge_tensors.refused(kohya_lora(["unet_double_blocks_0_img_mlp_0"]), odd, family="flux")
    assert "7 rows are not the part of a layer" in error


@pytest.mark.parametrize(
    ("family", "kohya", "peft", "hint"),
    [
        ("sd1", "", "unet.mid_block.attentions.0.proj_in", "kohya's names of the unet"),
        ("flux", "", "transformer.transformer_blocks.0.ff.net.2", "kohya's names of the transformer"),
        ("flux", "double_blocks_0_img_mlp_0", "transformer.transformer_blocks.0.attn.norm_q", "convert one"),
        ("flux", "transformer_blocks_0_attn_to_q", "transformer.transformer_blocks.0.attn.to_q", "convert one"),
        ("qwen_image", "transformer_blocks_0_attn_to_q", "transformer.transformer_blocks.0.attn.to_q", "convert one"),
    ],
)
def test_names_that_cannot_be_turned_into_others_are_refused(
    family: str, kohya: str, peft: str, hint: str, merge_tensors: MergeTensors
) -> None:
    layer = f"unet_{kohya}" if kohya else "te_text_model_encoder_layers_0_mlp_fc1"
    error = merge_tensors.refused(kohya_lora([layer]), peft_lora([peft]), family=family)
    assert "as kohya does" in error
    assert hint in error


def test_a_bake_may_truncate(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.safetensors"
    error = run.done("bake", loras[0], "-w", "*=0.5", "--rank", 2, "-o", out)
    assert "truncated to rank 2: BASE lost" in error
    assert "(17 rewritten; " in error
    original, small = load_file(loras[0]), load_file(out)
    assert small[f"{MODULE}.lora_down.weight"].shape[0] == 2

    def update(tensors: dict[str, np.ndarray]) -> np.ndarray:
        up, down = tensors[f"{MODULE}.lora_up.weight"], tensors[f"{MODULE}.lora_down.weight"]
        return up @ down * (tensors[f"{MODULE}.alpha"] / len(down))

    left, values, right = np.linalg.svd(update(original))
    nearest = (left[:, :2] * values[:2]) @ right[:2]
    np.testing.assert_allclose(update(small), nearest * 0.5, atol=1e-5)


def test_truncation_keeps_what_belongs_to_no_module(tmp_path: Path, run: Run) -> None:
    strays = {"stray": np.arange(6).reshape(2, 3), "bundle_emb.puppy.string_to_param.*": np.ones((2, 8), np.float16)}
    source, out = write(tmp_path / "a.safetensors", unet_lora() | strays), tmp_path / "out.safetensors"
    error = run.done("merge", f"{source}:0.5", "-o", out)
    assert error.count("1 unknown tensor copied untouched: stray") == 1
    error = run.done("bake", source, "-w", "*=0.5", "--rank", 2, "-f", "-o", out)
    assert error.count("1 unknown tensor copied untouched: stray") == 1
    assert "left out" not in error
    small = load_file(out)
    assert all(small[name].dtype == one.dtype and (small[name] == one).all() for name, one in strays.items())


def test_a_preset_with_a_variable_wants_a_number(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    """There is no option here that settles it, as `lbw bake` has."""
    (tmp_path / "p.yaml").write_text(f"MINE: 1{',X' * 16}\n")
    parts = (f"{loras[0]}:1:MINE", loras[1], "--presets", tmp_path / "p.yaml")
    error = run.refused("merge", *parts, "-o", tmp_path / "c.safetensors")
    assert "preset MINE: weight 2 of 17 is X" in error
    assert "hint: write a number in its place" in error


def test_what_was_truncated_before_is_skipped(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    command = ("bake", loras[0], "-w", "*=0.5", "--skip-existing", "-o", tmp_path / "out.safetensors")
    run.done(*command, "--rank", 2)
    assert "warning" not in run.done(*command, "--rank", 2)
    for others in (("--rank", 3), ("--rank", 2, "--dtype", "f16"), ("--rank", 2, "--te", 0.5), ()):
        assert "baked with other options" in run.done(*command, *others)
    after = (tmp_path / "out.safetensors").stat().st_mtime_ns + 1
    os.utime(loras[0], ns=(after, after))
    assert "before its input changed" in run.done(*command, "--rank", 2)


def test_a_preset_that_cannot_be_truncated_leaves_the_others(
    loras: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    presets = ("--preset", "NONE", "--preset", "ALL", "--preset", "INS")
    error = run.refused("bake", loras[0], *presets, "--rank", 2, "--strict", "--out-dir", tmp_path / "out")
    assert "done: 1 written, 2 failed" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["one-NONE.safetensors"]


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (24, 4, 3, 3), (6, 16, 3, 3)])
def test_a_full_difference_is_truncated_too(shape: tuple[int, ...], tmp_path: Path, run: Run) -> None:
    difference = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    bias = np.ones(shape[0], np.float32)
    tensors = {f"{MODULE}.diff": difference, f"{MODULE}.diff_b": bias, "lora_unet_middle_block_1_norm.diff": bias}
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "out.safetensors"
    error = run.done("bake", source, "-w", "*=0.5", "--rank", 3, "-o", out, "--family", "sd1")
    small = load_file(out)
    kept = [f"{MODULE}.diff_b", "lora_unet_middle_block_1_norm.diff"]
    assert set(small) == {f"{MODULE}.lora_down.weight", f"{MODULE}.lora_up.weight", f"{MODULE}.alpha", *kept}
    assert small[f"{MODULE}.alpha"] == 3
    assert all((small[name] == bias / 2).all() for name in kept)
    up, down = small[f"{MODULE}.lora_up.weight"], small[f"{MODULE}.lora_down.weight"]
    assert (up.shape, down.shape) == ((shape[0], 3, *(1 for _ in shape[2:])), (3, *shape[1:]))
    left, values, right = np.linalg.svd(difference.reshape(shape[0], -1) / 2, full_matrices=False)
    got = up.reshape(shape[0], 3) @ down.reshape(3, -1)
    np.testing.assert_allclose(got, (left[:, :3] * values[:3]) @ right[:3], atol=1e-5)
    lost = np.sqrt((values[3:] ** 2).sum() / ((values**2).sum() + (bias**2).sum() / 4))  # of all in the block
    assert f"truncated to rank 3: MID lost {lost:.2%}" in error


def test_a_full_difference_of_no_higher_rank_stays_one(tmp_path: Path, run: Run) -> None:
    difference = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
    source, out = write(tmp_path / "a.safetensors", {f"{MODULE}.diff": difference}), tmp_path / "out.safetensors"
    assert "warning" not in run.done("bake", source, "-w", "*=0.5", "--rank", 4, "-o", out, "--strict")
    assert (load_file(out)[f"{MODULE}.diff"] == difference / 2).all()


def test_a_bias_inside_a_product_goes_with_the_rank_it_is_truncated_to(bake_tensors: BakeTensors) -> None:
    """Loaders multiply it by alpha / rank."""
    tensors = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32") | {f"{MODULE}.bias": np.ones(8, np.float32)}
    small, alpha = bake_tensors(tensors, "-w", "*=0.5", "--rank", 2, "--family", "sd1"), tensors[f"{MODULE}.alpha"]
    np.testing.assert_allclose(small[f"{MODULE}.bias"] * small[f"{MODULE}.alpha"] / 2, np.full(8, 0.5 * alpha / 4))


@pytest.mark.parametrize("kept", ["a product", "a difference"])
def test_what_is_lost_is_a_part_of_the_whole_block(kept: str, tmp_path: Path) -> None:
    """Modules of no higher rank count, though nothing of them is lost."""
    other = "lora_unet_middle_block_1_proj_out"
    tensors, small = (
        kohya_lora([f"unet_middle_block_1_proj_{end}"], rank, dtype="float32") for end, rank in (("in", 4), ("out", 2))
    )
    tensors[f"{MODULE}.alpha"], small[f"{other}.alpha"] = np.array(8, np.float32), np.array(3, np.float32)
    updates = [update_of(tensors, MODULE), update_of(small, other)]
    if kept == "a difference":
        updates[1] = np.ones((2, 8), np.float32)
        small = {f"{other}.diff": updates[1]}
    source = write(tmp_path / "a.safetensors", tensors | small)
    merged = merge([source], tmp_path / "b.safetensors", rank=2, family="sd1")
    lost = np.linalg.norm(np.linalg.svd(updates[0], compute_uv=False)[2:])
    assert merged.errors == {"MID": pytest.approx(lost / np.linalg.norm(np.concatenate(updates)), rel=1e-5)}


def test_strict_refuses_what_truncation_loses(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out.safetensors"
    for command in (("bake", loras[0], "-w", "*=0.5"), ("merge", loras[0], f"{loras[1]}:0.5")):
        assert "truncated to rank 2: BASE lost" in run.refused(*command, "--rank", 2, "--strict", "-o", out)
        assert not out.exists()
    run.done("bake", loras[0], "-w", "*=0.5", "--rank", 4, "--strict", "-o", out)


def test_strict_refuses_what_is_warned_of(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    more = write(tmp_path / "more.safetensors", unet_lora() | {"stray": np.ones(2, np.float32)})
    out = tmp_path / "out.safetensors"
    assert "1 tensor of no module left out" in run.refused("merge", loras[0], more, "--strict", "-o", out)
    assert not out.exists()
    assert run.json("merge", loras[0], more, "--dry-run", "--json", "-o", out)["left_out"] == ["stray"]
    run.done("merge", *loras, "--strict", "-o", out)
    with pytest.raises(StrictError):
        merge([loras[0], more], tmp_path / "other.safetensors", strict=True)


@pytest.mark.parametrize("options", [(), ("--rank", "3")])
def test_a_dry_run_says_what_would_be_written(
    options: tuple[str, ...], loras: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    before, command = set(tmp_path.iterdir()), ("merge", *loras, *options, "-o", tmp_path / "out.safetensors")
    said, facts = run.done(*command, "--dry-run"), run.json(*command, "--dry-run", "--json")
    assert set(tmp_path.iterdir()) == before
    rank = 3 if options else 8
    assert f"17 modules of rank {rank}, " in said
    assert said.endswith("; nothing written\n")
    written = run.json(*command, "--json")
    assert (facts["status"], written["status"], facts["ranks"]) == ("planned", "merged", [rank])
    assert facts | {"status": "merged"} == written
    assert written["bytes"] == (tmp_path / "out.safetensors").stat().st_size


def test_files_that_fit_several_models_agree_on_what_all_their_weights_mean(tmp_path: Path, run: Run) -> None:
    """The weights of the second file too are not read as those of whatever model the first was taken for."""
    either = write(tmp_path / "either.safetensors", kohya_lora(["unet_output_blocks_3_0_in_layers_2"], width=640))
    out = tmp_path / "c.safetensors"
    assert "they disagree" in run.refused("merge", either, f"{either}:1:MIDD", "-o", out)
    run.done("merge", either, f"{either}:1:MIDD", "-o", out, "--family", "sdxl")


@pytest.mark.parametrize("option", ["--prune", "--inexact=allow", "--no-metadata-update"])
def test_what_truncation_cannot_heed_is_refused(
    option: str, loras: tuple[Path, Path], tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out.safetensors"
    code, _, error = run("bake", loras[0], "-w", "*=0.5", "--rank", 2, option, "-o", out)
    assert code == 2
    assert "--rank" in error
    assert not out.exists()


def test_loras_of_different_models_do_not_add_up(tmp_path: Path, run: Run) -> None:
    sd1 = write(tmp_path / "sd1.safetensors", kohya_lora(["unet_input_blocks_1_1_proj_in"], width=320))
    flux = write(tmp_path / "flux.safetensors", kohya_lora(["unet_double_blocks_0_img_attn_proj"], width=3072))
    code, out, error = run("merge", sd1, flux, "-o", tmp_path / "c.safetensors")
    assert (code, out) == (1, "")
    assert "flux.safetensors is flux" in error
    assert "sd1.safetensors is sd1" in error
    assert not (tmp_path / "c.safetensors").exists()


def test_a_file_that_fits_several_models_goes_with_one_that_fits_fewer(tmp_path: Path, run: Run) -> None:
    either = write(tmp_path / "either.safetensors", kohya_lora(["unet_input_blocks_4_1_proj_in"], width=640))
    sdxl = write(
        tmp_path / "sdxl.safetensors",
        kohya_lora(["unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"], width=640),
    )
    for pair in ((either, sdxl), (sdxl, either)):
        run.done("merge", *pair, "-o", tmp_path / "c.safetensors", "--force")
        assert run.json("inspect", tmp_path / "c.safetensors", "--json")["family"] == "sdxl"


KOHYA = "unet_middle_block_1_transformer_blocks_0_attn1_to_q"
PEFT = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
PEFTS_FACTORS = peft_lora([PEFT], 4)
PEFTS_DORA = PEFTS_FACTORS | {f"{PEFT}.lora_magnitude_vector": np.ones(8, np.float32)}


def test_biases_keep_the_names_that_loaders_know(tmp_path: Path, run: Run) -> None:
    bias = {f"{PEFT}.lora_B.bias": np.ones(8, np.float32)}
    source, out = write(tmp_path / "a.safetensors", PEFTS_FACTORS | bias), tmp_path / "b.safetensors"
    for command in (("merge", source), ("bake", source, "-w", "*=0.5", "--rank", 2)):
        run.done(*command, "--family", "sd1", "-f", "-o", out)
        assert load_file(out).keys() == {*PEFTS_FACTORS, *bias}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_bias_of_peft_becomes_a_difference_where_names_have_no_place_for_it(
    kind: str, merge_tensors: MergeTensors
) -> None:
    bias = np.arange(8, dtype=np.float32)
    other = {"full": {f"{PEFT}.diff": np.ones((8, 8), np.float32)}, "lora": kohya_lora([KOHYA])}[kind]
    merged = merge_tensors(other, (peft_lora([PEFT]) | {f"{PEFT}.lora_B.bias": bias}, 0.5))
    stem = {"full": PEFT, "lora": f"lora_{KOHYA}"}[kind]
    assert not any("lora_B" in name for name in merged)
    np.testing.assert_allclose(merged[f"{stem}.diff_b"], bias / 2, rtol=1e-3)


def test_a_configuration_beside_the_file_must_not_count_twice(tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", PEFTS_FACTORS)
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 16}')
    assert "or they count twice" in run.done("merge", source, "--family", "sd1", "-o", tmp_path / "b.safetensors")


def test_a_bake_that_leaves_no_tensor_says_so(tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", PEFTS_DORA)
    error = run.done("bake", source, "-w", "*=0", "--family", "sd1", "-o", tmp_path / "b.safetensors")
    assert "no tensor is left" in error


def test_a_negative_alpha_is_in_the_numbers(tmp_path: Path, run: Run) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32")
    tensors[f"{MODULE}.alpha"] = np.array(-2, np.float32)
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    run.done("merge", source, "--rank", 2, "-o", out)
    assert load_file(out)[f"{MODULE}.alpha"] > 0
    assert run.json("diff", source, out, "--json")["blocks"]["MID"]["weight"] > 0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_an_alpha_may_be_an_integer(dtype: str, merge_tensors: MergeTensors) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32")
    tensors[f"{MODULE}.alpha"] = np.array(3, dtype)
    merged = merge_tensors((tensors, 0.5))
    np.testing.assert_allclose(update_of(merged, MODULE), 0.5 * update_of(tensors, MODULE), rtol=1e-5)


def test_an_alpha_of_zero_is_not_that_of_the_sum(merge_tensors: MergeTensors) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32")
    merged = merge_tensors(tensors | {f"{MODULE}.alpha": np.array(0, np.float32)}, tensors)
    np.testing.assert_allclose(update_of(merged, MODULE), update_of(tensors, MODULE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [0.01, 0.3, -0.7])
def test_tiny_factors_do_not_underflow(weight: float, merge_tensors: MergeTensors) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32")
    tensors[f"{MODULE}.lora_up.weight"] *= 2e-5
    tensors[f"{MODULE}.lora_down.weight"] *= 0.02
    original = {name: array.astype(np.float16) for name, array in tensors.items()}
    expected = weight * update_of(original, MODULE)
    error = np.linalg.norm(update_of(merge_tensors((original, weight)), MODULE) - expected)
    assert error <= 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("weight", [0.01, 0.3, -0.7])
@for_each(case for case in FORMULAS if "loha" in case.name or "lokr" in case.name)
def test_neither_do_factors_that_are_products_of_these(
    case: Formula, weight: float, merge_tensors: MergeTensors
) -> None:
    tensors = case.tensors(MODULE)
    for shrink, grow in case.products:
        tensors[f"{MODULE}.{grow}"] *= 2e-4
        tensors[f"{MODULE}.{shrink}"] *= 0.02
    original = {name: array.astype(np.float16) for name, array in tensors.items()}
    merged = {
        name: array.astype(np.float64) for name, array in merge_tensors((original, weight), (original, weight)).items()
    }
    up, down = merged[f"{MODULE}.lora_up.weight"], merged[f"{MODULE}.lora_down.weight"]
    scale = merged.get(f"{MODULE}.alpha", len(down)) / len(down)
    update = scale * np.tensordot(up.reshape(len(up), -1), down, 1).ravel()
    expected = 2 * weight * case.update(original, MODULE)
    assert np.linalg.norm(update - expected) <= 2e-3 * np.linalg.norm(expected)


# What a merge writes anew: a LoRA of the same update.
ANEW = {"lora", "lora without alpha", "convolution", "tucker", "lora with bias difference", "peft with bias"}


@for_each(case for case in FORMULAS if case.name not in ANEW)
def test_a_module_of_one_file_keeps_its_form(case: Formula, merge_tensors: MergeTensors) -> None:
    tensors = case.tensors(MODULE)
    merged = merge_tensors((tensors, 0.5))
    assert {name: (one.dtype, one.shape) for name, one in merged.items()} == {
        name: (one.dtype, one.shape) for name, one in tensors.items()
    }
    np.testing.assert_allclose(case.update(merged, MODULE), 0.5 * case.update(tensors, MODULE), rtol=1e-5)


# What becomes factors of a LoRA where it is added to another.
FACTORED = [case for case in FORMULAS if case.name.split()[-1] in ("lora", "loha", "alpha", "convolution", "tucker")]
FACTORED += [case for case in FORMULAS if "lokr" in case.name]


@for_each(FACTORED)
def test_the_sum_is_that_of_the_dense_updates(case: Formula, merge_tensors: MergeTensors) -> None:
    one = case.tensors(MODULE)
    two = {name: 3 * array if name.endswith("alpha") else np.flip(array) for name, array in one.items()}
    tensors = merge_tensors((one, 0.5), (two, -2))
    merged = {name.removeprefix(f"{MODULE}."): array.astype(np.float64) for name, array in tensors.items()}
    up, down = merged.pop("lora_up.weight"), merged.pop("lora_down.weight")
    scale = merged.pop("alpha").item() / len(down) if merged else 1.0
    total = scale * np.tensordot(up.reshape(len(up), -1), down, 1)
    expected = 0.5 * case.update(one, MODULE) - 2 * case.update(two, MODULE)
    np.testing.assert_allclose(total.ravel(), expected, rtol=1e-4, atol=1e-5)
    assert not merged


@pytest.mark.parametrize("name", ["adalora", "glora", "vera", "ia3 on the input", "sparse bias"])
def test_a_rank_that_nothing_can_have_leaves_the_module_and_says_so(name: str, tmp_path: Path, run: Run) -> None:
    case = BY_NAME[name]
    lora = kohya_lora(["unet_middle_block_1_proj_out"], dtype="float32")
    tensors = lora | case.tensors(MODULE)
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    error = run.done("bake", source, "-w", "*=0.5", "--rank", 1, "--family", "sd1", "-o", out)
    assert f"module not truncated (the first is {MODULE})" in error
    small = load_file(out)
    assert small["lora_unet_middle_block_1_proj_out.lora_down.weight"].shape == (1, 8)
    np.testing.assert_allclose(case.update(small, MODULE), 0.5 * case.update(tensors, MODULE), rtol=1e-5)


@pytest.mark.parametrize("name", ["adalora", "glora", "vera", "ia3 on the input", "sparse bias"])
def test_what_has_no_sum_is_refused(name: str, merge_tensors: MergeTensors) -> None:
    tensors = BY_NAME[name].tensors(MODULE)
    assert MODULE in merge_tensors.refused(tensors, tensors)


@pytest.mark.parametrize("role", ["diff", "w_norm"])
@pytest.mark.parametrize("name", ["lora", "loha", "lokr in full"])
def test_a_product_beside_a_difference_is_no_sum(name: str, role: str, tmp_path: Path, run: Run) -> None:
    """Loaders read the one or the other: each keeps its own weight, and neither takes part in another's."""
    case, whole = BY_NAME[name], f"{MODULE}.{role}"
    tensors = case.tensors(MODULE) | {whole: np.ones((6, 8), np.float32)}
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    lora = write(tmp_path / "lora.safetensors", BY_NAME["lora"].tensors(MODULE))
    error = run.refused("merge", lora, source, "--family", "sd1", "-o", out)
    assert f"{source}: {MODULE} is {case.name.split()[0]} with {role}, which does not add up" in error
    said = run.done("bake", source, "-w", "*=0.5", "--rank", 1, "--family", "sd1", "-o", out)
    assert "not truncated" in said
    baked = load_file(out)
    assert baked.keys() == tensors.keys()
    assert (baked[whole] == 0.5).all()
    np.testing.assert_allclose(case.update(baked, MODULE), 0.5 * case.update(tensors, MODULE), rtol=1e-5)


def test_modules_that_share_tensors_are_not_merged_with_others(merge_tensors: MergeTensors) -> None:
    lora, vera = kohya_lora(["unet_middle_block_1_proj_out"]), BY_NAME["vera"].tensors(MODULE)
    assert "share tensors" in merge_tensors.refused(lora, vera)


def test_dora_at_weight_one_or_zero_is_kept_or_switched_off(tmp_path: Path, run: Run) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in", "unet_output_blocks_3_1_proj_in"], dtype="float32")
    names = (MODULE, "lora_unet_output_blocks_3_1_proj_in")
    tensors |= {f"{name}.dora_scale": np.ones((8, 1), np.float32) for name in names}
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    for command in (("merge", f"{source}:1:MID=1 *=0"), ("bake", source, "-w", "MID=1 *=0", "--rank", 2)):
        run.done(*command, "--family", "sd1", "-f", "-o", out)
        kept = load_file(out)
        assert all((kept[key] == one).all() for key, one in tensors.items() if key.startswith(MODULE))
        assert not kept[f"{names[1]}.lora_up.weight"].any()
        assert f"{names[1]}.dora_scale" not in kept
    assert "give their base model" in run.refused("merge", f"{source}:0.5", "--family", "sd1", "-f", "-o", out)


def test_a_dora_whose_alpha_only_the_configuration_tells_is_not_kept(tmp_path: Path, run: Run) -> None:
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 4, "unet.lora_alpha": 2})}
    source = write(tmp_path / "a.safetensors", PEFTS_DORA, metadata)
    assert "does not add up" in run.refused("merge", source, "--family", "sd1", "-o", tmp_path / "b.safetensors")


def test_weight_zero_is_zero_in_the_factor_that_training_starts_at_zero(tmp_path: Path, run: Run) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in"], dtype="float32")
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    for command, rank in ((("merge", f"{source}:0"), 4), (("bake", source, "-w", "*=0", "--rank", 2), 2)):
        run.done(*command, "--family", "sd1", "-f", "-o", out)
        zero = load_file(out)
        assert not zero[f"{MODULE}.lora_up.weight"].any()
        assert zero[f"{MODULE}.lora_down.weight"].shape == (rank, 8)
        assert zero[f"{MODULE}.lora_down.weight"].all()


@pytest.mark.parametrize("alpha", [1e5, 10.1])
def test_alpha_is_stored_as_it_was_reckoned_with(alpha: float, merge_tensors: MergeTensors) -> None:
    """In half precision one of them would be infinite, the other off by a thousandth."""
    tensors = kohya_lora(["unet_middle_block_1_proj_in"]) | {f"{MODULE}.alpha": np.array(alpha, np.float32)}
    merged = merge_tensors(tensors)
    assert merged[f"{MODULE}.alpha"] == np.float32(alpha)
    for role in ("lora_up", "lora_down"):
        assert (merged[f"{MODULE}.{role}.weight"] == tensors[f"{MODULE}.{role}.weight"]).all()


def test_what_the_trainer_says_of_rank_and_alpha_stays_true(tmp_path: Path, run: Run) -> None:
    names = ["unet_middle_block_1_proj_in", "unet_output_blocks_3_1_proj_in"]
    said = {"ss_network_dim": "4", "ss_network_alpha": "4.0"}
    source = write(tmp_path / "a.safetensors", kohya_lora(names, dtype="float32"), said)
    other = write(tmp_path / "b.safetensors", kohya_lora(names[:1], dtype="float32"))
    alpha = f"{kohya_lora(names)[f'lora_{names[0]}.alpha']:g}"
    for command, rank in (
        (("bake", source, "-w", "*=0.5", "--rank", 2), "2"),
        (("merge", source, other), "Dynamic"),
        (("merge", other, source), None),
    ):
        run.done(*command, "--family", "sd1", "-f", "-o", tmp_path / "out.safetensors")
        metadata = metadata_of(tmp_path / "out.safetensors")
        wanted = (rank, alpha if rank else None)
        assert (metadata.get("ss_network_dim"), metadata.get("ss_network_alpha")) == wanted


def test_layers_that_are_nowhere_the_same_are_said_of_each_component(tmp_path: Path, run: Run) -> None:
    """The names of text encoders are the same in both."""
    te = "te_text_model_encoder_layers_0_mlp_fc1"
    files = [
        write(tmp_path / f"{i}.safetensors", kohya_lora([te, layer]))
        for i, layer in enumerate(("unet_middle_block_1_proj_in", "unet_middle_block_1_proj_out"))
    ]
    out = tmp_path / "out.safetensors"
    assert "share no layer of the unet" in run.done("merge", *files, "--family", "sd1", "-o", out)


@pytest.mark.parametrize(
    ("family", "one", "other"),
    [
        ("sdxl", "unet_middle_block_1_proj_in", "unet_mid_block_attentions_0_proj_in"),
        ("sdxl", "unet_input_blocks_4_0_in_layers_2", "unet_down_blocks_1_resnets_0_conv1"),
        ("flux", "unet_double_blocks_3_img_mlp_0", "transformer_transformer_blocks_3_ff_net_0_proj"),
    ],
)
def test_one_layer_may_have_several_names(family: str, one: str, other: str, merge_tensors: MergeTensors) -> None:
    tensors = [kohya_lora([one], dtype="float32"), kohya_lora([other], dtype="float32", seed=1)]
    merged = merge_tensors(*tensors, family=family)
    assert merged.keys() == tensors[0].keys()
    expected = update_of(tensors[0], f"lora_{one}") + update_of(tensors[1], f"lora_{other}")
    np.testing.assert_allclose(update_of(merged, f"lora_{one}"), expected, atol=1e-5)


@pytest.mark.parametrize(("role", "other"), [("lora_up", "lora_down"), ("lora_down", "lora_up")])
def test_a_factor_without_room_leaves_the_strength_to_the_other(
    role: str, other: str, merge_tensors: MergeTensors
) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in"])
    tensors[f"{MODULE}.{role}.weight"][0, 0] = 60000
    merged = merge_tensors((tensors, 10))
    assert merged[f"{MODULE}.{role}.weight"].tobytes() == tensors[f"{MODULE}.{role}.weight"].tobytes()
    np.testing.assert_allclose(update_of(merged, MODULE), 10 * update_of(tensors, MODULE), rtol=0.01)
    tensors[f"{MODULE}.{other}.weight"][0, 0] = 60000
    assert "overflows F16" in merge_tensors.refused((tensors, 10))


def test_numbers_that_are_not_finite_are_switched_off(tmp_path: Path, run: Run) -> None:
    tensors = kohya_lora(["unet_middle_block_1_proj_in", "unet_output_blocks_3_1_proj_in"], dtype="float32")
    tensors[f"{MODULE}.lora_up.weight"][0, 0] = np.nan
    tensors[f"{MODULE}.diff_b"] = np.full(8, np.inf, np.float32)
    source, out = write(tmp_path / "a.safetensors", tensors), tmp_path / "b.safetensors"
    for command in (("merge", f"{source}:1:MID=0 *=1"), ("bake", source, "-w", "MID=0 *=1", "--rank", 2)):
        run.done(*command, "--family", "sd1", "-f", "-o", out)
        assert not any(load_file(out)[f"{MODULE}.{role}"].any() for role in ("lora_up.weight", "diff_b"))


def test_layers_of_several_sizes_are_refused_by_their_files(tmp_path: Path, run: Run) -> None:
    small = write(tmp_path / "small.safetensors", kohya_lora(["unet_middle_block_1_proj_in"]))
    large = write(tmp_path / "large.safetensors", kohya_lora(["unet_middle_block_1_proj_in"], width=16))
    error = run.refused("merge", small, large, "--family", "sd1", "-o", tmp_path / "b.safetensors")
    assert f"8 x 8 in {small}, 16 x 16 in {large}" in error


@pytest.mark.parametrize("shape", [(1, 8), (8, 8, 3, 3), (16, 4), (4, 16)])
@pytest.mark.parametrize("other", ["a difference", "a product"])
def test_differences_of_several_sizes_are_refused(
    other: str, shape: tuple[int, ...], merge_tensors: MergeTensors
) -> None:
    lora = kohya_lora(["unet_middle_block_1_proj_in"])
    second = lora if other == "a product" else {f"{MODULE}.diff": np.ones((8, 8))}
    error = merge_tensors.refused({f"{MODULE}.diff": np.ones(shape, np.float32)}, second)
    assert f"{MODULE}: its tensors do not fit together" in error


@pytest.mark.parametrize("turned", [False, True])
def test_a_matrix_and_a_convolution_of_one_pixel_add_up(turned: bool, merge_tensors: MergeTensors) -> None:
    shapes = ((6, 8), (6, 8, 1, 1))[:: -1 if turned else 1]
    parts = [np.random.default_rng(i).standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)]
    merged = merge_tensors(*({f"{MODULE}.diff": part} for part in parts))[f"{MODULE}.diff"]
    assert merged.shape == shapes[0]
    np.testing.assert_allclose(merged.reshape(6, 8), sum(part.reshape(6, 8) for part in parts), rtol=1e-5)


def test_a_norm_has_one_name_for_each_of_its_differences(merge_tensors: MergeTensors) -> None:
    """LyCORIS writes w_norm and b_norm, others diff and diff_b: of both under one name loaders read the one."""
    norm = "lora_unet_middle_block_1_norm"
    files = [
        {f"{norm}.{role}": np.full(8, 10.0**i * n, np.float32) for n, role in enumerate(roles, 1)}
        for i, roles in enumerate((("w_norm", "b_norm"), ("diff", "diff_b"), ("w_norm", "b_norm")))
    ]
    for parts, roles, wanted in ((files, ("diff", "diff_b"), 111), (files[::2], ("w_norm", "b_norm"), 101)):
        sums = {name: array.tolist() for name, array in merge_tensors(*parts).items()}
        assert sums == {f"{norm}.{role}": [n * wanted] * 8 for n, role in enumerate(roles, 1)}


@pytest.mark.parametrize("shape", [(3, 8, 2), (8, 2, 3, 3)])
def test_an_up_that_is_no_matrix_is_refused(shape: tuple[int, ...], merge_tensors: MergeTensors) -> None:
    """Not written in another shape, as matrices of experts stacked on each other would be."""
    tensors = {f"{PEFT}.lora_A.weight": np.ones((*shape[:-2], 2, 8)), f"{PEFT}.lora_B.weight": np.ones(shape)}
    assert "up is no matrix" in merge_tensors.refused(tensors)


def test_a_rank_that_a_module_has_already_is_no_warning(tmp_path: Path, run: Run) -> None:
    glora = BY_NAME["glora"].tensors(MODULE)
    lora = kohya_lora(["unet_middle_block_1_proj_out"], dtype="float32")
    source = write(tmp_path / "a.safetensors", lora | glora)
    run.done(
        "bake", source, "-w", "*=0.5", "--rank", 4, "--strict", "--family", "sd1", "-o", tmp_path / "b.safetensors"
    )


def test_what_only_peft_names_is_not_given_names_of_kohyas(merge_tensors: MergeTensors) -> None:
    dora = peft_lora([PEFT]) | {f"{PEFT}.lora_magnitude_vector": np.ones(8, np.float32)}
    assert "no place for" in merge_tensors.refused(kohya_lora(["unet_middle_block_1_proj_in"]), dora)
    merge_tensors(kohya_lora([KOHYA]), (dora, 0))


def test_a_name_of_an_adapter_is_no_part_of_a_layers(merge_tensors: MergeTensors) -> None:
    one = peft_lora([PEFT]) | {f"{PEFT}.alpha": np.array(4, np.float32)}
    layer = "unet.mid_block.attentions.0.proj_in"
    other = {name.replace(".weight", ".foo.weight"): array for name, array in peft_lora([layer]).items()}
    roles = ("lora_A.weight", "lora_B.weight", "alpha")
    assert merge_tensors(one, other).keys() == one.keys() | {f"{layer}.{role}" for role in roles}


@pytest.mark.parametrize("command", [("merge",), ("bake", "-w", "*=1", "--rank", 4)])
def test_adapters_of_one_layer_add_up(command: tuple[str, ...], tmp_path: Path, run: Run) -> None:
    adapters = [peft_lora([PEFT], seed=seed) for seed in (0, 1)]
    tensors = {
        name.replace(".weight", f".{label}.weight"): array
        for label, adapter in zip(("foo", "bar"), adapters, strict=True)
        for name, array in adapter.items()
    }
    source = write(tmp_path / "a.safetensors", tensors)
    run.done(*command, source, "--family", "sd1", "-o", tmp_path / "b.safetensors")
    one, other, merged = (
        each[f"{PEFT}.lora_B.weight"] @ each[f"{PEFT}.lora_A.weight"]
        for each in (*adapters, load_file(tmp_path / "b.safetensors"))
    )
    np.testing.assert_allclose(merged, one + other, rtol=1e-5, atol=1e-5)


def test_a_truncation_is_made_anew_when_what_it_was_made_of_changes(tmp_path: Path, run: Run) -> None:
    source = write(tmp_path / "a.safetensors", peft_lora([PEFT]))
    config = tmp_path / "adapter_config.json"
    config.write_text('{"r": 2, "lora_alpha": 4}')
    command = ("bake", source, "-w", "*=0.5", "--rank", 1, "--family", "sd1", "--skip-existing")
    out = tmp_path / "elsewhere" / "b.safetensors"
    out.parent.mkdir()
    run.done(*command, "-o", out)
    assert "is kept, though" not in run.done(*command, "-o", out)
    after = out.stat().st_mtime_ns + 1
    os.utime(config, ns=(after, after))
    assert f"the existing {out} is kept, though" in run.done(*command, "-o", out)
    # Its alphas are in the numbers, which the configuration must not multiply again.
    run.done("bake", source, "-w", "*=0.5", "--rank", 2, "--family", "sd1", "-f", "-o", out)
    assert run.json("diff", source, out, "--family", "sd1", "--json")["blocks"]["MID"]["weight"] == pytest.approx(0.5)


def test_the_difference_of_an_embedding_has_its_layers_shape(tmp_path: Path, run: Run) -> None:
    """Whose rows are tokens, where the factors have them as columns."""
    rng = np.random.default_rng(0)
    name = "text_encoder.text_model.embeddings.token_embedding"
    a, b, w = (rng.standard_normal(shape) for shape in ((2, 10), (6, 2), (10, 6)))
    tensors = {"lora_embedding_A": a, "lora_embedding_B": b, "lora_magnitude_vector": np.ones(6)}
    source = write(tmp_path / "a.safetensors", {f"{name}.{role}": array for role, array in tensors.items()})
    key = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    base, out = write(tmp_path / "base.safetensors", {key: w}), tmp_path / "b.safetensors"
    run.done("merge", f"{source}:0.5", "--base", base, "--family", "sd1", "-o", out)
    turned = w.T + b @ a
    wanted = 0.5 * (turned / np.linalg.norm(turned, axis=1, keepdims=True) - w.T)
    np.testing.assert_allclose(load_file(out)[f"{name}.diff"].T, wanted, rtol=1e-6)


def test_layers_under_another_prefix_are_refused(tmp_path: Path, run: Run) -> None:
    """diffusers reads `unet.` and passes over `base_model.model.` in the same file."""
    pipeline = write(tmp_path / "a.safetensors", peft_lora(["unet.mid_block.attentions.0.proj_in"]))
    layers = ("mid_block.attentions.0.proj_in", "mid_block.attentions.0.proj_out")
    for name, count in (("b.safetensors", 1), ("c.safetensors", 2)):
        write(tmp_path / name, peft_lora([f"base_model.model.{layer}" for layer in layers[:count]]))
    out = tmp_path / "d.safetensors"
    run.done("merge", pipeline, tmp_path / "b.safetensors", "--family", "sd1", "-o", out)
    assert all(name.startswith("unet.") for name in load_file(out))
    error = run.refused("merge", pipeline, tmp_path / "c.safetensors", "--family", "sd1", "-o", tmp_path / "e")
    assert f"base_model.model.{layers[1]}" in error
    assert "'unet.'" in error


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_layers_of_another_models_names_are_refused(prefix: str, tmp_path: Path, run: Run) -> None:
    """The original Flux has q, k and v in one layer, diffusers in three: no loader takes both from one file."""
    original = write(tmp_path / "a.safetensors", peft_lora([f"{prefix}double_blocks.{i}.img_attn.proj" for i in "05"]))
    diffusers = peft_lora([f"{prefix}transformer_blocks.{i}.attn.to_out.0" for i in "05"])
    command = ("merge", original, "--family", "flux", "-o", tmp_path / "c.safetensors")
    run.done(*command, write(tmp_path / "b.safetensors", diffusers))
    more = diffusers | peft_lora([f"{prefix}transformer_blocks.0.attn.to_q"])
    error = run.refused(*command, write(tmp_path / "d.safetensors", more), "--force")
    assert f"{prefix}transformer_blocks.0.attn.to_q is in no other file" in error
    assert f"begin with '{prefix}double_blocks'" in error


@pytest.mark.parametrize("command", [("bake", "--rank", "1", "--weights", "*=1"), ("merge",)])
def test_sums_are_stored_as_their_layer_was(command: tuple[str, ...], tmp_path: Path, run: Run) -> None:
    halves = {name: array.astype(np.float16) for name, array in unet_lora().items()}
    layer = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    encoder = {name: array.astype(np.float32) for name, array in kohya_lora([layer]).items()}
    source = write(tmp_path / "a.safetensors", halves | encoder)
    name, *options = command
    run.done(name, source, *options, "--family", "sd1", "-o", tmp_path / "b.safetensors")
    stored = {tensor: array.dtype for tensor, array in load_file(tmp_path / "b.safetensors").items() if array.size > 1}
    assert stored == {name: array.dtype for name, array in (halves | encoder).items() if name in stored}


def test_a_dry_run_says_what_truncation_would_lose(loras: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    asked = ("bake", loras[0], "--rank", "1", "--dry-run")
    assert "truncated to rank 1: BASE lost" in run.done(*asked)
    assert "truncated to rank 1" in run.done(*asked, "-o", tmp_path / "b.safetensors")
    assert "lost" in run.refused(*asked, "--strict")
    assert not (tmp_path / "b.safetensors").exists()
