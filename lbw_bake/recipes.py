"""What is to be done to a file, whichever it is: where its weights come from, and how it is written."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from .arguments import path_of
from .configuration import check_origin
from .errors import FileFormatError, LbwError, WeightError, nearest
from .families import Family, family_named
from .lora import Lora
from .plan import Plan, Treat
from .planning import DTYPES, make_plan
from .sources import Weights
from .tensordata import TensorData
from .values import whole
from .weights import FamilyWeights

_CHOICES = {"dtype": tuple(DTYPES), "device": ("auto", "cpu", "cuda"), "dora_norm": ("comfyui", "lycoris")}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to do to a file: where its weights come from and how it is written.

    The options are those of `bake`. Raises LbwError for options that mean nothing.
    """

    weights: Weights = field(default_factory=Weights)
    family: Family | str | None = None
    dtype: str = "keep"
    rank: int | None = None
    base: Path | None = None
    dora_norm: str = "comfyui"
    inexact: bool = False
    prune: bool = False
    device: str = "auto"
    strict: bool = False
    verify: bool = False
    update_metadata: bool = True
    dry_run: bool = False
    replace: bool = False
    in_place: bool = False
    skip_existing: bool = False

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise LbwError(f"{name} {value!r} is not one of {', '.join(known)}", nearest(str(value), known))
        if self.family is not None:
            family_named(self.family)
        if self.rank is not None:
            object.__setattr__(self, "rank", whole(self.rank, "rank"))
            if self.rank < 1:
                raise LbwError(f"rank {self.rank} is less than 1", "give the rank to truncate products to, or None")
        if self.rank and (self.prune or self.verify or self.inexact or self.in_place or not self.update_metadata):
            raise LbwError(
                "a rank writes every module anew, to another file",
                "leave out prune, verify, inexact, in place and no metadata update",
            )
        if not isinstance(self.weights, Weights):
            raise WeightError(f"weights {self.weights!r} are not understood yet", "give Weights.of(...) of them")
        object.__setattr__(self, "base", path_of(self.base))
        if not isinstance(self.inexact, bool):
            raise LbwError(f"inexact {self.inexact!r} is neither True nor False", "True is --inexact allow")

    @property
    def model(self) -> list[Path]:
        """The files of the base model, as far as it is one: no output may take their place."""
        if self.base is None:
            return []
        from .basemodel import files_of

        with suppress(FileFormatError, OSError):
            return [file for _, file in files_of(self.base)]
        return []


def plan_by(recipe: Recipe, lora: Lora, weights: FamilyWeights, data: TensorData) -> Plan:
    """The plan of a recipe for a LoRA at weights, its own or those of a cell of a sweep. Raises NotBakeableError."""
    if any(weights.of(place, module.path) != 1 for module, place in lora.placed(weights.family)):
        check_origin(lora)
    treat: Treat | None = None
    if not lora.anatomy.linear:  # which few files are not
        from .remedies import Means, Remedies

        means = Means(recipe.base, recipe.dora_norm, recipe.inexact, recipe.device)
        treat = Remedies(lora, weights.family, means, data.read)
    plan = make_plan(lora, weights, data.survey, DTYPES[recipe.dtype], treat)
    if recipe.prune:
        from .prune import prune

        plan = prune(plan, data)
    return replace(plan, warnings=(*recipe.weights.remarks(weights.family), *plan.warnings))
