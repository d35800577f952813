"""Stable Diffusion 1, 2 and XL: one UNet numbering for all, in diffusers and SGM names alike.

Source: the module names of instantiated diffusers models and the `input_blocks` numbering of the original
(SGM) models. Level i of the down path is 2 layers and a sampler, of the up path 3 layers: IN(3i+j+1), OUT(3i+j).
"""

from .base import OTHER, Family, Rule, absent, blocks, encoder, numbered, widths

_IN, _OUT = numbered("IN", 12), numbered("OUT", 12)
_SD = ("BASE", *_IN, "MID", *_OUT)
_SDXL = ("BASE", *_IN[:9], "MID", *_OUT[:9])

# The blocks that hold attention, which is all a plain LoRA touches.
_SD_ATTENTION = ("BASE", *(_IN[i] for i in (1, 2, 4, 5, 7, 8)), "MID", *_OUT[3:])
_SDXL_ATTENTION = ("BASE", *(_IN[i] for i in (4, 5, 7, 8)), "MID", *_OUT[:6])

_LAYER = r"(?:resnets|attentions|motion_modules)"
_RULES: tuple[Rule, ...] = (
    blocks(r"input_blocks_(\d+)_\d", "IN{:02}"),
    blocks(r"middle_block_\d", "MID"),
    blocks(r"output_blocks_(\d+)_\d", "OUT{:02}"),
    blocks(rf"down_blocks_(\d)_{_LAYER}_([01])_", "IN{:02}", lambda i, j: 3 * i + j + 1),
    blocks(r"down_blocks_(\d)_downsamplers_0", "IN{:02}", lambda i: 3 * i + 3),
    blocks(rf"mid_block_{_LAYER}_\d", "MID"),
    blocks(rf"up_blocks_(\d)_{_LAYER}_([012])_", "OUT{:02}", lambda i, j: 3 * i + j),
    blocks(r"up_blocks_(\d)_upsamplers_0", "OUT{:02}", lambda i: 3 * i + 2),
    blocks(r"conv_in$", "IN00"),
    blocks(r"(?:time_embed|time_embedding|label_emb|add_embedding|class_embedding)_", OTHER),
    blocks(r"(?:conv_norm_out|conv_out|out_0|out_2)$", OTHER),
)

_CONTEXT = r".*_attn2_(?:processor_)?to_[kv]"
_TEXT = r".*_(?:self_attn_(?:to_)?[qkv](?:_proj)?|mlp_fc1)"
_ATTENTION = r"(?:proj_in|transformer_blocks_.*)"
# SD 1 and 2 have attention of depth 1, in all levels but the deepest, which is where SDXL has most of it.
_SD_SHAPE = (
    absent(r".*_transformer_blocks_[1-9].*"),
    absent(rf"(?:up_blocks_0_attentions_\d|output_blocks_[012]_1)_{_ATTENTION}"),
    absent(r"(?:label_emb|add_embedding)_.*"),
    absent(r".*", components="te2|clip_g"),
)

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    blocks=_SD,
    rules=(*_RULES, encoder("clip_l", "BASE", "te|te1|clip_l")),
    layouts=(_SD_ATTENTION, _SD),
    relatives=(_SDXL_ATTENTION, _SDXL),
    evidence=(*_SD_SHAPE, widths(_CONTEXT, 768), widths(_TEXT, 768, components="te|te1|clip_l")),
    base_model="sd_v1",
    versions="sd_v1",
    architectures="stable-diffusion-v1",
)

SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    blocks=_SD,
    rules=(*_RULES, encoder("clip_h", "BASE", "te|te1")),
    layouts=(_SD_ATTENTION, _SD),
    relatives=(_SDXL_ATTENTION, _SDXL),
    evidence=(*_SD_SHAPE, widths(_CONTEXT, 1024), widths(_TEXT, 1024, components="te|te1")),
    base_model="sd_v2",
    versions="sd_v2",
    architectures="stable-diffusion-v2",
    preset_families=("sd1",),
)

SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    blocks=_SDXL,
    rules=(*_RULES, encoder("clip_l", "BASE", "te1|clip_l"), encoder("clip_g", "BASE", "te2|clip_g", r"(?!encoder_)")),
    layouts=(_SDXL_ATTENTION, _SDXL),
    relatives=(_SD_ATTENTION, _SD),
    evidence=(
        absent(
            rf"(?:(?:down_blocks_0|up_blocks_2)_attentions_\d|(?:input_blocks_[12]|output_blocks_[678])_1)_{_ATTENTION}"
        ),
        absent(r"down_blocks_2_downsamplers.*|up_blocks_2_upsamplers.*"),
        widths(_CONTEXT, 2048),
        widths(_TEXT, 768, components="te1|clip_l"),
        widths(_TEXT, 1280, components="te2|clip_g"),
    ),
    base_model="sdxl_base_v1-0",
    versions="sdxl_",
    architectures="stable-diffusion-xl",
)
