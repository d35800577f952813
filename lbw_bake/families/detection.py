"""How a file's family is told from its modules.

Candidates are the families with the most of the file's layers. Widths decide next, but for those that no candidate
has (a model of unusual size); then depth: a file that goes through one family's whole stack, and not through
another's, is no file of the other. The metadata comes last, because merged files keep that of one parent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..modules import Module
from .base import Family, Place


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a family.

    How many modules are layers of it, and for how many it has at least a place; the layers that have the width they
    should, and those that have not; and the blocks of its stack that have modules.
    """

    family: Family
    layers: int
    placed: int
    fitting: frozenset[str]
    misfitting: frozenset[str]
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
    usual = frozenset[str]().union(*(found.fitting for found in candidates))
    candidates = _those(candidates, lambda found: not found.misfitting & usual)
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
    expected = {module.name: family.widths_of(module.component, module.path) for module, _ in placed}
    layers = sum(usual is not None for usual in expected.values())
    told = {name: widths[name] in usual for name, usual in expected.items() if usual and widths[name] is not None}
    fitting = frozenset(name for name, fits in told.items() if fits)
    occupied = frozenset(place.block for _, place in placed)
    return Evidence(
        family, layers, len(placed), fitting, frozenset(told) - fitting, occupied.intersection(family.stack)
    )
