"""Flux.1: 19 double-stream and 38 single-stream blocks between the embedders and the final layer.

Source: module names of the original (BFL) transformer and of diffusers' FluxTransformer2DModel; the 61 names are
those of the LoRA Block Weight extension.
"""

from .base import Family, absent, blocks, encoder, numbered, widths

_D, _S = numbered("D", 19), numbered("S", 38)
_BLOCKS = ("CLIP", "T5", "IN", *_D, *_S, "OUT")

FLUX = Family(
    name="flux",
    title="Flux.1",
    blocks=_BLOCKS,
    rules=(
        blocks(r"single_(?:transformer_)?blocks_(\d+)_", "S{:02}", name="transformer"),
        blocks(r"(?:double|(?:tran)?sformer)_blocks_(\d+)_", "D{:02}", name="transformer"),
        blocks(
            r"(?:(?:img|txt|time|vector|guidance)_in|time_text_embed|\w+_embedder)(?:_|$)", "IN", name="transformer"
        ),
        blocks(r"(?:final_layer|proj_out|norm_out)(?:_|$)", "OUT", name="transformer"),
        # T5 is a trainer's second encoder or its third; its path tells it from the CLIP-G of other families.
        encoder("t5", "T5", "te|te2|te3", r"encoder_block_|shared$"),
        encoder("t5", "T5", "t5|te3"),
        encoder("clip_l", "CLIP", "te1|clip_l"),
    ),
    layouts=(_BLOCKS, (*_D, *_S)),
    evidence=(
        widths(r"(?:double_blocks|transformer_blocks)_\d+_(?:img_attn_qkv|attn_to_[qkv])", 3072),
        widths(r"txt_in|context_embedder", 4096),
        widths(r".*_(?:self_attn_[qkv]_proj|mlp_fc1)", 768, components="te1|clip_l"),
        absent(r".*_(?:mlp_fc[12]|mod_linear|modulation_linear|ff_linear_in|to_qkv_mlp_proj)"),
    ),
    base_model="flux1",
    versions="flux1",
    architectures="flux-1",
)
