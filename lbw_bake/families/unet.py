"""Stable Diffusion 1, 2, XL and the XL refiner: one UNet numbering for all, in diffusers and SGM names alike.

Source: the module names of instantiated diffusers models and the `input_blocks` numbering of the original
(SGM) models. Level i of the down path is 2 layers and a sampler, of the up path 3 layers: IN(3i+j+1), OUT(3i+j).
"""

from dataclasses import replace

from .base import OTHER, Family, Layers, Rule, numbered
from .encoders import encoder

_IN, _OUT = numbered("IN", 12), numbered("OUT", 12)
_SD = ("BASE", *_IN, "MID", *_OUT)
_SDXL = ("BASE", *_IN[:9], "MID", *_OUT[:9])

# The blocks that hold attention, which is all a plain LoRA touches.
_SD_ATTENTION = ("BASE", *(_IN[i] for i in (1, 2, 4, 5, 7, 8)), "MID", *_OUT[3:])
_SDXL_ATTENTION = ("BASE", *(_IN[i] for i in (4, 5, 7, 8)), "MID", *_OUT[:6])

_PARTS = r"(?:resnets|attentions|motion_modules)"
_RULES: tuple[Rule, ...] = (
    Rule(r"input_blocks_(\d+)_\d", "IN{:02}"),
    Rule(r"middle_block_\d", "MID"),
    Rule(r"output_blocks_(\d+)_\d", "OUT{:02}"),
    Rule(rf"down_blocks_(\d)_{_PARTS}_([01])_", "IN{:02}", lambda i, j: 3 * i + j + 1),
    Rule(r"down_blocks_(\d)_downsamplers_0", "IN{:02}", lambda i: 3 * i + 3),
    Rule(rf"mid_block_{_PARTS}_\d", "MID"),
    Rule(rf"up_blocks_(\d)_{_PARTS}_([012])_", "OUT{:02}", lambda i, j: 3 * i + j),
    Rule(r"up_blocks_(\d)_upsamplers_0", "OUT{:02}", lambda i: 3 * i + 2),
    Rule(r"conv_in$", "IN00"),
    Rule(r"(?:time_embed|time_embedding|label_emb|add_embedding|class_embedding)_", OTHER),
    Rule(r"(?:conv_norm_out|conv_out|out_0|out_2)$", OTHER),
)

_RESNET = "norm[12]|conv1|time_emb_proj|conv_shortcut|in_layers_[02]|emb_layers_1|out_layers_0|skip_connection"

# Hosts run the original network: what diffusers calls the parts of a resnet and a sampler, in their words.
_PART = r"(?:\b|(?<=_))"
_HOST_NAMES = {
    rf"{_PART}conv1": "in_layers_2",
    rf"{_PART}conv2": "out_layers_3",
    rf"{_PART}time_emb_proj": "emb_layers_1",
    rf"{_PART}conv_shortcut": "skip_connection",
    r"(?<=_resnets_\d_)norm1": "in_layers_0",
    r"(?<=_resnets_\d_)norm2": "out_layers_0",
    r"(?<=_downsamplers_0_)conv": "op",
}

# Factors of a convolution are often stored flat, and do not tell.
_KERNELS = {
    r".*_(?:conv\d?|op|in_layers_2|out_layers_3)|conv_in|conv_out|.*input_blocks_0_0|out_2": (3, 3),
    r".*_(?:conv_shortcut|skip_connection)": (1, 1),
}
# The attentions of the first models begin and end with a convolution, those of all others with a linear layer.
_SD1_KERNELS = {r"(?:.*_attentions_\d|(?:in|out)put_blocks_\d+_1|middle_block_1)_proj_(?:in|out)": (1, 1)}


def _layers(widths: tuple[int, ...], depths: tuple[int, ...], context: int, *more: str, motion: bool = False) -> Layers:
    """The layers of a UNet whose levels have these widths and this many transformer blocks in each attention."""
    deepest = len(widths) - 1
    down: Layers = {f"{i}_downsamplers_0_conv": () for i in range(deepest)}
    up: Layers = {f"{i}_upsamplers_0_conv": () for i in range(deepest)}
    inputs: Layers = {f"{3 * i + 3}_0_op": () for i in range(deepest)}
    outputs: Layers = {f"{3 * i + 2}_{2 if depths[deepest - i] else 1}_conv": () for i in range(deepest)}
    for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        level, sgm = _level(width, depth, context, motion)
        j = deepest - i
        down[f"{i}_"] = up[f"{j}_"] = level
        inputs[f"(?:{3 * i + 1}|{3 * i + 2})_"] = outputs[f"(?:{3 * j}|{3 * j + 1}|{3 * j + 2})_"] = sgm
    level, sgm = _level(widths[-1], max(depths), context, motion)
    ends = r"conv_in|input_blocks_0_0|time_embed(?:ding_linear)?_\d|conv_norm_out|conv_out|out_[02]"
    return {
        "|".join((ends, *more)): (),
        "down_blocks_": down,
        "up_blocks_": up,
        "mid_block_": level,
        "input_blocks_": inputs,
        "output_blocks_": outputs,
        "middle_block_": sgm,
    }


def _level(width: int, depth: int, context: int, motion: bool) -> tuple[Layers, Layers]:
    """The layers of a level's blocks as diffusers names them, and as the original (SGM) models do."""
    # LoHa and LoKr store a convolution as channels x kernel.
    resnet: Layers = {"conv2|out_layers_3": (width, 9 * width), _RESNET: ()}
    block: Layers = {
        r"attn2_to_[kv]": context,
        r"attn[12]_to_\w+|ff_net_0_proj": width,
        "ff_net_2": 4 * width,
        r"norm\d": (),
    }
    attention: Layers = {rf"transformer_blocks_[0-{depth - 1}]_": block, "proj_(?:in|out)": width, "norm": ()}
    diffusers: Layers = {r"resnets_\d_": resnet}
    sgm: Layers = {"[02]_": resnet}
    if depth:
        diffusers[r"attentions_\d_"] = sgm["1_"] = attention
    if motion:
        diffusers[r"motion_modules_\d_"] = {r"\w+_to_\w+": width, r"\w+": ()}
    return diffusers, sgm


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    blocks=_SD,
    rules=_RULES,
    encoders=(encoder("clip_l", "BASE", "te", "te1"),),
    denoiser="unet",
    layouts=(_SD_ATTENTION, _SD),
    relatives=(_SDXL_ATTENTION, _SDXL),
    layers=_layers((320, 640, 1280, 1280), (1, 1, 1, 0), 768, motion=True),
    base_model="sd_v1",
    host_names=_HOST_NAMES,
    kernels=_KERNELS | _SD1_KERNELS,
    claims=r"sd_v1|stable-diffusion-v1",
)

SD2 = replace(
    SD1,
    name="sd2",
    title="Stable Diffusion 2.x",
    encoders=(encoder("clip_h", "BASE", "te", "te1"),),
    layers=_layers((320, 640, 1280, 1280), (1, 1, 1, 0), 1024, r"class_embedding_\w+"),
    base_model="sd_v2",
    kernels=_KERNELS,
    claims=r"sd_v2|stable-diffusion-v2",
    preset_families=("sd1",),
)

_SIZES = r"(?:label_emb|add_embedding)_\w+"  # SDXL is told the picture's size

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    blocks=_SDXL,
    rules=_RULES,
    encoders=(encoder("clip_l", "BASE", "te1"), encoder("clip_g", "BASE", "te2")),
    denoiser="unet",
    layouts=(_SDXL_ATTENTION, _SDXL),
    relatives=(_SD_ATTENTION, _SD),
    layers=_layers((320, 640, 1280), (0, 2, 10), 2048, _SIZES, motion=True),
    base_model="sdxl_base_v1-0",
    host_names=_HOST_NAMES,
    kernels=_KERNELS,
    claims=r"sdxl_|stable-diffusion-xl-v1-base",
)

SDXL_REFINER = Family(
    name="sdxl_refiner",
    title="Stable Diffusion XL refiner",
    blocks=_SD,
    rules=_RULES,
    encoders=(encoder("clip_g", "BASE", "te", "te2"),),
    denoiser="unet",
    layouts=(_SD,),
    relatives=(_SD_ATTENTION, _SDXL_ATTENTION, _SDXL),
    layers=_layers((384, 768, 1536, 1536), (0, 4, 4, 0), 1280, _SIZES),
    host_names=_HOST_NAMES,
    kernels=_KERNELS,
    claims=r"stable-diffusion-xl-v1-refiner",
)
