"""Planning a bake: weights on which the families agree, and for every module what becomes of it. Deciding is pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import NoReturn

from .edits import LEAVE_OUT, Compute
from .errors import AmbiguousFamilyError, LbwError, NotBakeableError
from .factors import Look, weigh
from .families import Family, Place
from .lora import Anatomy, Lora
from .modules import Module
from .plan import Decision, Edition, Plan, Treat, Treatment
from .remarks import remarks
from .tensorfile import ALIKE
from .weights import FamilyWeights
from .words import some

# A module with its place and weight.
Weighed = tuple[Module, Place, float]

DTYPES = {"keep": None, "f16": "F16", "bf16": "BF16", "f32": "F32"}


def agree(lora: Lora, weights_for: Callable[[Family], FamilyWeights]) -> FamilyWeights:
    """The weights for the file's family, where all families that fit it agree on every module.

    Of several it is the first that has the vector's own layout. Families for which there are none do not count, unless
    there are none for any: then the first one's error is raised. Raises AmbiguousFamilyError.
    """
    resolved: list[FamilyWeights] = []
    errors: list[LbwError] = []
    for family in lora.candidates:
        try:
            resolved.append(weights_for(family))
        except LbwError as error:
            errors.append(error)
    if not resolved:
        raise errors[0]
    if len(resolved) == 1:
        return resolved[0]
    meanings = [
        {module.name: weights.of(place, module.path) for module, place in lora.placed(weights.family)}
        for weights in resolved
    ]
    if any(meaning != meanings[0] for meaning in meanings):
        raise AmbiguousFamilyError(lora.file.path, [weights.family.name for weights in resolved])
    return next((weights for weights in resolved if not weights.by_relative), resolved[0])


def make_plan(
    lora: Lora, weights: FamilyWeights, look: Look, dtype: str | None = None, treat: Treat | None = None
) -> Plan:
    """Decide for every module; `dtype` (`F16`) re-encodes the floating tensors of known modules.

    `treat` is asked about modules that no factor scales. Raises NotBakeableError where it has no answer, where an
    infinity would be written, and where two tensors would have one name.
    """
    weighed = [(module, place, weights.of(place, module.path)) for module, place in lora.placed(weights.family)]
    edition = None
    if lora.file.memorable and lora.anatomy.linear:
        edition = _unseen(lora.anatomy, weights.family, tuple(weight for _, _, weight in weighed), dtype)
    if edition is None:
        edition = _edition(lora.anatomy, weighed, look, dtype, _treatments(lora, weighed, dtype, treat))
    plan = Plan(lora, weights, edition)
    _check_names(plan)
    return replace(plan, warnings=tuple(remarks(plan)))


class _LookError(Exception):
    """What is decided depends on a tensor's data."""


@lru_cache(maxsize=ALIKE)
def _unseen(anatomy: Anatomy, family: Family, weights: tuple[float, ...], dtype: str | None) -> Edition | None:
    """What becomes of every file of this anatomy, its modules at these weights; None where it depends on their data."""
    weighed = [(module, place, weight) for (module, place), weight in zip(anatomy.placed(family), weights, strict=True)]

    def look(*_: object) -> NoReturn:
        raise _LookError

    with suppress(_LookError):
        return _edition(anatomy, weighed, look, dtype, {})
    return None


def _edition(
    anatomy: Anatomy, weighed: Iterable[Weighed], look: Look, dtype: str | None, treatments: Mapping[str, Treatment]
) -> Edition:
    """Decide for every module, some of which have a treatment. Raises NotBakeableError, and what `look` raises."""
    decisions = []
    for module, place, weight in weighed:
        treatment = treatments.get(module.name)
        action, edits = weigh(module, weight, dtype, look, treatment.edits if treatment else None)
        decisions.append(Decision(module, place, weight, action, edits, treatment))
    return Edition(anatomy.tensors, tuple(decisions))


def _check_names(plan: Plan) -> None:
    """Raise NotBakeableError if a computed tensor would take the name of another one."""
    if any(isinstance(edit, Compute) and edit.name != name for name, edit in plan.edition.edits.items()):
        name, times = Counter(tensor.name for tensor in plan.edition.outputs.values()).most_common(1)[0]
        if times > 1:
            raise NotBakeableError(f"{plan.lora.file.path}: the result would hold {name} {times} times", LEAVE_OUT)


def _treatments(lora: Lora, weighed: Iterable[Weighed], dtype: str | None, treat: Treat | None) -> dict[str, Treatment]:
    """Module name -> treatment, for those that need one. Raises NotBakeableError if any has none."""
    asked = [
        (module, place, treat(module, place, weight, dtype) if treat else "")
        for module, place, weight in weighed
        if weight not in (0.0, 1.0) and not module.linear and not module.algorithm.fixed
    ]
    refused = [(module, place, answer) for module, place, answer in asked if isinstance(answer, str)]
    if refused:
        kinds = Counter(module.algorithm_name for module, _, _ in refused)
        what = ", ".join(f"{count} {name}" for name, count in kinds.items())
        blocks = some(dict.fromkeys(place.block for _, place, _ in refused))
        ways = dict.fromkeys(way for _, _, way in refused if way)
        raise NotBakeableError(
            f"{lora.file.path}: {what} modules (the first is {refused[0][0].name}) cannot take "
            "a weight other than 0 or 1 exactly: their update is not proportional to any tensor in the file",
            "; ".join((f"give 0 or 1 to {blocks}", *ways)),
        )
    return {module.name: answer for module, _, answer in asked if isinstance(answer, Treatment)}
