"""Wan 2.1 and 2.2: one stack of self and cross attention, 40 blocks in the 14B models and 30 in the small ones.

Source: diffusers' WanTransformer3DModel and the authors' module names; image-to-video models add `k_img`, `v_img`
and `img_emb`. The two experts of Wan 2.2 are models of the same shape. What VACE and Animate have beside the stack is
in the block that it adds to: VACE's layers in each fifth block, in each second one of the small model, a face in each
fifth. SkyReels V2 and AnyFlow add embedders alone.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

_IN = (
    r"(?:(?:vace|pose|far)_)?patch_embedding|(?:text|time)_embedding|time_projection|img_emb|condition_embedder"
    r"|fps_(?:embedding|projection)|(?:face|motion)_encoder"
)


def _rules(step: int) -> tuple[Rule, ...]:
    return (
        Rule(r"blocks_(\d+)_", "B{:02}"),
        Rule(r"vace_blocks_(\d+)_", "B{:02}", lambda at: step * at),
        Rule(r"face_adapter_(?:fuser_blocks_)?(\d+)_", "B{:02}", lambda at: 5 * at),
        Rule(rf"(?:{_IN})(?:_|$)", "IN"),
        Rule(r"(?:head|proj_out|norm_out)(?:_|$)", "OUT"),
    )


_RULES = {40: _rules(5), 30: _rules(2)}


def _family(name: str, title: str, depth: int, width: int, inner: int, *same_blocks: str) -> Family:
    return Family(
        name=name,
        title=title,
        blocks=("TE", "IN", *numbered("B", depth), "OUT"),
        rules=_RULES[depth],
        encoders=(encoder("umt5", "TE", "te", "te1"),),
        layers={
            r"(?:vace_)?blocks_\d+_(?:self|cross)_attn_(?:[qkvo]|[kv]_img|norm_(?:q|k|k_img))": width,
            rf"(?:vace_)?blocks_\d+_attn[12]_(?:{ATTENTION}|add_[kv]_proj|norm_added_[qk])": width,
            r"(?:vace_)?blocks_\d+_ffn_(?:0|net_0_proj)": width,
            r"(?:vace_)?blocks_\d+_ffn_(?:2|net_2)": inner,
            r"(?:vace_)?blocks_\d+_norm[123]": (),
            r"vace_blocks_\d+_(?:(?:before|after)_proj|proj_(?:in|out))": width,
            r"face_adapter_(?:\d+_to_(?:[qkv]|out)|fuser_blocks_\d+_linear(?:1_q|1_kv|2))": width,
            r"(?:(?:vace|pose|far)_)?patch_embedding|(?:text|time)_embedding_[02]|time_projection_1": (),
            r"condition_embedder_(?:(?:text|time|delta)_embedder_linear_\d|time_proj|image_embedder_\w+)": (),
            r"img_emb_proj_\d|fps_projection_(?:net_0_proj|net_2|0|2)|(?:face|motion)_encoder_\w+": (),
            r"head_head|proj_out": width,
        },
        base_model="wan",
        claims="wan",
        preset_families=same_blocks,
    )


WAN_14B = _family("wan_14b", "Wan 14B", 40, 5120, 13824)
WAN_1_3B = _family("wan_1_3b", "Wan 1.3B", 30, 1536, 8960, "wan_5b")
WAN_5B = _family("wan_5b", "Wan 2.2 5B", 30, 3072, 14336, "wan_1_3b")
