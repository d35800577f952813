"""Wan 2.1 and 2.2: one stack of self and cross attention, 40 blocks in the 14B models and 30 in the small ones.

Source: diffusers' WanTransformer3DModel and the authors' module names; image-to-video models add `k_img`, `v_img`
and `img_emb`. The two experts of Wan 2.2 are models of the same shape.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

_RULES = (
    Rule(r"blocks_(\d+)_", "B{:02}"),
    Rule(r"(?:patch_embedding|(?:text|time)_embedding|time_projection|img_emb|condition_embedder)(?:_|$)", "IN"),
    Rule(r"(?:head|proj_out|norm_out)(?:_|$)", "OUT"),
)


def _family(name: str, title: str, depth: int, width: int, inner: int, *same_blocks: str) -> Family:
    return Family(
        name=name,
        title=title,
        blocks=("TE", "IN", *numbered("B", depth), "OUT"),
        rules=_RULES,
        encoders=(encoder("umt5", "TE", "te", "te1"),),
        layers={
            r"blocks_\d+_(?:self|cross)_attn_(?:[qkvo]|[kv]_img|norm_(?:q|k|k_img))": width,
            rf"blocks_\d+_attn[12]_(?:{ATTENTION}|add_[kv]_proj|norm_added_[qk])": width,
            r"blocks_\d+_ffn_(?:0|net_0_proj)": width,
            r"blocks_\d+_ffn_(?:2|net_2)": inner,
            r"blocks_\d+_norm[123]": (),
            r"patch_embedding|(?:text|time)_embedding_[02]|time_projection_1|img_emb_proj_\d": (),
            r"condition_embedder_(?:(?:text|time)_embedder_linear_\d|time_proj|image_embedder_\w+)": (),
            r"head_head|proj_out": width,
        },
        base_model="wan",
        claims="wan",
        preset_families=same_blocks,
    )


WAN_14B = _family("wan_14b", "Wan 14B", 40, 5120, 13824)
WAN_1_3B = _family("wan_1_3b", "Wan 1.3B", 30, 1536, 8960, "wan_5b")
WAN_5B = _family("wan_5b", "Wan 2.2 5B", 30, 3072, 14336, "wan_1_3b")
