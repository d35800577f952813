"""Krea 2: 28 blocks with gated attention, after a small transformer that fuses the layers of the text encoder.

Source: diffusers' Krea2Transformer2DModel and the authors' module names (`txtfusion`).
"""

from .base import Family, Rule, numbered
from .encoders import encoder

_FUSION = r"(?:text_fusion|txtfusion)_(?:layerwise|refiner)_blocks_\d_"

_PROJECTIONS = r"attn_(?:to_(?:[qkv]|qkv|out_0|gate)|w[qkvo]|gate|norm_[qk])|(?:ff|mlp)_(?:gate|up)"

KREA2 = Family(
    name="krea2",
    title="Krea 2",
    blocks=("TE", "IN", *numbered("B", 28), "OUT"),
    rules=(
        Rule(r"(?:transformer_)?blocks_(\d+)_", "B{:02}"),
        Rule(r"(?:first|tmlp|tproj|txtmlp|txtfusion|img_in|txt_in|time_embed|time_mod_proj|text_fusion)(?:_|$)", "IN"),
        Rule(r"(?:last|final_layer)_", "OUT"),
    ),
    encoders=(encoder("qwen3_vl", "TE", "te", "te1"),),
    layers={
        rf"(?:transformer_)?blocks_\d+_(?:{_PROJECTIONS})": 6144,
        r"(?:transformer_)?blocks_\d+_(?:ff|mlp)_down": 16384,
        rf"{_FUSION}(?:{_PROJECTIONS})": 2560,
        rf"{_FUSION}(?:ff|mlp)_down": 6912,
        r"first|img_in|(?:text_fusion|txtfusion)_projector|time_embed_linear_\d|time_mod_proj|tmlp_\d|tproj_1": (),
        r"txt_in_linear_\d|txtmlp_\d": (),
        r"(?:last|final_layer)_linear": 6144,
    },
    base_model="krea2",
    claims=r"krea[-_]?2",
)
