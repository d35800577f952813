"""Hunyuan-DiT: 40 blocks of self and cross attention, the deeper half with skip connections.

Source: diffusers' HunyuanDiT2DModel and the authors' module names.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

HUNYUAN_DIT = Family(
    name="hunyuan_dit",
    title="Hunyuan-DiT",
    blocks=("TE", "IN", *numbered("B", 40), "OUT"),
    rules=(
        Rule(r"blocks_(\d+)_", "B{:02}"),
        Rule(r"(?:pos_embed|time_extra_emb|(?:text|extra|style|[xt])_embedder|mlp_t5|pooler)(?:_|$)", "IN"),
        Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
    ),
    encoders=(encoder("bert", "TE", "te", "te1"), encoder("mt5", "TE", "te2")),
    layers={
        r"blocks_\d+_attn2_(?:kv_proj|to_[kv])": 1024,
        rf"blocks_\d+_(?:attn1_Wqkv|attn2_q_proj|attn[12]_(?:out_proj|[qk]_norm|{ATTENTION}))": 1408,
        r"blocks_\d+_(?:mlp_fc1|ff_net_0_proj|default_modulation_1|norm1_linear)": 1408,
        r"blocks_\d+_(?:mlp_fc2|ff_net_2)": 6144,
        r"blocks_\d+_skip_linear": 2816,
        r"(?:mlp_t5|extra_embedder)_\d|text_embedder_linear_\d|(?:time_extra_emb_)?pooler_\w+": (),
        r"t_embedder_mlp_\d|time_extra_emb_(?:timestep|extra)_embedder_linear_\d": (),
        r"(?:pos_embed|x_embedder)_proj|style_embedder": (),
        r"final_layer_(?:linear|adaLN_modulation_1)|proj_out|norm_out_linear": 1408,
    },
    claims=r"hunyuan-?dit",
)
