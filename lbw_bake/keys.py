"""Keys: a tensor name taken apart, once, into stem, component, path and role.

Dots of the path become underscores: every spelling reaches that form, while the way back would need the module
tree of each model. Two tables, prefixes and roles, say all there is to know; a new spelling is a row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from .algorithms import ROLES

DENOISER = "denoiser"

# Prefix -> component, the denoiser without any. Text encoders are ordinals until the family says what they are: `te2`
# is CLIP-G in SDXL and T5 in Flux. First match wins.
_PREFIXES: dict[str, str] = {
    r"(?:lora|oft)_(?:unet|transformer|prior_unet)_+": DENOISER,
    r"(?:lora|oft)_te_+": "te",
    r"(?:lora|oft)_prior_te_+": "prior_te",
    **{rf"(?:lora|oft)_te{n}_+": f"te{n}" for n in (1, 2, 3, 4)},
    r"lycoris_+": DENOISER,
    r"text_encoder\.": "te1",
    **{rf"text_encoder_{n}\.": f"te{n}" for n in (2, 3, 4)},
    **{rf"(?:text_encoders\.)?{clip}\.(?:transformer\.)?": clip for clip in ("clip_l", "clip_g", "clip_h")},
    r"(?:text_encoders\.(?:um)?)?t5(?:xxl)?\.(?:transformer\.)?": "t5",
    r"text_encoders\.\w+\.(?:transformer\.)?(?:model\.)?": "te",
    r"(?:base_model\.model\.)?(?=text_model\.|encoder\.block\.|encoder\.layers\.\d+\.(?:self_attn|mlp)\.)": "te",
    r"(?:model\.)?diffusion_model\.|unet\.|transformer\.|base_model\.model\.": DENOISER,
}
_PREFIX = re.compile(
    "(?:" + "|".join(f"(?P<p{i}>{prefix})" for i, prefix in enumerate(_PREFIXES)) + r")(?:base_model\.model\.)?"
)
_COMPONENTS = {f"p{i}": component for i, component in enumerate(_PREFIXES.values())}

# Trainers that flatten the path of a module to underscores: the first dot ends it.
_FLATTENED = ("lora_", "oft_", "lycoris_")

_ROWS = [(role, spelling) for role, spellings in ROLES.items() for spelling in spellings]
_ADAPTER = r"(?P<adapter{}>\.(?!(?:weight|bias)\Z)[^.]+)?"
_SUFFIX = re.compile(
    "|".join(rf"(?P<r{i}>{spelling.replace('*', _ADAPTER.format(i))}\Z)" for i, (_, spelling) in enumerate(_ROWS))
)
_ROLE_OF = {f"r{i}": role for i, (role, _) in enumerate(_ROWS)}
_LONGEST_SUFFIX = 4  # dotted parts, the one before the suffix included
# Characters of a name that is taken apart; models' longest have 150. Bounds the work of every pattern below.
LONGEST_NAME = 512

# How many names, and how many layers, are remembered: files of a folder have the same ones.
REMEMBERED = 1 << 13

# The first diffusers files name the processor of an attention on the way to its layers -> what all others call these.
_RENAMED = {"_processor_to_out": "_to_out_0", "_processor_to_": "_to_"}

# Tensors that belong to no module: embeddings bundled with a LoRA, the projections all VeRA modules share.
SHARED = re.compile(r"bundle_emb\..+|(?:.+\.)?vera_[AB]")


@dataclass(frozen=True, slots=True)
class Key:
    """What a tensor name says. Tensors of one module have the same `stem`, which is its name in the file.

    `component` is `denoiser`, a text encoder's name (`clip_l`, `clip_g`, `t5`) or its ordinal (`te`, `te1`, ...);
    `path` is the module's path in the model, dots flattened to underscores and layers named as most files name them;
    `role` a key of `ROLES`.
    """

    stem: str
    component: str
    path: str
    role: str


@cache
def _suffix(tail: str) -> tuple[int, str, str] | None:
    """Length, role and adapter name of the role suffix that ends this piece of a name."""
    match = _SUFFIX.search(tail)
    if match is None or match.lastgroup is None:
        return None
    adapter = next((text for name, text in match.groupdict().items() if text and name.startswith("adapter")), "")
    return len(match[0]), _ROLE_OF[match.lastgroup], adapter.removeprefix(".")


@lru_cache(maxsize=REMEMBERED)
def parse_key(name: str) -> Key | None:
    """Take a tensor name apart; None if it does not end in a role's spelling, or is longer than any model's."""
    if len(name) > LONGEST_NAME:
        return None
    dot = name.find(".") if name.startswith(_FLATTENED) else -1
    # Tails repeat from module to module, whole names do not: only the tail goes through the regular expression.
    tail = name[dot:] if dot > 0 else ".".join(name.rsplit(".", _LONGEST_SUFFIX)[-_LONGEST_SUFFIX:])
    found = _suffix(tail)
    if found is None or found[0] >= len(name):
        return None
    length, role, adapter = found
    stem = name[:-length]
    component, path = _layer(stem)
    named = adapter not in ("", "default")
    return Key(f"{stem}[{adapter}]" if named else stem, component, path, role)


@lru_cache(maxsize=REMEMBERED)
def _layer(stem: str) -> tuple[str, str]:
    """The component of a stem, and the path of its layer."""
    component, _, path = split_prefix(stem)
    path = path.replace(".", "_")
    for old, new in _RENAMED.items():
        path = path.replace(old, new)
    return component, path


def lora_stem(stem: str) -> str:
    """What a module is called once it is no OFT: `oft_unet_` is a prefix that only OFT has, and few loaders know."""
    return re.sub("^oft_", "lora_", stem)


def split_prefix(stem: str) -> tuple[str, str, str]:
    """The component a stem names, what of it says so, and the path that follows."""
    match = _PREFIX.match(stem)
    if match is None or match.lastgroup is None:
        return DENOISER, "", stem
    return _COMPONENTS[match.lastgroup], match[0], stem[match.end() :]
