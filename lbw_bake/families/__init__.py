"""The table of model families, and how a file's family is told from its modules.

Candidates are the families that explain the most modules. Layers a family lacks rule it out; then the layers'
widths decide, unless they are those of no family at all (a model of unusual size); then the metadata, last,
because merged files keep the metadata of one parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..errors import UnknownFamilyError, nearest
from ..modules import Module
from .base import OTHER, Family, Layout, Place
from .flux import FLUX
from .unet import SD1, SD2, SDXL

__all__ = ["FAMILIES", "OTHER", "Family", "Layout", "Place", "detect_families", "family_named"]

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1, SD2, SDXL, FLUX)}


def family_named(name: str) -> Family:
    """The family of this name. Raises UnknownFamilyError with the nearest name."""
    try:
        return FAMILIES[name.lower()]
    except KeyError:
        raise UnknownFamilyError(f"unknown family {name!r}", nearest(name, FAMILIES)) from None


def detect_families(modules: Sequence[Module], metadata: Mapping[str, str]) -> tuple[Family, ...]:
    """The families these modules may belong to, most usual first; empty if none explains any of them."""
    explained = {
        name: sum(family.place(module) is not None for module in modules)
        for name, family in FAMILIES.items()
        if not any(evidence.excludes(module) for evidence in family.evidence for module in modules)
    }
    most = max(explained.values(), default=0)
    candidates = [FAMILIES[name] for name, count in explained.items() if count == most > 0]
    for fits in (_wide_enough(modules), lambda family: family.claimed_by(metadata)):
        candidates = [family for family in candidates if fits(family)] or candidates
    return tuple(candidates)


def _wide_enough(modules: Sequence[Module]) -> Callable[[Family], bool]:
    return lambda family: not any(evidence.misfits(module) for evidence in family.evidence for module in modules)
