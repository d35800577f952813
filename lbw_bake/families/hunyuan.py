"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage: Flux's two stacks under names of their own.

Source: diffusers' HunyuanVideo, HunyuanVideo15 and HunyuanImage transformers, the authors' module names, and the
Flux names that ComfyUI gives the first of them. Version 1.5 has no single-stream blocks. The small refiner of the
text (`individual_token_refiner`) comes before the stack.
"""

from .base import JOINT_ATTENTION, Family, Layers, Rule, numbered
from .encoders import encoder

_IN = (
    r"(?:img|txt|time|vector|guidance|byt5|vision)_in|context_embedder|image_embedder|x_embedder|clean_x_embedder"
    r"|time_embed|time_text_embed|time_guidance_embed|cond_type_embed\w*|image_projection"
)
_RULES: tuple[Rule, ...] = (
    Rule(r"single_(?:transformer_)?blocks_(\d+)_", "S{:02}"),
    Rule(r"(?:double|transformer)_blocks_(\d+)_", "D{:02}"),
    Rule(rf"(?:{_IN})(?:_|$)", "IN"),
    Rule(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT"),
)


def _layers(width: int, text_width: int, attention: str) -> Layers:
    double, joint = r"double_blocks_\d+_(?:img|txt)_", r"transformer_blocks_\d+_"
    refiner = r"(?:txt_in_individual_token_refiner_blocks|context_embedder_token_refiner_refiner_blocks)_\d_"
    return {
        rf"{double}(?:attn_(?:{attention}|proj|[qk]_norm)|mlp_(?:fc1|0)|mod_lin(?:ear)?)": width,
        rf"{double}mlp_(?:fc2|2)": 4 * width,
        rf"{joint}(?:{JOINT_ATTENTION}|ff(?:_context)?_net_0_proj|norm1(?:_context)?_linear)": width,
        rf"{joint}ff(?:_context)?_net_2": 4 * width,
        r"single_blocks_\d+_(?:linear1|modulation_lin(?:ear)?|[qk]_norm)": width,
        r"single_transformer_blocks_\d+_(?:attn_to_[qkv]|attn_norm_[qk]|proj_mlp|norm_linear)": width,
        r"single_blocks_\d+_linear2|single_transformer_blocks_\d+_proj_out": 5 * width,
        rf"{refiner}(?:self_attn_(?:qkv|proj)|attn_to_(?:[qkv]|out_0)|mlp_(?:fc1|0)|ff_net_0_proj)": width,
        rf"{refiner}(?:mlp_(?:fc2|2)|ff_net_2)": 4 * width,
        rf"{refiner}\w+|txt_in_[tc]_embedder_\w+|context_embedder_time_text_embed_\w+": (),
        r"txt_in_input_embedder|context_embedder_proj_in": text_width,
        r"img_in_proj|x_embedder_proj|(?:time|vector|guidance)_in_(?:mlp_[02]|(?:in|out)_layer)": (),
        r"time(?:_text|_guidance)?_embed_(?:timestep|text|guidance)_embedder_linear_\d": (),
        r"byt5_in_fc[123]|context_embedder_2_linear_\d": (),
        r"vision_in_proj_\d|image_embedder_linear_\d|cond_type_embed\w*": (),
        r"clean_x_embedder_\w+|image_projection_\w+": (),  # of FramePack, which is HunyuanVideo with a memory
        r"final_layer_(?:linear|adaLN_modulation_1)|proj_out|norm_out_linear": width,
    }


_STACK = (*numbered("D", 20), *numbered("S", 40))

HUNYUAN_VIDEO = Family(
    name="hunyuan_video",
    title="HunyuanVideo",
    blocks=("TE", "CLIP", "IN", *_STACK, "OUT"),
    rules=_RULES,
    encoders=(encoder("llama", "TE", "te", "te1"), encoder("clip_l", "CLIP", "te2")),
    layers=_layers(3072, 4096, "qkv"),
    base_model="hunyuan_video",
    claims=r"hunyuan[-_]video(?![-_]1[._]5)|framepack",
)

HUNYUAN_VIDEO_1_5 = Family(
    name="hunyuan_video_1_5",
    title="HunyuanVideo 1.5",
    blocks=("TE", "IN", *numbered("D", 54), "OUT"),
    rules=_RULES,
    encoders=(encoder("qwen2_5_vl", "TE", "te", "te1"), encoder("byt5", "TE", "te2")),
    layers=_layers(2048, 3584, "[qkv]"),
    base_model="hunyuan_video_1_5",
    claims=r"hunyuan[-_]video[-_]1[._]5",
)

HUNYUAN_IMAGE = Family(
    name="hunyuan_image",
    title="HunyuanImage 2.1",
    blocks=("TE", "IN", *_STACK, "OUT"),
    rules=_RULES,
    encoders=(encoder("qwen2_5_vl", "TE", "te", "te1"), encoder("byt5", "TE", "te2")),
    layers=_layers(3584, 3584, "qkv"),
    base_model="hunyuan-image-2.1",
    claims=r"hunyuan[-_]image",
)
