"""diffusers judges the transformers: each layer of a baked file is the original's, times the weight of its block.

A row is a model, made narrow, with the names of the real one. Which block a layer is in is read off the name that
diffusers gives it, whatever the file called it.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import BakeFile, Run
from safetensors.torch import load_file, save_file
from torch import nn

from .conftest import TOLERANCES, StateDict, assert_close

pytest.importorskip("diffusers", reason="needs diffusers")
peft = pytest.importorskip("peft", reason="needs peft")
transformers = pytest.importorskip("transformers", reason="needs transformers")
mixins = pytest.importorskip("diffusers.loaders.lora_pipeline", reason="needs diffusers")
conversions = pytest.importorskip("diffusers.loaders.lora_conversion_utils", reason="needs diffusers")

# PEFT warns of a second adapter, which is how the original and the baked file are compared; diffusers of what its own
# Chroma imports.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
    pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated"),
]

# One for each block, in the order of their names.
WEIGHTS = (0.3, -0.7, 0.0, 1.0, 1.5, 0.5, 0.8, -0.2, 1.2, 0.9, 0.1, 0.7, 0.4, 1.1, 0.6)

# What makes a model narrow: numbers for the arguments of its class.
_NARROW = {
    1: "num_key_value_heads num_refiner_layers approximator_layers "
    "video_connector_num_attention_heads audio_connector_num_attention_heads",
    2: "num_layers num_mmdit_layers num_attention_heads audio_num_attention_heads n_heads n_kv_heads "
    "text_num_attention_heads text_num_key_value_heads face_encoder_num_heads text_proj_in_factor",
    3: "num_single_layers num_single_dit_layers n_layers num_text_layers",
    4: "in_channels out_channels cond_in_channels audio_in_channels audio_out_channels vace_in_channels "
    "latent_channels sample_size pos_embed_max_size adaln_lora_dim motion_style_dim motion_encoder_dim motion_dim",
    8: "text_dim freq_dim ffn_dim text_embed_dim text_embed_2_dim image_embed_dim joint_attention_dim text_hidden_dim "
    "pooled_projection_dim text_emb_dim context_in_dim intermediate_size text_intermediate_size adaln_dim model_dim "
    "llm_features_dim timestep_embed_dim timestep_channels caption_channels timestep_guidance_channels source_dim "
    "approximator_num_channels approximator_hidden_dim target_dim target_vocab_size image_proj_dim "
    "audio_attention_head_dim audio_connector_attention_head_dim",
    16: "attention_head_dim cap_feat_dim face_encoder_hidden_dim motion_encoder_size audio_cross_attention_dim",
    32: "dim cross_attention_dim caption_projection_dim",
}
NARROW: dict[str, Any] = {name: size for size, names in _NARROW.items() for name in names.split()} | {
    "axes_dims": (4, 6, 6),
    "axes_dims_rope": (4, 6, 6),
    "max_size": (2, 4, 4),
    "motion_encoder_channel_sizes": {"4": 4, "8": 4, "16": 4},
}

# Layers in diffusers -> in files of trainers, where q, k and v may be one. What a table lacks is in no file: diffusers
# does not convert it, or only at its full size.
Names = Mapping[str, str]


def below(old: str, new: str, layers: Names) -> Names:
    """The names of layers in a numbered stack that has another name too."""
    return {rf"{old}\.(\d+)\.{layer}": rf"{new}.\1.{name}" for layer, name in layers.items()}


SAME = {r"(.*)": r"\1"}
STACKS = {r"((?:transformer_blocks|layers|noise_refiner|context_refiner)\.\d.*)": r"\1"}
WAN = below(
    "blocks",
    "blocks",
    {
        r"attn1\.to_([qkv])": r"self_attn.\2",
        r"attn1\.to_out\.0": "self_attn.o",
        r"attn2\.to_([qkv])": r"cross_attn.\2",
        r"attn2\.to_out\.0": "cross_attn.o",
        r"attn2\.add_([kv])_proj": r"cross_attn.\2_img",
        r"ffn\.net\.0\.proj": "ffn.0",
        r"ffn\.net\.2": "ffn.2",
    },
)
_BLOCK = r"((?:layers|noise_refiner|context_refiner)\.\d+)"
Z_IMAGE = {
    rf"{_BLOCK}\.attention\.to_[qkv]": r"\1.attention.qkv",
    rf"{_BLOCK}\.attention\.to_out\.0": r"\1.attention.out",
    **STACKS,
}
IDEOGRAM4 = {r"(.*\.attention)\.to_[qkv]": r"\1.qkv", r"(.*\.attention)\.to_out\.0": r"\1.o", **STACKS}
LUMINA2 = {
    r"(.*)\.attn\.to_[qkv]": r"\1.attention.qkv",
    r"(.*)\.attn\.to_out\.0": r"\1.attention.out",
    r"(.*)\.feed_forward\.linear_(\d)": r"\1.feed_forward.w\2",
    r"(.*)\.norm1\.linear": r"\1.adaLN_modulation.1",
}
HUNYUAN = {
    **below(
        "transformer_blocks",
        "double_blocks",
        {
            r"norm1\.linear": "img_mod.linear",
            r"norm1_context\.linear": "txt_mod.linear",
            r"attn\.to_[qkv]": "img_attn_qkv",
            r"attn\.to_out\.0": "img_attn_proj",
            r"attn\.add_[qkv]_proj": "txt_attn_qkv",
            r"attn\.to_add_out": "txt_attn_proj",
            r"ff\.net\.0\.proj": "img_mlp.fc1",
            r"ff_context\.net\.2": "txt_mlp.fc2",
        },
    ),
    **below(
        "single_transformer_blocks", "single_blocks", {r"norm\.linear": "modulation.linear", "proj_out": "linear2"}
    ),
    r"x_embedder\.proj": "img_in.proj",
    "proj_out": "final_layer.linear",
}
FLUX2 = {
    **below(
        "transformer_blocks",
        "double_blocks",
        {
            r"attn\.to_[qkv]": "img_attn.qkv",
            r"attn\.to_out\.0": "img_attn.proj",
            r"attn\.add_[qkv]_proj": "txt_attn.qkv",
            r"attn\.to_add_out": "txt_attn.proj",
            r"ff\.linear_in": "img_mlp.0",
            r"ff_context\.linear_out": "txt_mlp.2",
        },
    ),
    **below(
        "single_transformer_blocks",
        "single_blocks",
        {r"attn\.to_qkv_mlp_proj": "linear1", r"attn\.to_out": "linear2"},
    ),
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
}
_FLUX3_LAYERS = {
    r"attn\.to_([qkv])": r"\2_proj",
    r"attn\.to_out\.0": "attn_out",
    r"ff\.linear_(in|out)": r"mlp_\2",
}
FLUX3 = {
    **below("single_transformer_blocks", "single_blocks", _FLUX3_LAYERS),
    **below("txt_mode_blocks", "txt_mode_blocks", _FLUX3_LAYERS),
    **below(r"mode_blocks\.image", "content_mode_blocks.image", _FLUX3_LAYERS),
}
LTX2 = {
    r"((?:audio_)?)proj_in": r"\1patchify_proj",
    r"((?:audio_)?)time_embed\.(.+)": r"\1adaln_single.\2",
    r"((?:audio_)?)prompt_adaln\.(.+)": r"\1prompt_adaln_single.\2",
    r"av_cross_attn_(video|audio)_scale_shift\.(.+)": r"av_ca_\1_scale_shift_adaln_single.\2",
    r"av_cross_attn_(?:video|audio)_(a2v|v2a)_gate\.(.+)": r"av_ca_\1_gate_adaln_single.\2",
    **SAME,
}
LTX2_TEXT = {"text_proj_in": "aggregate_embed"}
ANIMA = {
    **below(
        "transformer_blocks",
        "blocks",
        {
            r"attn1\.to_([qkv])": r"self_attn.\2_proj",
            r"attn2\.to_([qkv])": r"cross_attn.\2_proj",
            r"attn2\.to_out\.0": "cross_attn.output_proj",
            r"ff\.net\.0\.proj": "mlp.layer1",
            r"norm3\.linear_(\d)": r"adaln_modulation_mlp.\2",
        },
    ),
    r"patch_embed\.proj": "x_embedder.proj.1",
    "proj_out": "final_layer.linear",
}
_KREA2_LAYERS = {
    r"attn\.to_([qkv])": r"attn.w\2",
    r"attn\.to_out\.0": "attn.wo",
    r"attn\.to_gate": "attn.gate",
    r"ff\.(\w+)": r"mlp.\2",
}
KREA2 = {
    **below("transformer_blocks", "blocks", _KREA2_LAYERS),
    **below(r"text_fusion\.refiner_blocks", "txtfusion.refiner_blocks", _KREA2_LAYERS),
    "img_in": "first",
    r"final_layer\.linear": "last.linear",
}


@dataclass(frozen=True)
class Spelling:
    """How trainers name the layers of a family's models: what converts it, the prefix, and the names."""

    family: str
    conversion: str
    prefix: str
    names: Names
    component: str = "transformer"

    def __str__(self) -> str:
        return f"{self.conversion}-{self.prefix}"


_MODEL, _FLAT = "diffusion_model.", "lora_unet_"
SPELLINGS = (
    Spelling("wan_14b", "non_diffusers_wan", _MODEL, WAN),
    Spelling("wan_14b", "musubi_wan", _FLAT, WAN),
    Spelling("qwen_image", "non_diffusers_qwen", _MODEL, SAME),
    Spelling("qwen_image", "non_diffusers_qwen", _FLAT, STACKS),
    Spelling("qwen_image_2_1", "non_diffusers_qwen", _MODEL, SAME),
    Spelling("hunyuan_video", "hunyuan_video", _MODEL, HUNYUAN),
    Spelling("hunyuan_image", "hunyuan_video", _MODEL, HUNYUAN),
    Spelling("ltx_2b", "non_diffusers_ltxv", _MODEL, SAME),
    Spelling("ltx_2", "non_diffusers_ltx2", _MODEL, LTX2),
    Spelling("ltx_2", "non_diffusers_ltx2", "text_embedding_projection.", LTX2_TEXT, "connectors"),
    Spelling("lumina2", "non_diffusers_lumina2", _MODEL, LUMINA2),
    Spelling("z_image", "non_diffusers_z_image", _MODEL, SAME),
    Spelling("z_image", "non_diffusers_z_image", _FLAT, STACKS),
    Spelling("z_image", "non_diffusers_z_image", _FLAT, Z_IMAGE),
    Spelling("flux2_klein_4b", "non_diffusers_flux2", _MODEL, FLUX2),
    Spelling("flux2_klein_4b", "kohya_flux2", _FLAT, FLUX2),
    Spelling("flux3", "non_diffusers_flux3", _MODEL, FLUX3),
    Spelling("hidream", "non_diffusers_hidream", _MODEL, SAME),
    Spelling("anima", "non_diffusers_anima", _MODEL, ANIMA),
    Spelling("anima", "non_diffusers_anima", f"{_MODEL}llm_adapter.", SAME, "text_conditioner"),
    Spelling("krea2", "non_diffusers_krea2", _MODEL, KREA2),
    Spelling("krea2", "non_diffusers_krea2", "base_model.model.", KREA2),
    Spelling("ideogram4", "non_diffusers_ideogram4", _MODEL, IDEOGRAM4),
)


@dataclass(frozen=True)
class Model:
    """A model: its family, its class in diffusers, what loads its LoRAs, and the blocks of its stacks, in order.

    `more` is what its class has to be told besides `NARROW`; `component` what files of a whole pipeline call the model.
    """

    family: str
    network: str
    mixin: str
    stacks: Mapping[str, Sequence[str]]
    more: Mapping[str, Any] = field(default_factory=dict)
    component: str = "transformer"

    def __str__(self) -> str:
        return f"{self.family}-{self.network.rpartition('.')[2]}"

    @property
    def loader(self) -> Any:
        """What reads and writes files of a whole pipeline."""
        return getattr(mixins, f"{self.mixin}LoraLoaderMixin", None)

    def make(self) -> Any:
        """The model, narrow, with random numbers."""
        module, _, name = self.network.rpartition(".")
        make = getattr(importlib.import_module(f"diffusers{module}"), name, None)
        if make is None or self.loader is None:
            pytest.skip(f"this diffusers loads no LoRAs of {name}")
        arguments = inspect.signature(make).parameters
        return make(**{name: NARROW[name] for name in arguments if name in NARROW} | self.more).eval()

    def block_of(self, layer: str) -> str:
        """The block of a layer, by its name in diffusers."""
        for name, blocks in self.stacks.items():
            if match := re.match(rf"{name}\.(\d+)\.", layer):
                return blocks[int(match[1])]
        last = re.match(r"(?:audio_)?proj_out|norm_out|(?:all_)?final_layer", layer)
        return "OUT" if last and self.component == "transformer" else "IN"


def stack(letter: str) -> tuple[str, ...]:
    """The blocks of a stack, more than a narrow model has."""
    return tuple(f"{letter}{i:02}" for i in range(12))


B, D, L, S = map(stack, "BDLS")
ONE = {"transformer_blocks": B}
TWO = {"transformer_blocks": D, "single_transformer_blocks": S}
REFINED = {"layers": L, "noise_refiner": stack("NR"), "context_refiner": stack("CR")}
PARALLEL = {r"(?:mode_blocks\.\w+|txt_mode_blocks)": D, "single_transformer_blocks": S}
STREAMS = {"double_stream_blocks": D, "single_stream_blocks": S}

_JOINT = {"transformer_blocks": stack("J")}
_WAN, _VACE, _FACE = {"blocks": B}, {"blocks": B, "vace_blocks": B[::5]}, {"blocks": B, "face_adapter": B[::5]}
_IMAGE = {"image_dim": 8, "added_kv_proj_dim": 32}
_FRAMEPACK = {"has_image_proj": True, "has_clean_x_embedder": True}
_GATES = dict.fromkeys(("gated_attn", "audio_gated_attn", "cross_attn_mod", "audio_cross_attn_mod"), True)
_HIDREAM = {"patch_size": 2, "caption_channels": (8, 8), "llama_layers": tuple(range(5))}
_COSMOS_2_5 = {"use_crossattn_projection": True, "crossattn_proj_in_channels": 8, "img_context_dim_in": 8}
MODELS = (
    Model("sd3", "SD3Transformer2DModel", "SD3", _JOINT, {"dual_attention_layers": (0,)}),
    Model("sd3_large", "SD3Transformer2DModel", "SD3", _JOINT),
    Model("wan_14b", "WanTransformer3DModel", "Wan", _WAN, {"num_layers": 11}),
    Model("wan_14b", "WanTransformer3DModel", "Wan", _WAN, _IMAGE),
    Model("wan_14b", "WanVACETransformer3DModel", "Wan", _VACE, {"num_layers": 11, "vace_layers": [0, 5, 10]}),
    Model(
        "wan_1_3b",
        "WanVACETransformer3DModel",
        "Wan",
        _WAN | {"vace_blocks": B[::2]},
        {"num_layers": 5, "vace_layers": [0, 2, 4]},
    ),
    Model("wan_14b", "WanAnimateTransformer3DModel", "Wan", _FACE, {"num_layers": 11, "in_channels": 12, **_IMAGE}),
    Model("wan_14b", "SkyReelsV2Transformer3DModel", "SkyReelsV2", _WAN, {"inject_sample_info": True}),
    Model("qwen_image", "QwenImageTransformer2DModel", "QwenImage", ONE),
    Model("qwen_image_2_1", "QwenImage21Transformer2DModel", "QwenImage", ONE),
    Model("hunyuan_video", "HunyuanVideoTransformer3DModel", "HunyuanVideo", TWO),
    Model("hunyuan_video", "HunyuanVideoFramepackTransformer3DModel", "HunyuanVideo", TWO, _FRAMEPACK),
    Model("hunyuan_video_1_5", "HunyuanVideo15Transformer3DModel", "HunyuanVideo", TWO),
    Model("hunyuan_image", "HunyuanImageTransformer2DModel", "HunyuanVideo", TWO),
    Model("ltx_2b", "LTXVideoTransformer3DModel", "LTXVideo", ONE),
    Model("ltx_2", "LTX2VideoTransformer3DModel", "LTX2", ONE),
    Model("ltx_2", "LTX2VideoTransformer3DModel", "LTX2", ONE, {**_GATES, "use_prompt_embeddings": False}),
    Model("ltx_2", ".pipelines.ltx2.LTX2TextConnectors", "LTX2", {}, component="connectors"),
    # Of full width, on which the conversion insists.
    Model(
        "lumina2",
        "Lumina2Transformer2DModel",
        "Lumina2",
        REFINED,
        {"num_attention_heads": 24, "ffn_dim_multiplier": 0.01},
    ),
    Model("z_image", "ZImageTransformer2DModel", "ZImage", REFINED),
    Model("z_image", "ZImageTransformer2DModel", "ZImage", REFINED, {"siglip_feat_dim": 8}),
    Model("flux2_klein_4b", "Flux2Transformer2DModel", "Flux2", TWO),
    Model("flux3", "Flux3Transformer2DModel", "Flux3", PARALLEL),
    Model("chroma", "ChromaTransformer2DModel", "Flux", TWO),
    Model("hidream", "HiDreamImageTransformer2DModel", "HiDreamImage", STREAMS, _HIDREAM),
    Model(
        "auraflow",
        "AuraFlowTransformer2DModel",
        "AuraFlow",
        {"joint_transformer_blocks": D, "single_transformer_blocks": S},
    ),
    Model("cosmos", "CosmosTransformer3DModel", "Cosmos", ONE),
    Model("cosmos", "CosmosTransformer3DModel", "Cosmos", ONE, _COSMOS_2_5),
    Model("anima", "CosmosTransformer3DModel", "Anima", ONE),
    Model("anima", "AnimaTextConditioner", "Anima", {"blocks": stack("A")}, component="text_conditioner"),
    Model("krea2", "Krea2Transformer2DModel", "Krea2", ONE),
    Model("ideogram4", "Ideogram4Transformer2DModel", "Ideogram4", {"layers": L}),
)


def layers(net: nn.Module) -> dict[str, nn.Module]:
    """What a LoRA can adapt, by name."""
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    # diffusers loads no LoRA of the projection at the end of CLIP.
    return {name: layer for name, layer in net.named_modules() if type(layer) in kinds and name != "text_projection"}


def train(net: Any) -> None:
    """A new adapter of PEFT's on every layer, of random values, with ranks and alphas that differ."""
    names = list(layers(net))
    patterns = {"rank_pattern": dict.fromkeys(names[::3], 2), "alpha_pattern": dict.fromkeys(names[1::3], 1.5)}
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=names, init_lora_weights=False, **patterns)
    net.add_adapter(config, "trained")


def write_adapter(model: Model, net: Any, folder: Path) -> Path:
    """The file a diffusers model writes."""
    train(net)
    net.save_lora_adapter(folder, "trained", weight_name="adapter.safetensors")
    return folder / "adapter.safetensors"


def write_pipeline(model: Model, net: Any, folder: Path) -> Path:
    """The file a diffusers pipeline writes."""
    train(net)
    return save(model.loader, {model.component: net}, folder)


def save(loader: Any, nets: Mapping[str, Any], folder: Path) -> Path:
    """What all pipelines save with, of models by what their files call them."""
    tensors = {name: peft.get_peft_model_state_dict(net, adapter_name="trained") for name, net in nets.items()}
    metadata = {name: net.peft_config["trained"].to_dict() for name, net in nets.items()}
    loader._save_lora_weights(folder, tensors, metadata, weight_name="pipeline.safetensors")
    return folder / "pipeline.safetensors"


def write_trained(spelling: Spelling, net: nn.Module, folder: Path) -> tuple[Path, set[str]]:
    """The file a trainer writes, with mixed ranks, and the layers it adapts."""
    adapted: set[str] = set()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in layers(net).items():
        found = (match.expand(new) for old, new in spelling.names.items() if (match := re.fullmatch(old, name)))
        if new := next(found, ""):
            adapted.add(name)
            outputs, *rest = layer.weight.shape
            shapes[new] = (outputs + shapes.get(new, (0,))[0], *rest)
    tensors: StateDict = {}
    flat = spelling.prefix.endswith("_")
    down, up = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
    for i, (name, (outputs, inputs, *kernel)) in enumerate(shapes.items()):
        key, rank = spelling.prefix + (name.replace(".", "_") if flat else name), 2 + 2 * (i % 2)
        tensors[f"{key}.{down}.weight"] = torch.randn(rank, inputs, *kernel)
        tensors[f"{key}.{up}.weight"] = torch.randn(outputs, rank, *(1 for _ in kernel))
        tensors |= {f"{key}.alpha": torch.tensor(3.0)} if flat else {}
    save_file(tensors, folder / "trained.safetensors")
    return folder / "trained.safetensors", adapted


def load(model: Model, net: Any, path: Path, name: str) -> StateDict:
    """Load a file as an adapter of that name, the way diffusers does for its writer. Returns each layer's update."""
    if path.stem == "adapter":
        net.load_lora_adapter(path.parent, prefix=None, weight_name=path.name, adapter_name=name)
    else:
        tensors, metadata = read(model.loader, path)
        net.load_lora_adapter(tensors, prefix=model.component, adapter_name=name, metadata=metadata)
    return updates(net, name)


def read(loader: Any, path: Path) -> tuple[StateDict, dict[str, Any]]:
    """The tensors of a file under the names of diffusers, and the adapter's metadata."""
    tensors, *_, metadata = loader.lora_state_dict(path.parent, weight_name=path.name, return_lora_metadata=True)
    return tensors, metadata


def updates(net: nn.Module, adapter: str) -> StateDict:
    """The update of each layer that has the adapter."""
    found = {}
    for name, layer in net.named_modules():
        if adapter in getattr(layer, "lora_A", ()):
            down, up = (factors[adapter].weight.flatten(1) for factors in (layer.lora_A, layer.lora_B))
            found[name] = layer.scaling[adapter] * up @ down
    return found


def assert_baked(
    blocks: Mapping[str, str],
    family: str,
    source: Path,
    bake_file: BakeFile,
    load: Callable[[Path, str], StateDict],
) -> None:
    """Baked with a weight for each block, a file has just these layers, each as strong as its block says."""
    weights = dict(zip(sorted({*blocks.values()}), WEIGHTS, strict=False))
    rules = " ".join(f"{block}={weight}" for block, weight in weights.items())
    baked = bake_file(source, "--weights", rules, "--family", family)
    before, after = load(source, "original"), load(baked, "baked")
    assert before.keys() == after.keys() == blocks.keys()
    for layer, block in blocks.items():
        assert before[layer].any()
        assert_close(after[layer], weights[block] * before[layer], TOLERANCES[torch.float32])


# Without its prefix, Anima's text conditioner has the names of its transformer.
_WRITTEN = [(model, write_pipeline) for model in MODELS]
_WRITTEN += [(model, write_adapter) for model in MODELS if model.component != "text_conditioner"]


@pytest.mark.parametrize(("model", "write"), _WRITTEN, ids=lambda it: str(getattr(it, "__name__", it)))
def test_every_layer_has_the_weight_of_its_block(
    model: Model, write: Callable[[Model, Any, Path], Path], bake_file: BakeFile, tmp_path: Path
) -> None:
    net = model.make()
    blocks = {name: model.block_of(name) for name in layers(net)}
    source = write(model, net, tmp_path)
    net.delete_adapters("trained")
    assert_baked(blocks, model.family, source, bake_file, partial(load, model, net))


@pytest.mark.parametrize(
    ("model", "spelling"),
    [(m, s) for m in MODELS for s in SPELLINGS if (m.family, m.component) == (s.family, s.component)],
    ids=str,
)
def test_every_layer_that_a_trainer_named_has_the_weight_of_its_block(
    model: Model, spelling: Spelling, bake_file: BakeFile, tmp_path: Path
) -> None:
    net = model.make()
    if not hasattr(conversions, f"_convert_{spelling.conversion}_lora_to_diffusers"):
        pytest.skip(f"this diffusers has no conversion of {spelling.conversion}")
    source, adapted = write_trained(spelling, net, tmp_path)
    blocks = {name: model.block_of(name) for name in adapted}
    assert_baked(blocks, model.family, source, bake_file, partial(load, model, net))


@pytest.mark.parametrize("i", [0, 1])
@pytest.mark.parametrize("family", ["wan_14b", "qwen_image", "z_image"])
def test_a_merge_calls_all_factors_as_its_first_file_does(family: str, i: int, run: Run, tmp_path: Path) -> None:
    """And gives them its alpha, or none: diffusers reads no `lora_A` beside `lora_down`. The i-th says this."""
    model = next(model for model in MODELS if model.family == family)
    spelling = next(spelling for spelling in SPELLINGS if spelling.family == family)
    net = model.make()
    parts = [load_file(write_trained(spelling, net, tmp_path)[0]) for _ in "12"]
    parts[i] = {name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): parts[i][name] for name in parts[i]}
    stems = {name.partition(".lora_")[0] for name in parts[i]}
    parts[i] |= {f"{stem}.alpha": torch.tensor(3.0) for stem in stems}
    parts[0] = {name: tensor for name, tensor in parts[0].items() if ".1." not in name}
    files = [tmp_path / f"{name}.safetensors" for name in ("one", "other", "merged")]
    for tensors, path in zip(parts, files, strict=False):
        save_file(tensors, path)
    run.done("merge", *files[:2], "-o", files[2], "--family", family)
    one, other, merged = (load(model, net, path, path.stem) for path in files)
    assert one.keys() < other.keys() == merged.keys()
    for layer in other:
        assert_close(merged[layer], other[layer] + one.get(layer, 0.0), 1e-5)


# The text encoders that pipelines load LoRAs of, by the names in their files: class, depth, block.
_CLIP, _CLIP_G = "CLIPTextModel", "CLIPTextModelWithProjection"
ENCODERS = {
    ("sd1", "StableDiffusion"): {"text_encoder": (_CLIP, 12, "BASE")},
    ("sdxl", "StableDiffusionXL"): {"text_encoder": (_CLIP, 12, "BASE"), "text_encoder_2": (_CLIP_G, 32, "BASE")},
    ("sd3", "SD3"): {"text_encoder": (_CLIP_G, 12, "CLIP_L"), "text_encoder_2": (_CLIP_G, 32, "CLIP_G")},
    ("flux", "Flux"): {"text_encoder": (_CLIP, 12, "CLIP")},
}
_SIZES = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 32, "num_attention_heads": 2, "projection_dim": 8}


def encoder(network: str, depth: int) -> Any:
    """A narrow text encoder."""
    config = transformers.CLIPTextConfig(num_hidden_layers=depth, bos_token_id=0, eos_token_id=1, **_SIZES)
    return getattr(transformers, network)(config)


@pytest.mark.parametrize(("family", "mixin"), ENCODERS)
def test_every_layer_of_a_text_encoder_has_the_weight_of_its_block(
    family: str, mixin: str, bake_file: BakeFile, tmp_path: Path
) -> None:
    loader = getattr(mixins, f"{mixin}LoraLoaderMixin")
    nets = {name: encoder(network, depth) for name, (network, depth, _) in ENCODERS[family, mixin].items()}
    blocks = {
        f"{name}.{layer}": block
        for name, (_, _, block) in ENCODERS[family, mixin].items()
        for layer in layers(nets[name])
    }
    for net in nets.values():
        train(net)

    def load(path: Path, adapter: str) -> StateDict:
        tensors, metadata = read(loader, path)
        found: StateDict = {}
        for name, net in nets.items():
            loader.load_lora_into_text_encoder(tensors, None, net, name, adapter_name=adapter, metadata=metadata)
            found |= {f"{name}.{layer}": update for layer, update in updates(net, adapter).items()}
        return found

    assert_baked(blocks, family, save(loader, nets, tmp_path), bake_file, load)


@pytest.mark.parametrize(
    ("layer", "factors"), [("to_q_lora", ".down .up"), ("to_out_lora", ".down .up"), ("k_proj", ".lora_A .lora_B")]
)
@pytest.mark.parametrize("level", ["text_model.", ""])
@pytest.mark.parametrize(
    ("family", "mixin", "kohya"),
    [
        ("sd1", "StableDiffusion", ("te", "unet_mid_block_attentions_0_proj_in")),
        ("flux", "Flux", ("te1", "unet_double_blocks_0_img_mlp_0")),
    ],
)
def test_a_merge_names_layers_of_a_text_encoder_as_kohya_does(
    family: str, mixin: str, kohya: tuple[str, str], level: str, layer: str, factors: str, run: Run, tmp_path: Path
) -> None:
    """Whatever the release of diffusers and of transformers calls them whose file has them."""
    te, unet = kohya
    stems = (f"lora_{te}_text_model_encoder_layers_0_self_attn_out_proj", f"lora_{unet}")
    names = {
        "kohya": [f"{stem}{role}" for stem in stems for role in (".lora_down", ".lora_up")],
        "dotted": [f"text_encoder.{level}encoder.layers.1.self_attn.{layer}{factor}" for factor in factors.split()],
    }
    for file, keys in names.items():
        tensors = {f"{key}.weight": torch.randn((8, 2) if i % 2 else (2, 8)) for i, key in enumerate(keys)}
        save_file(tensors, tmp_path / f"{file}.safetensors")
    down, up = tensors.values()
    merged = tmp_path / "merged.safetensors"
    run.done("merge", *(tmp_path / f"{file}.safetensors" for file in names), "-o", merged, "--family", family)
    assert not [name for name in load_file(merged) if "_te" in name and "_text_model_" not in name]
    net, loader = encoder(_CLIP, 12), getattr(mixins, f"{mixin}LoraLoaderMixin")
    found, metadata = read(loader, merged)
    loader.load_lora_into_text_encoder(found, None, net, "text_encoder", adapter_name="merged", metadata=metadata)
    _, update = sorted(updates(net, "merged").items())
    assert_close(update[1], up @ down, 1e-5)
