"""Lumina-Image 2 and Z-Image: a refiner of two blocks for noise and for text each, then one stack for both.

Source: diffusers' Lumina2Transformer2DModel and ZImageTransformer2DModel, and the authors' names, which fuse the
projections (`attention_qkv`).
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

_REFINERS = (*numbered("NR", 2), *numbered("CR", 2))
_RULES = (
    Rule(r"layers_(\d+)_", "L{:02}"),
    Rule(r"noise_refiner_(\d+)_", "NR{:02}"),
    Rule(r"context_refiner_(\d+)_", "CR{:02}"),
    Rule(r"(?:(?:all_)?x_embedder|(?:t|cap)_embedder|time_caption_embed|(?:x|cap)_pad_token)(?:_|$)", "IN"),
    Rule(r"siglip_", "IN"),  # of Z-Image Omni, which sees pictures too
    Rule(r"(?:(?:all_)?final_layer|norm_out)(?:_|$)", "OUT"),
)
_BLOCK = r"(?:layers|noise_refiner|context_refiner)_\d+_"

LUMINA2 = Family(
    name="lumina2",
    title="Lumina-Image 2",
    blocks=("TE", "IN", *_REFINERS, *numbered("L", 26), "OUT"),
    rules=_RULES,
    encoders=(encoder("gemma2_2b", "TE", "te", "te1"),),
    layers={
        rf"{_BLOCK}(?:attention_(?:qkv|out|[qk]_norm)|attn_(?:{ATTENTION})|feed_forward_(?:w|linear_)[13])": 2304,
        rf"{_BLOCK}feed_forward_(?:w|linear_)2": 9216,
        rf"{_BLOCK}(?:adaLN_modulation_1|norm1_linear)": 1024,
        r"cap_embedder_1|time_caption_embed_caption_embedder_1": 2304,
        r"x_embedder|t_embedder_mlp_\d|time_caption_embed_timestep_embedder_linear_\d": (),
        r"final_layer_adaLN_modulation_1|norm_out_linear_1": 1024,
        r"final_layer_linear|norm_out_linear_2": 2304,
    },
    base_model="lumina2",
    claims=r"lumina",
)

Z_IMAGE = Family(
    name="z_image",
    title="Z-Image",
    blocks=("TE", "IN", *_REFINERS, *numbered("L", 30), "OUT"),
    rules=_RULES,
    encoders=(encoder("qwen3_4b", "TE", "te", "te1"),),
    layers={
        rf"{_BLOCK}(?:attention_(?:qkv|out|[qk]_norm|{ATTENTION})|feed_forward_w[13])": 3840,
        rf"{_BLOCK}feed_forward_w2": 10240,
        rf"{_BLOCK}adaLN_modulation_0": 256,
        r"cap_embedder_1": 2560,
        rf"siglip_refiner_\d_(?:attention_(?:qkv|out|[qk]_norm|{ATTENTION})|feed_forward_w[13])": 3840,
        r"siglip_refiner_\d_feed_forward_w2": 10240,
        r"siglip_embedder_1": (),
        r"(?:all_)?x_embedder(?:_[\w-]+)?|t_embedder_mlp_\d": (),
        r"(?:all_)?final_layer_(?:[\w-]+_)?adaLN_modulation_1": 256,
        r"(?:all_)?final_layer_(?:[\w-]+_)?linear": 3840,
    },
    base_model="z_image",
    claims=r"z[-_]image",
)
