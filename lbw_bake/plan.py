"""A plan: everything there is to know before a bake writes its first byte. It is what a dry run prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .edits import Drop, Edit, Edits, edited
from .factors import ACTIONS
from .families import Place
from .lora import Lora
from .modules import Module
from .tensorfile import Tensor
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything there is to know before a bake writes its first byte."""

    lora: Lora
    weights: FamilyWeights
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...] = ()
    pruned: bool = False

    @property
    def edits(self) -> dict[str, Edit]:
        """Tensor name -> edit; tensors not in it are copied."""
        return {name: edit for decision in self.decisions for name, edit in decision.edits.items()}

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

    def outputs(self) -> dict[str, Tensor]:
        """Name in the input -> tensor of the output with its byte range, in the order in which they lie there."""
        edits = self.edits
        tensors: dict[str, Tensor] = {}
        position = 0
        for tensor in self.lora.file.in_data_order():
            edit = edits.get(tensor.name)
            if isinstance(edit, Drop):
                continue
            placed = edited(tensor, edit)
            end = position + placed.nbytes
            same = placed.start == position and placed.end == end  # as in every bake that keeps dtypes
            tensors[tensor.name] = placed if same else replace(placed, start=position, end=end)
            position = end
        return tensors
