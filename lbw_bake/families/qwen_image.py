"""Qwen-Image: 60 joint blocks with a modulation and an MLP for image and text each; 2.1 has one stack of 32 for both.

Source: diffusers' QwenImageTransformer2DModel and QwenImage21Transformer2DModel, whose names all trainers use.
"""

from .base import ATTENTION, JOINT_ATTENTION, Family, Rule, numbered
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
    claims=r"qwen[-_]image(?![-_]2)",
)

QWEN_IMAGE_2_1 = Family(
    name="qwen_image_2_1",
    title="Qwen-Image 2.1",
    blocks=("TE", "IN", *numbered("B", 32), "OUT"),
    rules=(
        Rule(r"transformer_blocks_(\d+)_", "B{:02}"),
        Rule(r"(?:img_in|txt_in|time_text_embed|modulation)(?:_|$)", "IN"),
        Rule(r"(?:proj_out|norm_out)(?:_|$)", "OUT"),
    ),
    encoders=(encoder("qwen3_vl_8b", "TE", "te", "te1"),),
    layers={
        rf"transformer_blocks_\d+_(?:attn_(?:{ATTENTION})|img_mlp_(?:proj|gate_layer))": 4096,
        r"transformer_blocks_\d+_img_mlp_out": 12288,
        r"img_in|time_text_embed_timestep_embedder_linear_\d": (),
        r"txt_in_(?:(?:in|out)_layer|text_norm)|modulation_1": 4096,
        r"norm_out_linear|proj_out": 4096,
    },
    claims=r"qwen[-_]image[-_]2",
)
