"""What PEFT says of an adapter beside its tensors: adapters that take something out of the base model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Run, Tensors, data_of, peft_lora, write

LAYERS = [f"down_blocks.0.attentions.{i}.transformer_blocks.0.attn2.to_k" for i in (0, 1)]


def peft(prefix: str) -> Tensors:
    return peft_lora([f"{prefix}{layer}" for layer in LAYERS], inputs=768)


@pytest.fixture(params=["in the metadata", "beside the file"])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An adapter that began as PiSSA."""
    if request.param == "in the metadata":
        said = {"lora_adapter_metadata": json.dumps({"unet.init_lora_weights": "pissa_niter_16", "unet.r": 2})}
        return write(tmp_path / "adapter_model.safetensors", peft("unet."), said)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"init_lora_weights": "OLoRA", "r": 2}))
    return write(tmp_path / "adapter_model.safetensors", peft("base_model.model."))


@pytest.mark.parametrize("weights", ["IN01=0.5 *=1", "IN02=0 *=1", "*=2"])
def test_what_is_taken_out_of_the_base_model_is_not_scaled(
    adapter: Path, weights: str, tmp_path: Path, run: Run
) -> None:
    target = tmp_path / "baked.safetensors"
    error = run.refused("bake", adapter, "-w", weights, "--family", "sd1", "-o", target)
    assert "init_lora_weights" in error
    assert "path_initial_model_for_weight_conversion" in error
    assert "init_lora_weights" in run.refused("merge", adapter, adapter, "--family", "sd1", "-o", target)
    assert not target.exists()


def test_weights_of_one_leave_it_what_it_is(adapter: Path, tmp_path: Path, run: Run) -> None:
    run.done("bake", adapter, "-w", "*=1", "--family", "sd1", "-o", tmp_path / "baked.safetensors")
    assert data_of(tmp_path / "baked.safetensors") == data_of(adapter)
    assert "init_lora_weights" in run.done("inspect", adapter, "--family", "sd1")


@pytest.mark.parametrize("said", [True, False, "gaussian", None, "eva", "orthogonal"])
def test_other_beginnings_leave_plain_adapters(said: object, tmp_path: Path, run: Run) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"init_lora_weights": said, "kasa_config": None}))
    source = write(tmp_path / "a.safetensors", peft("base_model.model."))
    run.done("bake", source, "-w", "*=0.5", "--family", "sd1", "-o", tmp_path / "b.safetensors")


@pytest.mark.parametrize("text", ["", "[]", "pissa", "{", "[" * 100_000, "\xff"])
def test_what_is_no_configuration_says_nothing(text: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "adapter_config.json").write_bytes(text.encode("latin-1"))
    for metadata in ({}, {"lora_adapter_metadata": text}):
        source = write(tmp_path / "a.safetensors", peft("base_model.model."), metadata)
        run.done("bake", source, "-w", "*=0.5", "--family", "sd1", "-o", tmp_path / "b.safetensors", "--force")


@pytest.mark.parametrize(("said", "warned"), [(False, True), (True, False), ("gaussian", False)])
def test_modules_that_peft_would_make_anew_at_random_are_said(
    said: object, warned: bool, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"init_lora_weights": said, "use_dora": True}))
    magnitudes = {f"base_model.model.{layer}.lora_magnitude_vector": np.ones(8, np.float32) for layer in LAYERS}
    source = write(tmp_path / "a.safetensors", peft("base_model.model.") | magnitudes)
    error = run.done("bake", source, "-w", "IN01=0 *=1", "--family", "sd1", "-o", tmp_path / "b.safetensors")
    assert "1 lora+dora module at weight 0 removed" in error
    assert ("random numbers" in error) == warned


def test_a_configuration_beside_a_file_with_alphas_is_anothers(lora: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"init_lora_weights": "pissa"}))
    run.done("bake", lora, "-w", "*=0.5", "-o", tmp_path / "b.safetensors")


def test_kasa_is_refused(tmp_path: Path, run: Run) -> None:
    values = {f"base_model.model.{layer}.lora_diag": np.ones(2, np.float32) for layer in LAYERS}
    source = write(tmp_path / "a.safetensors", peft("base_model.model.") | values)
    asked = ("bake", source, "-w", "*=0.5", "--family", "sd1", "-o", tmp_path / "b.safetensors")
    assert "2 kasa modules" in run.refused(*asked)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"kasa_config": {"beta": 1}}))
    assert "kasa_config" in run.refused(*asked)


def test_a_name_tells_stacks_of_matrices_without_a_configuration(tmp_path: Path, run: Run) -> None:
    """PEFT names one of two parameters of a layer after the wrapper of the other."""
    tensors = peft("base_model.model.")
    nested = {name.replace(".lora_", ".base_layer.lora_"): array for name, array in tensors.items()}
    source = write(tmp_path / "a.safetensors", tensors | nested)
    error = run.refused("merge", source, "--family", "sd1", "-o", tmp_path / "b.safetensors")
    assert "to_k.base_layer: factors of PEFT that are not those of one matrix" in error
