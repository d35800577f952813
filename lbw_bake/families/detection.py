"""How a file's family is told from its modules.

Candidates are the families with the most of the file's layers. Widths decide next, but for those that no candidate
has (a model of unusual size); then depth: a file that goes through one family's whole stack, and not through
another's, is no file of the other. The metadata comes last, because merged files keep that of one parent.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..modules import Module
from .base import Family, Place, letter_of

# Modules a family is tried on before it is tried on all: most families know none of them.
_SAMPLE = 16

# No transformer has narrower layers in its stack: fewer input features say nothing (UNets are known by their names).
_NARROW = 1024

# A stack of fewer blocks is a part that somebody chose to train.
_FEW = 8


@dataclass(frozen=True, slots=True)
class Evidence:
    """What speaks for a family.

    `known` is how many modules are layers of it, and for how many it has at least a place; then the names of layers
    that have the width they should, and of those that have not; and the blocks of its stack that have modules.
    """

    family: Family
    known: tuple[int, int]
    fitting: frozenset[str]
    misfitting: frozenset[str]
    occupied: frozenset[str]

    @property
    def whole(self) -> bool:
        """Whether the stack is complete, save for the lesser kind of blocks where it is missing altogether."""
        kinds = {letter_of(block) for block in self.occupied}
        complete = all(block in self.occupied for block in self.family.stack if letter_of(block) in kinds)
        return complete and 2 * len(self.occupied) > len(self.family.stack)


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
    sample = modules[:: len(modules) // _SAMPLE or 1]
    strange = {family: sum(family.place(module) is None for module in sample) for family in _asked(families, sample)}
    fewest = min(strange.values())
    # Their layers are compiled only for those that know the most places.
    likely = [family for family in strange if strange[family] == fewest]
    for family in likely:
        strange[family] = sum(family.widths_of(module.component, module.path) is None for module in sample)
    found: dict[Family, Evidence] = {}
    most = (0, 0)
    for family in sorted(strange, key=lambda family: strange[family]):
        if len(modules) - strange[family] < most[0]:
            break  # it cannot have as many layers
        found[family] = _evidence(family, placed_by(family, modules), widths)
        most = max(most, found[family].known)
    return [found[family] for family in strange if most > (0, 0) and family in found and found[family].known == most]


def _asked(families: Iterable[Family], modules: Sequence[Module]) -> list[Family]:
    """UNets alone if these modules are layers of one, and some in its blocks: no transformer has such names."""
    families = list(families)
    unets = [family for family in families if family.denoiser == "unet"]
    for family in unets:
        if all(family.widths_of(module.component, module.path) is not None for module in modules):
            blocks = {place.block for _, place in placed_by(family, modules)}
            return families if blocks.isdisjoint(family.stack) else unets
    return families


def resembles(family: Family, modules: Iterable[Module]) -> bool:
    """Whether modules look like the family's own, not like those of a network nobody described that has similar names.

    Half of those it has a place for are its layers, and one in eight has the width that its layer has: networks of
    unusual size differ in that, but few in all of it.
    """
    placed = [module for module, _ in placed_by(family, modules)]
    layers = [(module.width or 0, family.widths_of(module.component, module.path)) for module in placed]
    known = [(width, usual) for width, usual in layers if usual is not None]
    fitting = [width in usual for width, usual in known if usual and width >= _NARROW]
    return 2 * len(known) >= len(placed) and 8 * sum(fitting) >= len(fitting)


def stops_short(family: Family, blocks: Collection[str]) -> str:
    """The last block of a stack that is whole up to there and ends early, as that of a smaller model; empty if none."""
    if family.denoiser == "unet":  # the names of its layers tell its size
        return ""
    for letter in dict.fromkeys(map(letter_of, family.stack)):
        stack = [block for block in family.stack if letter_of(block) == letter]
        present = [block in blocks for block in stack]
        count = sum(present)
        if _FEW <= count <= 0.75 * len(stack) and all(present[:count]):
            return stack[count - 1]
    return ""


def placed_by(family: Family, modules: Iterable[Module]) -> list[tuple[Module, Place]]:
    """The modules a family knows, with their places."""
    return [(module, place) for module in modules if (place := family.place(module))]


def _evidence(family: Family, placed: list[tuple[Module, Place]], widths: Mapping[str, int | None]) -> Evidence:
    expected = {module.name: family.widths_of(module.component, module.path) for module, _ in placed}
    layers = sum(usual is not None for usual in expected.values())
    told = {name: widths[name] in usual for name, usual in expected.items() if usual and widths[name] is not None}
    fitting = frozenset(name for name, fits in told.items() if fits)
    occupied = frozenset(place.block for _, place in placed)
    known = (layers, len(placed))
    return Evidence(family, known, fitting, frozenset(told) - fitting, occupied.intersection(family.stack))
