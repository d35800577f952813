"""A plan: everything there is to know before a bake writes its first byte. It is what a dry run prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from .edits import Drop, Edit, Edits, edited
from .factors import ACTIONS
from .families import Place
from .lora import Lora
from .modules import Module
from .tensorfile import Header, Tensor, in_data_order
from .weights import FamilyWeights


@dataclass(frozen=True, slots=True)
class Treatment:
    """How a module gets a weight that no factor gives it. What `edits` leave alone is scaled as always.

    `caveat` says why the result is not exact, empty if it is; `error` how far it is off, relative to the update,
    where that is known. `means` go into the record: the base model, what was allowed.
    """

    edits: Edits
    caveat: str = ""
    error: float | None = None
    means: Mapping[str, str] = field(default_factory=dict)


# Treats a module at a weight and an output dtype (`F16`; None keeps), or says what would make that possible.
Treat = Callable[[Module, Place, float, str | None], Treatment | str]


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one module, and why: its weight, and an edit for every tensor that is not copied."""

    module: Module
    place: Place
    weight: float
    action: str
    edits: Edits
    treatment: Treatment | None


@dataclass(frozen=True, eq=False)  # cached properties need room, so no slots
class Edition:
    """What becomes of a list of tensors: files that share it, and are baked alike, share this too."""

    tensors: tuple[Tensor, ...]
    decisions: tuple[Decision, ...]

    @cached_property
    def edits(self) -> Mapping[str, Edit]:
        """Tensor name -> edit; tensors not in it are copied."""
        return {name: edit for decision in self.decisions for name, edit in decision.edits.items()}

    @cached_property
    def outputs(self) -> Mapping[str, Tensor]:
        """Name in the input -> tensor of the output with its byte range, in the order in which they lie there."""
        tensors: dict[str, Tensor] = {}
        position = 0
        for tensor in in_data_order(self.tensors):
            edit = self.edits.get(tensor.name)
            if isinstance(edit, Drop):
                continue
            placed = edited(tensor, edit)
            end = position + placed.nbytes
            same = placed.start == position and placed.end == end  # as in every bake that keeps dtypes
            tensors[tensor.name] = placed if same else replace(placed, start=position, end=end)
            position = end
        return tensors

    @cached_property
    def nbytes(self) -> int:
        """Bytes of the output's data."""
        return sum(tensor.nbytes for tensor in self.outputs.values())

    @cached_property
    def header(self) -> Header:
        """The output's header, which lists its tensors as the input does."""
        return Header(self.outputs[tensor.name] for tensor in self.tensors if tensor.name in self.outputs)


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything there is to know before a bake writes its first byte."""

    lora: Lora
    weights: FamilyWeights
    edition: Edition
    warnings: tuple[str, ...] = ()
    pruned: bool = False

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What happens to each module that the family knows, in file order."""
        return self.edition.decisions

    @property
    def counts(self) -> dict[str, int]:
        """How many modules are copied, scaled, zeroed and removed."""
        counted = Counter(decision.action for decision in self.decisions)
        return {action: counted[action] for action in ACTIONS}

    @property
    def means(self) -> dict[str, Any]:
        """What the bake used besides the weights, for the record."""
        treatments = (decision.treatment for decision in self.decisions if decision.treatment)
        means: dict[str, Any] = {name: value for treatment in treatments for name, value in treatment.means.items()}
        return means | {"prune": True} if self.pruned else means
