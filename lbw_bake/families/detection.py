"""How a file's family is told from its modules.

Candidates are the families with the most of the file's layers. Their widths decide next, unless they are those of no
candidate at all (a model of unusual size); then depth: a file that goes through one family's whole stack, and not
through another's, is no file of the other. The metadata comes last, because merged files keep that of one parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..modules import Module
from .base import Family, Place


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a family.

    How many modules are layers of it, and for how many it has at least a place; how many of these layers have the
    width they should, and how many have not; and the blocks of its stack that have modules.
    """

    family: Family
    layers: int
    placed: int
    fitting: int
    misfitting: int
    occupied: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether the stack is complete, save for the lesser kind of blocks where it is missing altogether."""
        kinds = {_kind(block) for block in self.occupied}
        complete = all(block in self.occupied for block in self.family.stack if _kind(block) in kinds)
        return complete and 2 * len(self.occupied) > len(self.family.stack)


def _kind(block: str) -> str:
    return block.rstrip("0123456789")


def candidates_among(
    families: Iterable[Family], modules: Sequence[Module], metadata: Mapping[str, str]
) -> tuple[Family, ...]:
    """The families these modules may belong to, in the order given; empty if none has a place for any of them."""
    candidates = _with_most_layers(families, modules)
    if any(found.fitting and not found.misfitting for found in candidates):
        candidates = [found for found in candidates if not found.misfitting]
    candidates = _those(candidates, lambda found: found.whole)
    candidates = _those(candidates, lambda found: found.family.claimed_by(metadata))
    return tuple(found.family for found in candidates)


def _those(candidates: list[Evidence], speaks_for: Callable[[Evidence], bool]) -> list[Evidence]:
    return [found for found in candidates if speaks_for(found)] or candidates


def _with_most_layers(families: Iterable[Family], modules: Sequence[Module]) -> list[Evidence]:
    widths = {module.name: module.width for module in modules}
    placed = [(family, _placed(family, modules)) for family in families]
    found: list[Evidence] = []
    for family, places in sorted(placed, key=lambda item: -len(item[1])):
        if found and len(places) < max(evidence.layers for evidence in found):
            break  # it cannot have more layers than places
        found.append(_evidence(family, places, widths))
    most = max(((evidence.layers, evidence.placed) for evidence in found), default=(0, 0))
    return [evidence for evidence in found if evidence.placed and (evidence.layers, evidence.placed) == most]


def _placed(family: Family, modules: Iterable[Module]) -> list[tuple[Module, Place]]:
    return [(module, place) for module in modules if (place := family.place(module))]


def _evidence(family: Family, placed: list[tuple[Module, Place]], widths: Mapping[str, int | None]) -> Evidence:
    layers = fitting = misfitting = 0
    for module, _ in placed:
        expected = family.widths_of(module.component, module.path)
        if expected is None:
            continue
        layers += 1
        width = widths[module.name]
        if expected and width is not None:
            fitting += width in expected
            misfitting += width not in expected
    occupied = {place.block for _, place in placed}
    return Evidence(family, layers, len(placed), fitting, misfitting, frozenset(occupied.intersection(family.stack)))
