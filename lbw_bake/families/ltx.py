"""LTX-Video: one stack of self and cross attention, 28 blocks in the 2B model and 48 in the 13B one.

Source: diffusers' LTXVideoTransformer3DModel; the original names differ in the embedders alone.
"""

from .base import ATTENTION, Family, Rule, numbered
from .encoders import encoder

_RULES = (
    Rule(r"transformer_blocks_(\d+)_", "B{:02}"),
    Rule(r"(?:proj_in|patchify_proj|time_embed|adaln_single|caption_projection)(?:_|$)", "IN"),
    Rule(r"proj_out$", "OUT"),
)


def _family(name: str, title: str, depth: int, width: int) -> Family:
    return Family(
        name=name,
        title=title,
        blocks=("TE", "IN", *numbered("B", depth), "OUT"),
        rules=_RULES,
        encoders=(encoder("t5", "TE", "te", "te1"),),
        layers={
            rf"transformer_blocks_\d+_(?:attn[12]_(?:{ATTENTION})|ff_net_0_proj)": width,
            r"transformer_blocks_\d+_ff_net_2": 4 * width,
            r"(?:time_embed|adaln_single)_(?:emb_timestep_embedder_linear_\d|linear)|caption_projection_linear_\d": (),
            r"proj_in|patchify_proj": 128,
            r"proj_out": width,
        },
        claims=r"ltx",
    )


LTX_2B = _family("ltx_2b", "LTX-Video 2B", 28, 2048)
LTX_13B = _family("ltx_13b", "LTX-Video 13B", 48, 4096)
