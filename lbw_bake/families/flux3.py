"""FLUX.3: five blocks in parallel for text and for each kind of picture, then one stack of 28 for all of them.

Source: diffusers' Flux3Transformer2DModel, and the authors' names as its LoRA loader converts them.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

_PROJECTIONS = rf"attn_(?:{ATTENTION})|[qkv]_proj|attn_out|[qk]_norm|ff_linear_in|mlp_in"

FLUX3 = Family(
    name="flux3",
    title="FLUX.3",
    blocks=("TE", "IN", *numbered("D", 5), *numbered("S", 28), "OUT"),
    rules=(
        Rule(r"single_(?:transformer_)?blocks_(\d+)_", "S{:02}"),
        Rule(r"(?:(?:content_)?mode_blocks_[a-z_]+|txt_mode_blocks)_(\d+)_", "D{:02}"),
        Rule(r"(?:early|single)_stream_modulations_|x_embedders_|(?:context|timestep)_embedder(?:_|$)", "IN"),
        Rule(r"(?:proj_out|norm_out)(?:_|$)", "OUT"),
    ),
    encoders=(encoder("qwen3_vl_8b", "TE", "te", "te1"),),
    layers={
        r"(?:single_(?:transformer_)?blocks|(?:content_)?mode_blocks_[a-z_]+|txt_mode_blocks)_\d+_": {
            _PROJECTIONS: 3072,
            r"ff_linear_out|mlp_out": 9216,
        },
        r"(?:early|single)_stream_modulations_[a-z_]+_linear": 3072,
        r"x_embedders_[a-z_]+|timestep_embedder_linear_\d": (),
        r"context_embedder": 20480,
        r"norm_out_linear|proj_out": 3072,
    },
    claims=r"flux[._]?3",
)
