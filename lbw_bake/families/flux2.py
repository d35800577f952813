"""FLUX.2 dev and its smaller klein models: Flux.1's stacks in other depths, with modulation shared by a whole stack.

Source: diffusers' Flux2Transformer2DModel built from the published configurations, and the original module names.
"""

from .base import JOINT_ATTENTION, Family, Rule, numbered
from .encoders import encoder

_JOINT = r"(?:tran)?sformer_blocks_\d+_"
_RULES = (
    Rule(r"single_(?:transformer_)?blocks_(\d+)_", "S{:02}"),
    Rule(r"(?:double|(?:tran)?sformer)_blocks_(\d+)_", "D{:02}"),
    Rule(
        r"(?:(?:img|txt|time|guidance)_in|time_guidance_embed|(?:double|single)_stream_modulation|\w+_embedder)(?:_|$)",
        "IN",
    ),
    Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
)


def _family(name: str, title: str, doubles: int, singles: int, width: int, text: str, text_width: int) -> Family:
    model = name.removeprefix("flux2_").replace("_", "[-_]")
    return Family(
        name=name,
        title=title,
        blocks=("TE", "IN", *numbered("D", doubles), *numbered("S", singles), "OUT"),
        rules=_RULES,
        encoders=(encoder(text, "TE", "te", "te1"),),
        layers={
            r"double_blocks_\d+_(?:img|txt)_(?:attn_(?:qkv|proj|norm_(?:query|key)_norm)|mlp_0)": width,
            r"double_blocks_\d+_(?:img|txt)_mlp_2": 3 * width,
            rf"{_JOINT}(?:{JOINT_ATTENTION}|attn_to_(?:added_)?qkv|ff(?:_context)?_linear_in)": width,
            rf"{_JOINT}ff(?:_context)?_linear_out": 3 * width,
            r"single_blocks_\d+_(?:linear1|norm_(?:query|key)_norm)": width,
            r"single_transformer_blocks_\d+_attn_(?:to_qkv_mlp_proj|norm_[qk])": width,
            r"single_blocks_\d+_linear2|single_transformer_blocks_\d+_attn_to_out": 4 * width,
            r"(?:double_stream_modulation_(?:img|txt)|single_stream_modulation)_lin(?:ear)?": width,
            r"txt_in|context_embedder": text_width,
            r"img_in|x_embedder": (),
            r"(?:time|guidance)_in_(?:in|out)_layer|time_guidance_embed_(?:timestep|guidance)_embedder_linear_\d": (),
            r"final_layer_(?:linear|adaLN_modulation_1)|proj_out|norm_out_linear": width,
        },
        base_model=name.replace("flux2", "flux_2"),
        claims=rf"flux[._]2[-_]{model}",
    )


FLUX2_DEV = _family("flux2_dev", "FLUX.2 dev", 8, 48, 6144, "mistral", 15360)
FLUX2_KLEIN_4B = _family("flux2_klein_4b", "FLUX.2 klein 4B", 5, 20, 3072, "qwen3_4b", 7680)
FLUX2_KLEIN_9B = _family("flux2_klein_9b", "FLUX.2 klein 9B", 8, 24, 4096, "qwen3_8b", 12288)
