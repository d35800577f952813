"""Text encoders: what a family's are, by the layers they have.

Source: the module names of transformers' models, the widths of their published configurations. Trainers number the
encoders of a pipeline (`te1`, `te2`), so one spelling means different ones per family; the layers tell which it is.
"""

from __future__ import annotations

from .base import Encoder, Layers


def encoder(name: str, block: str, *ordinals: str) -> Encoder:
    """A text encoder, and which of a pipeline's it is (`te2`; `te` where it is the only one)."""
    own = "t5" if name in ("umt5", "pile_t5", "mt5") else name
    return Encoder(name, block, (*ordinals, own), _ENCODERS[name])


def _clip(width: int) -> Layers:
    return {
        r"(?:text_model_)?encoder_layers_\d+_(?:self_attn_(?:\w+_proj|to_\w+)|mlp_fc1)": width,
        r"(?:text_model_)?encoder_layers_\d+_mlp_fc2": 4 * width,
        r"(?:text_model_)?(?:encoder_layers_\d+_layer_norm\d|embeddings_\w+|final_layer_norm)|text_projection": (),
    }


def _t5(width: int, inner: int) -> Layers:
    layer = r"(?:encoder_)?block_\d+_layer_\d+_"
    return {
        rf"{layer}(?:SelfAttention_[qkv]|DenseReluDense_wi(?:_\d)?)": width,
        rf"{layer}DenseReluDense_wo": inner,
        rf"{layer}\w+|shared|encoder_embed_tokens|(?:encoder_)?final_layer_norm": (),
    }


def _decoder(width: int, inner: int) -> Layers:
    model = r"(?:(?:language_)?model_)*"
    return {
        rf"{model}layers_\d+_(?:self_attn_[qkv]_proj|mlp_(?:gate|up)_proj)": width,
        rf"{model}layers_\d+_mlp_down_proj": inner,
        rf"{model}(?:layers_\d+_\w+|embed_tokens|norm)": (),
    }


_BERT = r"(?:bert_)?encoder_layer_\d+_"

_ENCODERS: dict[str, Layers] = {
    "clip_l": _clip(768),
    "clip_h": _clip(1024),
    "clip_g": _clip(1280),
    "t5": _t5(4096, 10240),
    "umt5": _t5(4096, 10240),
    "pile_t5": _t5(2048, 5120),
    "mt5": _t5(2048, 5120),
    "byt5": _t5(1472, 3584),
    "bert": {
        rf"{_BERT}(?:attention_\w+|intermediate_dense)": 1024,
        rf"{_BERT}output_dense": 4096,
        r"(?:bert_)?(?:encoder_layer|embeddings|pooler)_\w+": (),
    },
    "gemma2_2b": _decoder(2304, 9216),
    "gemma3_12b": _decoder(3840, 15360),
    "llama": _decoder(4096, 14336),
    "qwen3_06b": _decoder(1024, 3072),
    "qwen3_4b": _decoder(2560, 9728),
    "qwen3_8b": _decoder(4096, 12288),
    "qwen2_5_vl": _decoder(3584, 18944),
    "qwen3_vl": _decoder(2560, 9728),
    "qwen3_vl_8b": _decoder(4096, 12288),
    "mistral": _decoder(5120, 32768),
}
