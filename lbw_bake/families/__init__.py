"""The table of model families, the most usual first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import UnknownFamilyError, nearest
from ..modules import Module
from .auraflow import AURAFLOW
from .base import OTHER, Family, Kernel, Layout, Place, letter_of
from .cascade import CASCADE
from .cosmos import ANIMA, COSMOS
from .detection import candidates_among, placed_by, resembles, stops_short
from .flux import CHROMA, FLUX
from .flux2 import FLUX2_DEV, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B
from .flux3 import FLUX3
from .hidream import HIDREAM
from .hunyuan import HUNYUAN_IMAGE, HUNYUAN_VIDEO, HUNYUAN_VIDEO_1_5
from .hunyuan_dit import HUNYUAN_DIT
from .ideogram4 import IDEOGRAM4
from .krea2 import KREA2
from .ltx import LTX_2, LTX_2B, LTX_13B
from .lumina import LUMINA2, Z_IMAGE
from .pixart import PIXART
from .qwen_image import QWEN_IMAGE, QWEN_IMAGE_2_1
from .sd3 import SD3, SD3_LARGE
from .unet import SD1, SD2, SDXL, SDXL_REFINER
from .wan import WAN_1_3B, WAN_5B, WAN_14B

__all__ = [
    "FAMILIES",
    "OTHER",
    "Family",
    "Kernel",
    "Layout",
    "Place",
    "detect_families",
    "family_named",
    "letter_of",
    "placed_by",
    "resembles",
    "stops_short",
]

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(SD1, SD2, SDXL, FLUX, WAN_14B, QWEN_IMAGE, Z_IMAGE),
        *(FLUX2_KLEIN_9B, FLUX2_KLEIN_4B, FLUX2_DEV, FLUX3, CHROMA, HUNYUAN_VIDEO),
        *(SD3, SD3_LARGE, WAN_1_3B, WAN_5B, LTX_2, LTX_2B, LTX_13B, ANIMA, HIDREAM, KREA2, QWEN_IMAGE_2_1, IDEOGRAM4),
        *(LUMINA2, PIXART, AURAFLOW, CASCADE, SDXL_REFINER),
        *(HUNYUAN_VIDEO_1_5, HUNYUAN_IMAGE, HUNYUAN_DIT, COSMOS),
    )
}


def family_named(name: Family | str) -> Family:
    """The family of this name, or itself. Raises UnknownFamilyError with the nearest name."""
    if isinstance(name, Family):
        return name
    try:
        return FAMILIES[name.lower()]
    except KeyError:
        raise UnknownFamilyError(f"unknown family {name!r}", nearest(name, FAMILIES)) from None


def detect_families(modules: Sequence[Module], metadata: Mapping[str, str]) -> tuple[Family, ...]:
    """The families these modules may belong to, most usual first; empty if none has a place for any of them."""
    return candidates_among(FAMILIES.values(), modules, metadata)
