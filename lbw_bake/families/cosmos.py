"""Cosmos-Predict2 2B and Anima: 28 blocks; Anima adds an adapter of six blocks that reads the prompt.

Source: diffusers' CosmosTransformer3DModel and AnimaTextConditioner, and the authors' module names (`llm_adapter`).
"""

from .base import ATTENTION, Family, Layers, Rule, numbered
from .encoders import encoder

_STACK = numbered("B", 28)
_ANIMA = ("TE", "IN", *numbered("A", 6), *_STACK, "OUT")

_RULES = (
    Rule(r"(?:transformer_)?blocks_(\d+)_", "B{:02}"),
    Rule(r"(?:patch_embed|time_embed|learnable_pos_embed|[xt]_embedder|t_embedding_norm)(?:_|$)", "IN"),
    Rule(r"(?:crossattn|img_context)_proj(?:_|$)", "IN"),  # of Cosmos 2.5
    Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
)

_NATIVE, _DIFFUSERS = r"blocks_\d+_", r"transformer_blocks_\d+_"
_LAYERS: Layers = {
    rf"{_NATIVE}cross_attn_[kv]_proj|{_DIFFUSERS}attn2_to_[kv]": 1024,
    rf"{_NATIVE}(?:(?:self|cross)_attn_(?:(?:[qkv]|output)_proj|[qk]_norm)|mlp_layer1)": 2048,
    rf"{_DIFFUSERS}(?:attn[12]_(?:{ATTENTION}|[qkv]_img|[qk]_img_norm)|ff_net_0_proj)": 2048,
    rf"{_NATIVE}mlp_layer2|{_DIFFUSERS}ff_net_2": 8192,
    rf"{_NATIVE}adaln_modulation_(?:self_attn|cross_attn|mlp)_1|{_DIFFUSERS}norm[123]_linear_1": 2048,
    rf"{_NATIVE}adaln_modulation_(?:self_attn|cross_attn|mlp)_2|{_DIFFUSERS}norm[123]_linear_2": 256,
    r"patch_embed_proj|x_embedder_proj_1|(?:t_embedder_1|time_embed_t_embedder)_linear_\d|learnable_pos_embed\w*": (),
    r"(?:crossattn|img_context)_proj(?:_0)?": (),
    r"final_layer_(?:adaln_modulation_1|linear)|norm_out_linear_1|proj_out": 2048,
    r"final_layer_adaln_modulation_2|norm_out_linear_2": 256,
}

COSMOS = Family(
    name="cosmos",
    title="Cosmos-Predict2 2B",
    blocks=("TE", "IN", *_STACK, "OUT"),
    rules=_RULES,
    encoders=(encoder("t5", "TE", "te", "te1"),),
    layers=_LAYERS,
    claims=r"cosmos",
)

_ADAPTER = r"(?:llm_adapter|text_conditioner)_"

ANIMA = Family(
    name="anima",
    title="Anima",
    blocks=_ANIMA,
    rules=(Rule(rf"{_ADAPTER}blocks_(\d+)_", "A{:02}"), Rule(_ADAPTER, "IN"), *_RULES),
    encoders=(encoder("qwen3_06b", "TE", "te", "te1"),),
    layouts=(_ANIMA, _ANIMA[2:-1], _STACK),
    relatives=(COSMOS.blocks,),
    layers={
        **_LAYERS,
        rf"{_ADAPTER}blocks_\d+_(?:(?:self|cross)_attn_(?:[qkvo]_proj|[qk]_norm)|mlp_0)": 1024,
        rf"{_ADAPTER}blocks_\d+_mlp_2": 4096,
        rf"{_ADAPTER}\w+": (),
    },
    base_model="anima",
    claims=r"anima",
)
