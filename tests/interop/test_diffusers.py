"""diffusers judges whole models: a baked file at a plain weight is the original with its own per-block scales."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from .conftest import MULTIPLIERS, TOLERANCES, BakeFile, StateDict, assert_close

diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
peft = pytest.importorskip("peft", reason="needs peft")
mixins = pytest.importorskip("diffusers.loaders.lora_pipeline", reason="needs diffusers")

# PEFT warns of a second adapter, which is how the original and the baked file are compared.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")

# Weights that differ from block to block, zero and one among them.
SD1_WEIGHTS = {
    **{"IN01": 0.0, "IN02": 1.0, "IN04": 0.3, "IN05": -0.7, "IN07": 1.5, "IN08": 0.5, "MID": 0.8, "OUT03": -0.2},
    **{"OUT04": 1.2, "OUT05": 0.9, "OUT06": 0.1, "OUT07": 0.7, "OUT08": 0.4, "OUT09": 1.1, "OUT10": 0.6, "OUT11": 0.2},
}
SDXL_WEIGHTS = {
    **{"IN04": 0.0, "IN05": 1.0, "IN07": 0.3, "IN08": -0.7, "MID": 1.5},
    **{"OUT00": 0.5, "OUT01": 0.8, "OUT02": -0.2, "OUT03": 1.2, "OUT04": 0.9, "OUT05": 0.1},
}
FLUX_WEIGHTS = {"D00": 0.3, "D01": -0.7, "S00": 0.0, "S01": 1.0, "S02": 1.5}


def sd1() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 64, 64), norm_num_groups=8, cross_attention_dim=768
    )


def sdxl() -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        use_linear_projection=True,
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=80,
    )


def flux() -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(2, 2, 4),
    )


def unet_inputs(channels: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(1, 7, channels),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)},
    }


def flux_inputs() -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 6, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": torch.randn(6, 3),
    }


def unet_scales(weights: dict[str, float], levels: int) -> dict[str, Any]:
    """Weights by block as diffusers writes them: 2 attentions per level going down, 3 going up."""

    def level(letter: str, number: int, layers: int) -> list[float]:
        shift = letter == "IN"
        return [weights[f"{letter}{3 * number + layer + shift:02}"] for layer in range(layers)]

    down = {f"block_{i}": level("IN", i, 2) for i in range(levels) if f"IN{3 * i + 1:02}" in weights}
    up = {f"block_{i}": level("OUT", i, 3) for i in range(levels) if f"OUT{3 * i:02}" in weights}
    return {"down": down, "mid": weights["MID"], "up": up}


def flux_scales(weights: dict[str, float]) -> dict[str, float]:
    names = {"S": "single_transformer_blocks", "D": "transformer_blocks"}
    # diffusers takes the first name that is part of the layer's: the longer ones come first.
    return {f"{names[block[0]]}.{int(block[1:])}.": weights[block] for block in sorted(weights, reverse=True)}


def kohya_sd1(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def kohya_sdxl(name: str) -> str:
    """SDXL trainers keep the names of the original model, whose blocks are numbered through."""
    if name.startswith("mid"):
        path = re.sub(r"mid_block\.attentions\.0", "middle_block.1", name)
    else:
        down, level, layer, rest = re.fullmatch(r"(?:(down)|up)_blocks\.(\d)\.attentions\.(\d)\.(.*)", name).groups()
        number = 3 * int(level) + int(layer) + bool(down)
        path = f"{'input' if down else 'output'}_blocks.{number}.1.{rest}"
    return kohya_sd1(path)


# Flux's names in diffusers -> in the original model, where q, k and v are one layer. diffusers can split the other
# fused layer, `linear1`, only at its full size, so the narrow model goes without.
_FLUX_NAMES = {
    r"norm1\.linear": "img_mod_lin",
    r"norm1_context\.linear": "txt_mod_lin",
    r"attn\.to_[qkv]": "img_attn_qkv",
    r"attn\.add_[qkv]_proj": "txt_attn_qkv",
    r"attn\.to_out\.0": "img_attn_proj",
    r"attn\.to_add_out": "txt_attn_proj",
    r"ff\.net\.(\d).*": r"img_mlp_\1",
    r"ff_context\.net\.(\d).*": r"txt_mlp_\1",
}
_FLUX_SINGLE_NAMES = {r"norm\.linear": "modulation_lin", r"proj_out": "linear2"}


def kohya_flux(name: str) -> str:
    single, number, rest = re.fullmatch(r"(single_)?transformer_blocks\.(\d)\.(.*)", name).groups()
    for pattern, new in (_FLUX_SINGLE_NAMES if single else _FLUX_NAMES).items():
        if match := re.fullmatch(pattern, rest):
            return f"lora_unet_{single or 'double_'}blocks_{number}_{match.expand(new)}"
    return ""


@dataclass(frozen=True)
class Model:
    """A narrow model, the weights of its blocks, and how diffusers and trainers speak of them."""

    make: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]
    weights: dict[str, float]
    scales: Callable[[dict[str, float]], dict[str, Any]]
    kohya: Callable[[str], str]
    mixin: Any
    network: str
    layers: str
    size: int

    def __str__(self) -> str:
        return self.make.__name__

    def adapted(self, net: nn.Module) -> dict[str, nn.Module]:
        """The layers a LoRA adapts, by name."""
        found = {
            name: layer
            for name, layer in net.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and re.search(self.layers, name)
        }
        assert len(found) == self.size
        return found


MODELS = (
    Model(
        sd1,
        lambda: unet_inputs(768),
        SD1_WEIGHTS,
        lambda weights: unet_scales(weights, 4),
        kohya_sd1,
        mixins.StableDiffusionLoraLoaderMixin,
        "unet",
        "attentions",
        192,
    ),
    Model(
        sdxl,
        lambda: unet_inputs(2048),
        SDXL_WEIGHTS,
        lambda weights: unet_scales(weights, 3),
        kohya_sdxl,
        mixins.StableDiffusionXLLoraLoaderMixin,
        "unet",
        "attentions",
        722,
    ),
    Model(
        flux,
        flux_inputs,
        FLUX_WEIGHTS,
        flux_scales,
        kohya_flux,
        mixins.FluxLoraLoaderMixin,
        "transformer",
        r"transformer_blocks\.",
        46,
    ),
)


def write_kohya(model: Model, net: nn.Module, folder: Path) -> Path:
    """The file a trainer writes: its names, mixed ranks, one alpha (all that diffusers reads right on a UNet)."""
    shapes: dict[str, list[int]] = {}
    for name, layer in model.adapted(net).items():
        if key := model.kohya(name):
            fused = shapes.setdefault(key, [0, *layer.weight.shape[1:]])
            fused[0] += layer.weight.shape[0]
    tensors: StateDict = {}
    for i, (key, (outputs, inputs, *kernel)) in enumerate(shapes.items()):
        rank = 2 + 2 * (i % 2)
        tensors[f"{key}.lora_down.weight"] = torch.randn(rank, inputs, *kernel) / inputs**0.5
        tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, rank, *kernel) / rank**0.5
        tensors[f"{key}.alpha"] = torch.tensor(3.0)
    save_file(tensors, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def add_adapter(model: Model, net: Any) -> None:
    """A new adapter of PEFT's, of random values, with ranks and alphas that differ from layer to layer."""
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 1.5, "net.2": 5}}
    targets = list(model.adapted(net))
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, **patterns)
    net.add_adapter(config, "trained")


def write_pipeline(model: Model, net: Any, folder: Path) -> Path:
    """The file a diffusers pipeline writes."""
    add_adapter(model, net)
    layers = {f"{model.network}_lora_layers": peft.get_peft_model_state_dict(net, adapter_name="trained")}
    metadata = {f"{model.network}_lora_adapter_metadata": net.peft_config["trained"].to_dict()}
    model.mixin.save_lora_weights(folder, **layers, **metadata, weight_name="pipeline.safetensors")
    return folder / "pipeline.safetensors"


def write_adapter(model: Model, net: Any, folder: Path) -> Path:
    """The file a diffusers model writes."""
    add_adapter(model, net)
    net.save_lora_adapter(folder, "trained", weight_name="adapter.safetensors")
    return folder / "adapter.safetensors"


def load(model: Model, net: Any, path: Path, name: str) -> None:
    """Load a file as an adapter of that name, the way diffusers does for its writer."""
    if path.stem == "adapter":
        net.load_lora_adapter(path.parent, prefix=None, weight_name=path.name, adapter_name=name)
        return
    options = {"unet_config": net.config} if model.network == "unet" else {"return_alphas": True}
    tensors, alphas, metadata = model.mixin.lora_state_dict(
        path.parent, weight_name=path.name, return_lora_metadata=True, **options
    )
    into = getattr(model.mixin, f"load_lora_into_{model.network}")
    into(tensors, alphas, **{model.network: net}, adapter_name=name, metadata=metadata)


def scaled(weights: dict[str, float], multiplier: float) -> dict[str, float]:
    return {block: weight * multiplier for block, weight in weights.items()}


@pytest.mark.parametrize("write", [write_kohya, write_pipeline, write_adapter], ids=lambda write: write.__name__[6:])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_baked_file_equals_per_block_scales(
    model: Model, write: Callable[[Model, Any, Path], Path], bake_file: BakeFile, tmp_path: Path
) -> None:
    net = model.make().eval()
    original = write(model, net, tmp_path)
    rules = " ".join(f"{block}={weight}" for block, weight in model.weights.items())
    for name, path in {"original": original, "baked": bake_file(original, "--weights", rules)}.items():
        load(model, net, path, name)
    inputs = model.inputs()

    def output(adapter: str, scale: Any) -> torch.Tensor:
        net.set_adapters(adapter, scale)
        return net(**inputs).sample

    base = output("original", 0.0)
    for multiplier in MULTIPLIERS:
        expected = output("original", model.scales(scaled(model.weights, multiplier))) - base
        assert expected.norm() > 0.01 * base.norm()
        assert_close(output("baked", multiplier) - base, expected, TOLERANCES[torch.float32])
