"""Flux.1 and Chroma: 19 double-stream and 38 single-stream blocks between the embedders and the final layer.

Source: module names of the original (BFL) transformer and of diffusers' FluxTransformer2DModel and
ChromaTransformer2DModel; the 61 names are those of the LoRA Block Weight extension. Chroma is Flux.1 without
modulation and CLIP-L, which one guidance layer replaces.
"""

from .base import JOINT_ATTENTION, Encoder, Family, Layers, Rule, numbered
from .encoders import encoder

_BLOCKS = ("CLIP", "T5", "IN", *numbered("D", 19), *numbered("S", 38), "OUT")

_RULES: tuple[Rule, ...] = (
    Rule(r"single_(?:transformer_)?blocks_(\d+)_", "S{:02}"),
    Rule(r"(?:double|(?:tran)?sformer)_blocks_(\d+)_", "D{:02}"),
    Rule(r"(?:(?:img|txt|time|vector|guidance)_in|time_text_embed|\w+_embedder)(?:_|$)", "IN"),
    Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
)

_JOINT = r"(?:tran)?sformer_blocks_\d+_"
_NORMS = r"norm_(?:query|key)_norm"
_PARTS = r"(?:_[0-3])?"  # some trainers split the fused layers
_LAYERS: Layers = {
    rf"double_blocks_\d+_(?:img|txt)_(?:attn_(?:qkv{_PARTS}|proj|{_NORMS})|mlp_0)": 3072,
    r"double_blocks_\d+_(?:img|txt)_mlp_2": 12288,
    r"double_blocks_\d+_processor_(?:qkv|proj)_lora[12]": 3072,
    rf"{_JOINT}(?:{JOINT_ATTENTION}|ff(?:_context)?_net_0_proj)": 3072,
    rf"{_JOINT}ff(?:_context)?_net_2": 12288,
    rf"single_blocks_\d+_(?:linear1{_PARTS}|{_NORMS}|processor_qkv)": 3072,
    r"single_blocks_\d+_(?:linear2|processor_proj)": 15360,
    r"single_transformer_blocks_\d+_(?:attn_to_[qkv]|attn_norm_[qk]|proj_mlp)": 3072,
    r"single_transformer_blocks_\d+_proj_out": 15360,
    r"txt_in|context_embedder": 4096,
    r"img_in(?:_proj)?|x_embedder": (),
    r"final_layer_linear|proj_out": 3072,
}

FLUX = Family(
    name="flux",
    title="Flux.1",
    blocks=_BLOCKS,
    rules=_RULES,
    # To some trainers T5 is the second encoder, to others the third.
    encoders=(encoder("clip_l", "CLIP", "te1"), encoder("t5", "T5", "te", "te2", "te3")),
    layers={
        **_LAYERS,
        rf"double_blocks_\d+_(?:img|txt)_mod_lin|{_JOINT}norm1(?:_context)?_linear": 3072,
        r"single_blocks_\d+_modulation_lin|single_transformer_blocks_\d+_norm_linear": 3072,
        r"(?:time|vector|guidance)_in_(?:in|out)_layer": (),
        r"time_text_embed_(?:timestep|text|guidance)_embedder_linear_\d": (),
        r"final_layer_adaLN_modulation_1|norm_out_linear": 3072,
    },
    base_model="flux1",
    claims=r"flux\.?-?1|flux_kontext",
)

CHROMA = Family(
    name="chroma",
    title="Chroma",
    blocks=_BLOCKS,
    rules=(Rule(r"distilled_guidance_layer_", "IN"), *_RULES),
    # Its vectors are Flux's, with a CLIP block that no module is in.
    encoders=(Encoder("clip_l", "CLIP", (), {}), encoder("t5", "T5", "te", "te1", "te2", "te3")),
    layers={
        **_LAYERS,
        r"distilled_guidance_layer_(?:(?:in|out)_proj|layers_\d_(?:linear_[12]|(?:in|out)_layer)|norms_\d)": (),
    },
    base_model="chroma",
    claims="chroma",
    preset_families=("flux",),
)
