"""PixArt alpha and sigma: 28 blocks of self and cross attention.

Source: diffusers' PixArtTransformer2DModel and the authors' module names.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

PIXART = Family(
    name="pixart",
    title="PixArt",
    blocks=("TE", "IN", *numbered("B", 28), "OUT"),
    rules=(
        Rule(r"(?:transformer_)?blocks_(\d+)_", "B{:02}"),
        Rule(r"(?:pos_embed|adaln_single|caption_projection|[xty]_embedder|t_block|csize_embedder|ar_embedder)_", "IN"),
        Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
    ),
    encoders=(encoder("t5", "TE", "te", "te1"),),
    layers={
        rf"transformer_blocks_\d+_(?:attn[12]_(?:{ATTENTION})|ff_net_0_proj)": 1152,
        r"blocks_\d+_(?:attn_(?:qkv|proj)|cross_attn_(?:q_linear|kv_linear|proj)|mlp_fc1)": 1152,
        r"transformer_blocks_\d+_ff_net_2|blocks_\d+_mlp_fc2": 4608,
        r"pos_embed_proj|x_embedder_proj|adaln_single_\w+|caption_projection_linear_\d": (),
        r"t_embedder_mlp_\d|y_embedder_y_proj_fc\d|(?:csize|ar)_embedder_mlp_\d": (),
        r"t_block_1|final_layer_linear|proj_out": 1152,
    },
    claims=r"pixart",
)
