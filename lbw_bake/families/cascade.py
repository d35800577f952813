"""Stable Cascade's prior (stage C): two levels of groups, each a residual, a timestep and an attention module.

Source: diffusers' StableCascadeUNet. The paths count modules, so three of them are a group: 8 + 24 on the way down,
24 + 8 on the way up.
"""

from .base import OTHER, Family, Rule, numbered
from .encoders import encoder

_MODULE = r"(?:down|up)_blocks_[01]_\d+_"

CASCADE = Family(
    name="cascade",
    title="Stable Cascade prior",
    blocks=("TE", "IN", *numbered("D", 32), *numbered("U", 32), "OUT"),
    rules=(
        Rule(r"down_blocks_0_(1?\d|2[0-3])_", "D{:02}", lambda at: at // 3),
        Rule(r"down_blocks_1_(\d+)_", "D{:02}", lambda at: 8 + at // 3),
        Rule(r"up_blocks_0_([1-6]?\d|7[01])_", "U{:02}", lambda at: at // 3),
        Rule(r"up_blocks_1_(\d+)_", "U{:02}", lambda at: 24 + at // 3),
        Rule(r"(?:clip_\w+_mapper|embedding_1)(?:_|$)", "IN"),
        Rule(r"clf_", "OUT"),
        Rule(r"(?:down_downscalers|up_upscalers)_", OTHER),
    ),
    encoders=(encoder("clip_g", "TE", "te", "te1", "prior_te"),),
    denoiser="unet",
    layers={
        rf"{_MODULE}(?:kv_mapper_1|attention_(?:attn_)?(?:to_(?:[qkv]|out_0)|out_proj))": 2048,
        rf"{_MODULE}channelwise_4": 8192,
        rf"{_MODULE}channelwise_0": (2048, 4096),
        rf"{_MODULE}(?:depthwise|norm|channelwise_\d|mapper(?:_crp|_sca)?)": (),
        r"clip_(?:txt|txt_pooled|img)_mapper|embedding_1|clf_1|(?:down_downscalers|up_upscalers)_\w+": (),
    },
    claims=r"stable-cascade",
)
