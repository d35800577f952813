"""HiDream-I1: 16 double-stream and 32 single-stream blocks, each with a mixture of experts.

Source: diffusers' HiDreamImageTransformer2DModel, whose names all trainers use.
"""

from .base import Family, Rule, numbered
from .encoders import encoder

_BLOCK = r"(?:double|single)_stream_blocks_\d+_block_"

HIDREAM = Family(
    name="hidream",
    title="HiDream-I1",
    blocks=("TE", "IN", *numbered("D", 16), *numbered("S", 32), "OUT"),
    rules=(
        Rule(r"double_stream_blocks_(\d+)_", "D{:02}"),
        Rule(r"single_stream_blocks_(\d+)_", "S{:02}"),
        Rule(r"(?:[tpx]_embedder|caption_projection)_", "IN"),
        Rule(r"final_layer_", "OUT"),
    ),
    encoders=(
        encoder("clip_l", "TE", "te1"),
        encoder("clip_g", "TE", "te2"),
        encoder("t5", "TE", "te3"),
        encoder("llama", "TE", "te", "te4"),
    ),
    layers={
        rf"{_BLOCK}(?:attn1_(?:to_(?:[qkv]|out)|[qk]_rms_norm)(?:_t)?|adaLN_modulation_1)": 2560,
        rf"{_BLOCK}ff_(?:i|t|i_experts_\d|i_shared_experts)_w[13]|{_BLOCK}ff_i_gate": 2560,
        rf"{_BLOCK}ff_(?:i|t|i_experts_\d)_w2": 6912,
        rf"{_BLOCK}ff_i_shared_experts_w2": 3584,
        r"[tp]_embedder_\w+|x_embedder_proj|caption_projection_\d+_linear": (),
        r"final_layer_(?:linear|adaLN_modulation_1)": 2560,
    },
    claims=r"hidream",
)
