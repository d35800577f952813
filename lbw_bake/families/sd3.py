"""Stable Diffusion 3 and 3.5: one stack of joint blocks, 24 in the medium models and 38 in the large one.

Source: diffusers' SD3Transformer2DModel, and the `joint_blocks` of the original model. 3.5 medium has a second
attention in its first blocks (`attn2`), which 3 medium and 3.5 large lack.
"""

from .base import ATTENTION, JOINT_ATTENTION, Family, Layers, Rule, numbered
from .encoders import encoder

_RULES = (
    Rule(r"(?:joint|transformer)_blocks_(\d+)_", "J{:02}"),
    Rule(r"(?:pos_embed|time_text_embed|[xyt]_embedder|context_embedder)(?:_|$)", "IN"),
    Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
)
_ENCODERS = (
    encoder("clip_l", "CLIP_L", "te1"),
    encoder("clip_g", "CLIP_G", "te2"),
    encoder("t5", "T5", "te3"),
)


def _layers(width: int) -> Layers:
    joint, diffusers = r"joint_blocks_\d+_(?:x|context)_block_", r"transformer_blocks_\d+_"
    return {
        rf"{joint}(?:attn_(?:qkv|proj|ln_[qk])|mlp_fc1|adaLN_modulation_1)": width,
        rf"{joint}mlp_fc2": 4 * width,
        rf"{diffusers}(?:{JOINT_ATTENTION}|ff(?:_context)?_net_0_proj|norm1(?:_context)?_linear)": width,
        rf"{diffusers}ff(?:_context)?_net_2": 4 * width,
        r"context_embedder": 4096,
        r"pos_embed_proj|x_embedder_proj|[ty]_embedder_mlp_[02]": (),
        r"time_text_embed_(?:timestep|text)_embedder_linear_\d": (),
        r"final_layer_(?:linear|adaLN_modulation_1)|proj_out|norm_out_linear": width,
    }


SD3 = Family(
    name="sd3",
    title="Stable Diffusion 3 and 3.5 medium",
    blocks=("CLIP_L", "CLIP_G", "T5", "IN", *numbered("J", 24), "OUT"),
    rules=_RULES,
    encoders=_ENCODERS,
    layers={
        **_layers(1536),
        rf"joint_blocks_\d+_x_block_attn2_(?:qkv|proj|ln_[qk])|transformer_blocks_\d+_attn2_(?:{ATTENTION})": 1536,
    },
    claims=r"(?:5-)?medium|stable-diffusion-3-(?:5-)?m",
)

SD3_LARGE = Family(
    name="sd3_large",
    title="Stable Diffusion 3.5 large",
    blocks=("CLIP_L", "CLIP_G", "T5", "IN", *numbered("J", 38), "OUT"),
    rules=_RULES,
    encoders=_ENCODERS,
    layers=_layers(2432),
    base_model="5-large",
    claims=r"5-large|stable-diffusion-3-5-large",
)
