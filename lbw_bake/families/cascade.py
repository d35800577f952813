"""Stable Cascade's prior (stage C): two levels of groups, each a residual, a timestep and an attention module.

Source: diffusers' StableCascadeUNet. The paths count modules, so three of them are a group: 8 + 24 on the way down,
24 + 8 on the way up.
"""

from collections.abc import Callable

from .base import OTHER, Family, Rule, numbered
from .encoders import encoder

_STACK = (*numbered("D", 32), *numbered("U", 32))
_BLOCKS = ("TE", "IN", *_STACK, "OUT")
_GROUPS = {"down": (8, 24), "up": (24, 8)}


def _group(side: str) -> Callable[[int, int], int]:
    sizes = _GROUPS[side]
    return lambda level, at: level * sizes[0] + at // 3 if at // 3 < sizes[level] else len(_STACK)


_MODULE = r"(?:down|up)_blocks_[01]_\d+_"

CASCADE = Family(
    name="cascade",
    title="Stable Cascade prior",
    blocks=_BLOCKS,
    rules=(
        Rule(r"down_blocks_([01])_(\d+)_", "D{:02}", _group("down")),
        Rule(r"up_blocks_([01])_(\d+)_", "U{:02}", _group("up")),
        Rule(r"(?:clip_\w+_mapper|embedding_1)(?:_|$)", "IN"),
        Rule(r"clf_", "OUT"),
        Rule(r"(?:down_downscalers|up_upscalers)_", OTHER),
    ),
    encoders=(encoder("clip_g", "TE", "te", "te1", "prior_te"),),
    denoiser="unet",
    layouts=(_BLOCKS, _STACK),
    layers={
        rf"{_MODULE}(?:kv_mapper_1|attention_(?:attn_)?(?:to_(?:[qkv]|out_0)|out_proj))": 2048,
        rf"{_MODULE}channelwise_4": 8192,
        rf"{_MODULE}channelwise_0": (2048, 4096),
        rf"{_MODULE}(?:depthwise|norm|channelwise_\d|mapper(?:_crp|_sca)?)": (),
        r"clip_(?:txt|txt_pooled|img)_mapper|embedding_1|clf_1|(?:down_downscalers|up_upscalers)_\w+": (),
    },
    claims=r"stable-cascade",
)
