"""diffusers judges whole models: a baked file at a plain weight is the original with its own per-block scales."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BakeFile, Run
from safetensors.torch import save_file
from torch import nn

from .conftest import MULTIPLIERS, TOLERANCES, StateDict, assert_close

diffusers = pytest.importorskip("diffusers", reason="needs diffusers")
peft = pytest.importorskip("peft", reason="needs peft")
mixins = pytest.importorskip("diffusers.loaders.lora_pipeline", reason="needs diffusers")

# PEFT warns of a second adapter, which is how the original and the baked file are compared.
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")

# Weights that differ from block to block, zero and one among them.
SD1_WEIGHTS = (
    "IN01=0 IN02=1 IN04=0.3 IN05=-0.7 IN07=1.5 IN08=0.5 MID=0.8 OUT03=-0.2 OUT04=1.2 OUT05=0.9 "
    "OUT06=0.1 OUT07=0.7 OUT08=0.4 OUT09=1.1 OUT10=0.6 OUT11=0.2"
)
SDXL_WEIGHTS = "IN04=0 IN05=1 IN07=0.3 IN08=-0.7 MID=1.5 OUT00=0.5 OUT01=0.8 OUT02=-0.2 OUT03=1.2 OUT04=0.9 OUT05=0.1"
FLUX_WEIGHTS = "D00=0.3 D01=-0.7 S00=0 S01=1 S02=1.5"


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


def unet_inputs(net: Any) -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor(500.0),
        "encoder_hidden_states": torch.randn(1, 7, net.config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)},
    }


def flux_inputs(_: Any) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(1, 6, 4),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 5, 16),
        "pooled_projections": torch.randn(1, 16),
        "txt_ids": torch.zeros(5, 3),
        "img_ids": torch.randn(6, 3),
    }


def unet_scales(weights: dict[str, float]) -> dict[str, Any]:
    """Weights by block as diffusers writes them: by level, 2 attentions going down, 3 going up."""

    def levels(blocks: str, layers: int, shift: int) -> dict[str, list[float]]:
        names = {i: [f"{blocks}{3 * i + layer + shift:02}" for layer in range(layers)] for i in range(4)}
        return {f"block_{i}": [weights[name] for name in names[i]] for i in names if weights.keys() >= {*names[i]}}

    return {"down": levels("IN", 2, 1), "mid": weights["MID"], "up": levels("OUT", 3, 0)}


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
    """A narrow model, how diffusers and trainers speak of it, its number of adapted layers, its weights by block."""

    make: Callable[[], Any]
    inputs: Callable[[Any], dict[str, Any]]
    scales: Callable[[dict[str, float]], dict[str, Any]]
    kohya: Callable[[str], str]
    mixin: Any
    network: str
    size: int
    rules: str

    def __str__(self) -> str:
        return self.make.__name__

    def layers(self, net: nn.Module) -> dict[str, nn.Module]:
        """The layers a LoRA adapts, by name."""
        named = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        adapted = {name: named[name] for name in named if re.search(r"attentions\.|transformer_blocks\.", name)}
        assert len(adapted) == self.size
        return adapted

    def weights(self, multiplier: float) -> dict[str, float]:
        """The scale of every block where the LoRA as a whole is used with this one."""
        return {block: float(weight) * multiplier for block, weight in (rule.split("=") for rule in self.rules.split())}


_SD, _SDXL, _FLUX = (
    mixins.StableDiffusionLoraLoaderMixin,
    mixins.StableDiffusionXLLoraLoaderMixin,
    mixins.FluxLoraLoaderMixin,
)
MODELS = (
    Model(sd1, unet_inputs, unet_scales, kohya_sd1, _SD, "unet", 192, SD1_WEIGHTS),
    Model(sdxl, unet_inputs, unet_scales, kohya_sdxl, _SDXL, "unet", 722, SDXL_WEIGHTS),
    Model(flux, flux_inputs, flux_scales, kohya_flux, _FLUX, "transformer", 46, FLUX_WEIGHTS),
)


def write_kohya(model: Model, net: nn.Module, folder: Path) -> Path:
    """The file a trainer writes: its names, mixed ranks, one alpha (all that diffusers reads right on a UNet)."""
    shapes: dict[str, list[int]] = {}
    for name, layer in model.layers(net).items():
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


def add_adapter(model: Model, net: Any, of: Callable[[str], object] = bool) -> None:
    """A new adapter of PEFT's, of random values, with ranks and alphas that differ, for layers of such names."""
    patterns = {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 1.5, "net.2": 5}}
    targets = [name for name in model.layers(net) if of(name)]
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False, **patterns)
    net.add_adapter(config, "trained")


def write_pipeline(model: Model, net: Any, folder: Path, of: Callable[[str], object] = bool) -> Path:
    """The file a diffusers pipeline writes, of layers of such names."""
    add_adapter(model, net, of)
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


@pytest.mark.parametrize("options", [(), ("--rank", 4)], ids=["plain", "of a rank that all have"])
@pytest.mark.parametrize("write", [write_kohya, write_pipeline, write_adapter], ids=lambda write: write.__name__[6:])
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_baked_file_equals_per_block_scales(
    model: Model,
    write: Callable[[Model, Any, Path], Path],
    options: tuple[object, ...],
    bake_file: BakeFile,
    tmp_path: Path,
) -> None:
    net = model.make().eval()
    original = write(model, net, tmp_path)
    for name, path in {"original": original, "baked": bake_file(original, "--weights", model.rules, *options)}.items():
        load(model, net, path, name)
    # From here on in double precision, which keeps the network's own rounding out of the comparison.
    torch.set_default_dtype(torch.float64)
    inputs = model.inputs(net.double())

    def output(adapter: str, scale: Any) -> torch.Tensor:
        net.set_adapters(adapter, scale)
        return net(**inputs).sample

    base = output("original", 0.0)
    for multiplier in MULTIPLIERS:
        expected = output("original", model.scales(model.weights(multiplier))) - base
        assert expected.norm() > 0.01 * base.norm()
        assert_close(output("baked", multiplier) - base, expected, TOLERANCES[torch.float32])


@pytest.mark.parametrize("write", [write_pipeline, write_adapter], ids=lambda write: write.__name__[6:])
def test_norms_are_those_of_peft(write: Callable[[Model, Any, Path], Path], run: Run, tmp_path: Path) -> None:
    """Of the files that diffusers writes, whose alphas are in the metadata."""
    model = MODELS[0]
    net = model.make().eval()
    modules = run.json("inspect", write(model, net, tmp_path), "--family", "sd1", "--json")["modules"]
    assert len(modules) == model.size
    for module in modules:
        layer = net.get_submodule(module["name"].removeprefix(f"{model.network}."))
        assert module["norm"] == pytest.approx(float(layer.get_delta_weight("trained").norm()), rel=1e-4)


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_merge_is_both_adapters_at_once(model: Model, run: Run, tmp_path: Path) -> None:
    """One file has kohya's names, the other those of diffusers, and alphas in its metadata."""
    net = model.make().eval()
    kohya = write_kohya(model, net, tmp_path)
    pipeline = write_pipeline(model, net, tmp_path, model.kohya)
    net.delete_adapters("trained")
    merged = tmp_path / "merged.safetensors"
    run.done("merge", f"{kohya}:0.7", f"{pipeline}:-0.4", "-o", merged, "--family", str(model))
    for path in (kohya, pipeline, merged):
        load(model, net, path, path.stem)
    torch.set_default_dtype(torch.float64)
    inputs = model.inputs(net.double())

    def output(adapters: list[str], weights: list[float]) -> torch.Tensor:
        net.set_adapters(adapters, weights)
        return net(**inputs).sample

    base = output(["kohya"], [0.0])
    expected = output(["kohya", "pipeline"], [0.7, -0.4]) - base
    assert_close(output(["merged"], [1.0]) - base, expected, TOLERANCES[torch.float32])


@pytest.mark.parametrize("write", [write_pipeline, write_kohya], ids=lambda write: write.__name__[6:])
def test_a_merge_of_files_that_name_a_unet_differently_loads_whole(
    write: Callable[[Model, Any, Path], Path], run: Run, tmp_path: Path
) -> None:
    """SDXL: one has kohya's names of some layers, the original model's; the other those of diffusers, of all."""
    net = MODELS[1].make().eval()
    layers = list(MODELS[1].layers(net))
    some = replace(MODELS[1], kohya=lambda name: kohya_sdxl(name) if "attn1" in name else "")
    files = {"some": write_kohya(some, net, tmp_path).rename(tmp_path / "some.safetensors")}
    files["other"] = write(replace(MODELS[1], kohya=kohya_sd1), net, tmp_path)
    files["merged"] = tmp_path / "merged.safetensors"
    run.done("merge", files["some"], files["other"], "-o", files["merged"], "--family", "sdxl")
    net = MODELS[1].make().eval()
    for name, path in files.items():
        load(MODELS[1], net, path, name)
    for name in layers:
        layer = net.get_submodule(name)
        parts = [layer.get_delta_weight(part) for part in ("some", "other") if part in layer.lora_A]
        assert_close(layer.get_delta_weight("merged"), sum(parts), 1e-5)


@pytest.mark.parametrize("order", ["early later", "later early"])
@pytest.mark.parametrize("later", ["lora_A lora_B", "lora.down lora.up"])
def test_a_merge_with_a_file_of_the_first_diffusers_loads_whole(
    later: str, order: str, run: Run, tmp_path: Path
) -> None:
    """Which has layers of some attentions, in names of their own; the other one lacks some of these."""
    net = MODELS[0].make().eval()
    layers = MODELS[0].layers(net)
    tensors: dict[str, StateDict] = {"early": {}, "later": {}}
    for name, layer in layers.items():
        stems = {} if "attn1" in name else {"later": f"unet.{name}."}
        if match := re.fullmatch(r"(up_blocks.+attn\d)\.(to_[a-z]+)(?:\.0)?", name):
            stems["early"] = f"unet.{match[1]}.processor.{match[2]}_"
        outputs, inputs, *kernel = layer.weight.shape
        for file, stem in stems.items():
            down, up = (later if file == "later" else "lora.down lora.up").split()
            tensors[file][f"{stem}{down}.weight"] = torch.randn(2, inputs, *kernel)
            tensors[file][f"{stem}{up}.weight"] = torch.randn(outputs, 2, *(1 for _ in kernel))
    for file, own in tensors.items():
        save_file(own, tmp_path / f"{file}.safetensors")
    files = [tmp_path / f"{file}.safetensors" for file in (*order.split(), "merged")]
    run.done("merge", *files[:2], "-o", files[2], "--family", "sd1")
    for path in files:
        load(MODELS[0], net, path, path.stem)
    for name in layers:
        layer = net.get_submodule(name)
        if parts := [layer.get_delta_weight(part) for part in tensors if part in getattr(layer, "lora_A", ())]:
            assert_close(layer.get_delta_weight("merged"), sum(parts), 1e-5)


@pytest.mark.parametrize(("stem", "prefix"), [("kohya", ""), ("pipeline", "unet."), ("adapter", "")])
def test_what_a_rank_makes_of_loha_is_a_lora_that_loads(
    stem: str, prefix: str, bake_file: BakeFile, tmp_path: Path
) -> None:
    """Under every spelling, on linear layers and on the convolutions that begin and end SD1's attentions."""
    model = MODELS[0]
    net = model.make().eval()
    tensors: StateDict = {}
    expected: dict[str, torch.Tensor] = {}
    for name, layer in model.layers(net).items():
        outputs, inputs = layer.weight.shape[:2]
        key = model.kohya(name) if stem == "kohya" else f"{prefix}{name}"
        halves = [(torch.randn(outputs, 2), torch.randn(2, inputs)) for _ in "12"]
        tensors |= {f"{key}.hada_w{n}_a": left for n, (left, _) in enumerate(halves, 1)}
        tensors |= {f"{key}.hada_w{n}_b": right for n, (_, right) in enumerate(halves, 1)}
        expected[name] = 0.5 * (halves[0][0] @ halves[0][1]) * (halves[1][0] @ halves[1][1])
    source = tmp_path / f"{stem}.safetensors"
    save_file(tensors, source)
    baked = bake_file(source, "--weights", "*=0.5", "--rank", 4, "--family", "sd1")
    load(model, net, baked, "trained")
    for name, update in expected.items():
        delta = net.get_submodule(name).get_delta_weight("trained")
        assert_close(delta.reshape(update.shape), update, 1e-4)
