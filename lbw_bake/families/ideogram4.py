"""Ideogram 4: one stack of 34 blocks for image and text.

Source: diffusers' Ideogram4Transformer2DModel, and the authors' names as its LoRA loader converts them.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

IDEOGRAM4 = Family(
    name="ideogram4",
    title="Ideogram 4",
    blocks=("TE", "IN", *numbered("L", 34), "OUT"),
    rules=(
        Rule(r"layers_(\d+)_", "L{:02}"),
        Rule(r"(?:input_proj|llm_cond_(?:proj|norm)|t_embedding|adaln_proj|embed_image_indicator)(?:_|$)", "IN"),
        Rule(r"final_layer_", "OUT"),
    ),
    encoders=(encoder("qwen3_vl_8b", "TE", "te", "te1"),),
    layers={
        rf"layers_\d+_(?:attention_(?:{ATTENTION}|qkv|o)|feed_forward_w[13])": 4608,
        r"layers_\d+_feed_forward_w2": 12288,
        r"layers_\d+_adaln_modulation|final_layer_adaln_modulation": 512,
        r"layers_\d+_(?:attention|ffn)_norm[12]|input_proj|llm_cond_norm|embed_image_indicator": (),
        r"llm_cond_proj": 53248,
        r"t_embedding_mlp_(?:in|out)|adaln_proj|final_layer_linear": 4608,
    },
    claims=r"ideogram[-_]?4",
)
