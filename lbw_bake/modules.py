"""Modules: the tensors of a file, grouped into the layers they adapt.

Grouping needs no family: tensors with the same stem are one module, and the roles it has tell its algorithm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .algorithms import MAGNITUDES, RANKED, Algorithm, Shape, algorithm_of
from .keys import SHARED, parse_key
from .tensorfile import Tensor


@dataclass(frozen=True, slots=True)
class Module:
    """One adapted layer: its name in the file, raw component and path (see `Key`), and its tensors by role.

    A role is usually one tensor; trainers that split a fused layer write several (`oft_blocks.0`, `.1`).
    """

    name: str
    component: str
    path: str
    algorithm: Algorithm
    tensors: Mapping[str, tuple[Tensor, ...]]

    @property
    def all_tensors(self) -> list[Tensor]:
        """The module's tensors as they lie in the file."""
        return sorted((tensor for group in self.tensors.values() for tensor in group), key=lambda tensor: tensor.start)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Role -> shape of its first tensor."""
        return {role: group[0].shape for role, group in self.tensors.items()}

    @property
    def rank(self) -> int | None:
        """Inner dimension of the factored update, None where there is none."""
        shapes = self.shapes
        # GLoRA's factors stood the other way round before LyCORIS 2.0.
        sizes = (shapes[role][:2] if role == "a2" else shapes[role][:1] for role in RANKED if shapes.get(role))
        return next(map(min, sizes), None)

    @property
    def width(self) -> int | None:
        """Input features of the adapted layer, None where the shapes do not tell.

        Convolutions count input channels, except LoHa without Tucker factors, which stores channels x kernel.
        """
        shapes = self.shapes
        for role in ("down", "hada_w1_b", "diff", "a2"):
            if len(shapes.get(role, ())) > 1:
                return max(shapes[role][:2]) if role == "a2" else shapes[role][1]
        left = shapes.get("lokr_w1") or shapes.get("lokr_w1_b", ())
        right = shapes.get("lokr_w2") or shapes.get("lokr_w2_b", ())
        return left[1] * right[1] if len(left) > 1 and len(right) > 1 else None

    @property
    def decomposed(self) -> bool:
        """Whether the module has a DoRA magnitude."""
        return any(role in self.tensors for role in MAGNITUDES)

    @property
    def linear(self) -> bool:
        """Whether any weight can be baked exactly without the base model."""
        return self.algorithm.exact and not self.decomposed

    @property
    def algorithm_name(self) -> str:
        """The algorithm as people call it, DoRA included: `lora`, `loha+dora`."""
        return f"{self.algorithm.name}+dora" if self.decomposed else self.algorithm.name


@dataclass(frozen=True, slots=True)
class Grouping:
    """All tensors of a file: in modules, shared by many modules, or not understood."""

    modules: tuple[Module, ...]
    shared: tuple[Tensor, ...]
    unknown: tuple[Tensor, ...]


def group_modules(tensors: Iterable[Tensor]) -> Grouping:
    """Group tensors into modules, in file order of each module's first tensor."""
    shared: list[Tensor] = []
    unknown: list[Tensor] = []
    identities: dict[str, tuple[str, str]] = {}
    by_stem: dict[str, dict[str, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    for tensor in tensors:
        if SHARED.fullmatch(tensor.name):
            shared.append(tensor)
        elif (key := parse_key(tensor.name)) is None:
            unknown.append(tensor)
        else:
            identities[key.stem] = (key.component, key.path)
            by_stem[key.stem][key.role].append(tensor)
    modules: list[Module] = []
    for stem, roles in by_stem.items():
        if (algorithm := algorithm_of(frozenset(roles))) is None:
            unknown.extend(tensor for group in roles.values() for tensor in group)
        else:
            groups = {role: tuple(group) for role, group in roles.items()}
            modules.append(Module(stem, *identities[stem], algorithm, groups))
    return Grouping(tuple(modules), tuple(shared), tuple(unknown))
