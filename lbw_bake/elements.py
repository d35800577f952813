"""Elements: what kind of layer a module adapts, by its path. The names are good words for `--element`."""

from __future__ import annotations

# Element -> parts of a path that mark it; the first match wins, so what is special comes before what is general.
# `attentions_` names a whole transformer of the UNet, hence the spelled-out attentions.
ELEMENTS: dict[str, tuple[str, ...]] = {
    "self_attn": ("self_attn", "SelfAttention"),
    "cross_attn": ("cross_attn",),
    "attn1": ("attn1",),
    "attn2": ("attn2",),
    "attn": ("attn", "Attention", "attention_"),
    "time_emb": ("time_emb", "emb_layers", "time_in", "timestep_embed", "time_text_embed"),
    "mlp": ("mlp", "DenseReluDense"),
    "ff": ("ff_", "ffn", "feed_forward"),
    "mod": ("_mod_", "modulation", "adaLN", "norm1_linear", "norm_linear", "norm1_context_linear", "norm_out_linear"),
    "emb": ("label_emb", "add_embedding", "_embed", "vector_in", "guidance_in", "img_in", "txt_in"),
    "linear": ("linear1", "linear2"),
    "norm": ("norm",),
    "proj": ("proj",),
    "conv": ("conv", "in_layers", "out_layers", "skip_connection", "_op", "input_blocks_0_0"),
}
OTHERS = "other"


def element_of(path: str) -> str:
    """The element of a module of this path, `other` if no part of it is known."""
    return next((name for name, parts in ELEMENTS.items() if any(part in path for part in parts)), OTHERS)
