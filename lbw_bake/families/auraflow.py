"""AuraFlow: 4 double and 32 single blocks, like Flux's stacks under names of their own.

Source: diffusers' AuraFlowTransformer2DModel and the authors' module names.
"""

from .base import ATTENTION, JOINT_ATTENTION, Family, Rule, numbered
from .encoders import encoder

AURAFLOW = Family(
    name="auraflow",
    title="AuraFlow",
    blocks=("TE", "IN", *numbered("D", 4), *numbered("S", 32), "OUT"),
    rules=(
        Rule(r"(?:joint_transformer_blocks|double_layers)_(\d+)_", "D{:02}"),
        Rule(r"(?:single_transformer_blocks|single_layers)_(\d+)_", "S{:02}"),
        Rule(r"(?:init_x_linear|cond_seq_linear|t_embedder|pos_embed|context_embedder|time_step_proj)(?:_|$)", "IN"),
        Rule(r"(?:final_linear|modF|proj_out|norm_out)(?:_|$)", "OUT"),
    ),
    encoders=(encoder("pile_t5", "TE", "te", "te1"),),
    layers={
        rf"joint_transformer_blocks_\d+_{JOINT_ATTENTION}": 3072,
        rf"single_transformer_blocks_\d+_attn_(?:{ATTENTION})": 3072,
        r"(?:joint|single)_transformer_blocks_\d+_(?:ff(?:_context)?_linear_[12]|norm1(?:_context)?_linear)": 3072,
        r"(?:joint|single)_transformer_blocks_\d+_ff(?:_context)?_out_projection": 8192,
        r"double_layers_\d+_(?:attn_w[12][qkvo]|mlp[XC]_c_fc[12]|mod[XC]_1)": 3072,
        r"single_layers_\d+_(?:attn_w1[qkvo]|mlp_c_fc[12]|modCX_1)": 3072,
        r"(?:double|single)_layers_\d+_mlp[XC]?_c_proj": 8192,
        r"init_x_linear|pos_embed_proj|t_embedder_mlp_\d|time_step_proj_linear_\d": (),
        r"cond_seq_linear|context_embedder": 2048,
        r"final_linear|modF_1|proj_out|norm_out_linear": 3072,
    },
    claims=r"aura-?flow",
)
