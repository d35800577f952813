"""Qwen-Image: 60 joint blocks with a modulation and an MLP for image and text each.

Source: diffusers' QwenImageTransformer2DModel, whose names all trainers use.
"""

from .base import JOINT_ATTENTION, Family, Rule, numbered
from .encoders import encoder

QWEN_IMAGE = Family(
    name="qwen_image",
    title="Qwen-Image",
    blocks=("TE", "IN", *numbered("B", 60), "OUT"),
    rules=(
        Rule(r"transformer_blocks_(\d+)_", "B{:02}"),
        Rule(r"(?:img_in|txt_in|txt_norm|time_text_embed)(?:_|$)", "IN"),
        Rule(r"(?:proj_out|norm_out)(?:_|$)", "OUT"),
    ),
    encoders=(encoder("qwen2_5_vl", "TE", "te", "te1"),),
    layers={
        rf"transformer_blocks_\d+_(?:{JOINT_ATTENTION}|(?:img|txt)_(?:mlp_net_0_proj|mod_1))": 3072,
        r"transformer_blocks_\d+_(?:img|txt)_mlp_net_2": 12288,
        r"img_in|txt_norm|time_text_embed_timestep_embedder_linear_\d": (),
        r"txt_in": 3584,
        r"norm_out_linear|proj_out": 3072,
    },
    base_model="qwen_image",
    claims=r"qwen[-_]image",
)
