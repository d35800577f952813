"""LTX-Video: one stack of self and cross attention, 28 blocks in the 2B model and 48 in the 13B one and in LTX-2.

Source: diffusers' LTXVideoTransformer3DModel and LTX2VideoTransformer3DModel; the original names differ in the
embedders alone. LTX-2 makes sound too: in every block each layer has a narrower twin, and attention joins the two.
Small transformers of its own (`connectors`) bring the text to both.
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
            r"(?:time_embed|adaln_single)_(?:emb_timestep_embedder_linear_\d|linear)|caption_projection_linear_2": (),
            r"caption_projection_linear_1": 4096,
            r"proj_in|patchify_proj": 128,
            r"proj_out": width,
        },
        claims=r"ltx(?![-_]?2(?!b))",
    )


LTX_2B = _family("ltx_2b", "LTX-Video 2B", 28, 2048)
LTX_13B = _family("ltx_13b", "LTX-Video 13B", 48, 4096)

_PICTURE, _SOUND = 4096, 2048

_CONNECTORS = r"(?:connectors_)?(?:video|audio)_(?:embeddings_)?connector"
_TEXT = r"(?:connectors_|text_embedding_projection_)?(?:(?:video|audio)_)?(?:text_proj_in|aggregate_embed)"

LTX_2 = Family(
    name="ltx_2",
    title="LTX-2",
    blocks=("TE", "IN", *numbered("B", 48), "OUT"),
    rules=(
        Rule(r"transformer_blocks_(\d+)_", "B{:02}"),
        Rule(r"(?:audio_)?(?:proj_in|patchify_proj|time_embed|(?:prompt_)?adaln|caption_projection)(?:_|$)", "IN"),
        Rule(rf"av_(?:ca|cross_attn)_|{_CONNECTORS}_|{_TEXT}$", "IN"),
        Rule(r"(?:audio_)?proj_out$", "OUT"),
    ),
    encoders=(encoder("gemma3_12b", "TE", "te", "te1"),),
    layers={
        r"transformer_blocks_\d+_": {
            rf"attn[12]_(?:{ATTENTION}|to_gate_logits|[qk]_norm)|ff_net_0_proj": _PICTURE,
            rf"audio_attn[12]_(?:{ATTENTION}|to_gate_logits|[qk]_norm)|audio_ff_net_0_proj": _SOUND,
            r"ff_net_2": 4 * _PICTURE,
            r"audio_ff_net_2": 4 * _SOUND,
            r"(?:audio_to_video|video_to_audio)_attn_(?:norm_[qk]|[qk]_norm|to_out_0)": _SOUND,
            r"audio_to_video_attn_to_[kv]|video_to_audio_attn_to_(?:q|gate_logits)": _SOUND,
            r"audio_to_video_attn_to_(?:q|gate_logits)|video_to_audio_attn_to_[kv]": _PICTURE,
        },
        r"(?:audio_)?caption_projection_linear_1": 3840,
        r"(?:audio_)?(?:(?:time_embed|(?:prompt_)?adaln)_\w+|caption_projection_linear_2)|av_(?:ca|cross_attn)_\w+": (),
        r"(?:audio_)?(?:proj_in|patchify_proj)": 128,
        rf"{_CONNECTORS}_transformer_(?:1d_)?blocks_\d_": {
            rf"attn1_(?:{ATTENTION}|to_gate_logits|[qk]_norm)|ff_net_(?:0_proj|2)": (),
        },
        _TEXT: (),
        r"proj_out": _PICTURE,
        r"audio_proj_out": _SOUND,
    },
    claims=r"ltx[-_]?2(?!b)",
)
