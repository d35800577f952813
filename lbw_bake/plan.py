"""The plan of a bake: for every tensor of a file, whether it is copied, multiplied, filled, computed or dropped.

Deciding is pure: what it must know of tensor data (would a factor overflow?) it asks of `look`, a function.
A plan is what a dry run prints and what `bake` carries out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .algorithms import ADDITIVE, MAGNITUDES, Shape, present
from .errors import AmbiguousFamilyError, LbwError, NotBakeableError
from .families import Family, Place
from .lora import Lora
from .modules import Module
from .scaling import FLOAT8, FLOATS, Multiply, Survey, itemsize, largest
from .tensorfile import Tensor
from .updates import Array, Read
from .weights import FamilyWeights, matches_element

DTYPES = {"keep": None, "f16": "F16", "bf16": "BF16", "f32": "F32"}

LEAVE_OUT = "no loader could apply this module; leave the file out"

# Roles that are read as they are: re-encoded only where that changes nothing.
_PRECIOUS = ("alpha", "scale", "rescale", "oft_diag", *MAGNITUDES)


@dataclass(frozen=True, slots=True)
class Fill:
    """All elements of a tensor become this value."""

    value: float
    dtype: str


@dataclass(frozen=True, slots=True)
class Drop:
    """The tensor is left out."""


@dataclass(frozen=True, slots=True)
class Compute:
    """A tensor takes the place of this one: its name, dtype and shape, and what makes its values when it is written.

    `values` reads what it needs of the input and returns them in float64; they are rounded once.
    """

    name: str
    dtype: str
    shape: Shape
    values: Callable[[Read], Array]


Edit = Multiply | Fill | Drop | Compute
Edits = Mapping[str, Edit]
Look = Callable[[Tensor, Multiply], Survey]


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

COPIED, SCALED, ZEROED, REMOVED = "copied", "scaled", "zeroed", "removed"


@dataclass(frozen=True, slots=True)
class Decision:
    """What happens to one module, and why: its weight, and an edit for every tensor that is not copied."""

    module: Module
    place: Place
    weight: float
    action: str
    edits: Edits
    treatment: Treatment | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything there is to know before a bake writes its first byte."""

    lora: Lora
    weights: FamilyWeights
    decisions: tuple[Decision, ...]
    warnings: tuple[str, ...]
    pruned: bool = False

    @property
    def edits(self) -> dict[str, Edit]:
        """Tensor name -> edit; tensors not in it are copied."""
        return {name: edit for decision in self.decisions for name, edit in decision.edits.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How many modules are copied, scaled, zeroed and removed."""
        counted = Counter(decision.action for decision in self.decisions)
        return {action: counted[action] for action in (COPIED, SCALED, ZEROED, REMOVED)}

    @property
    def means(self) -> dict[str, Any]:
        """What the bake used besides the weights, for the record."""
        treatments = (decision.treatment for decision in self.decisions if decision.treatment)
        means: dict[str, Any] = {name: value for treatment in treatments for name, value in treatment.means.items()}
        return means | {"prune": True} if self.pruned else means

    def layout(self) -> list[Tensor]:
        """The tensors of the output as they lie in it, with their byte ranges."""
        return [*self.outputs().values()]

    def outputs(self) -> dict[str, Tensor]:
        """Name in the input -> tensor of the output, in the order of the input's data."""
        edits = self.edits
        tensors: dict[str, Tensor] = {}
        position = 0
        for tensor in self.lora.file.in_data_order():
            edit = edits.get(tensor.name)
            if isinstance(edit, Drop):
                continue
            placed = _edited(tensor, edit)
            end = position + placed.nbytes
            same = placed.start == position and placed.end == end  # as in every bake that keeps dtypes
            tensors[tensor.name] = placed if same else replace(placed, start=position, end=end)
            position = end
        return tensors


def _edited(tensor: Tensor, edit: Multiply | Fill | Compute | None) -> Tensor:
    """The tensor that results, of the right length."""
    if isinstance(edit, Compute):
        tensor = replace(tensor, name=edit.name, shape=edit.shape)
    elif edit is None:
        return tensor
    dtype = edit.target if isinstance(edit, Multiply) else edit.dtype
    if dtype == tensor.dtype and not isinstance(edit, Compute):
        return tensor
    return replace(tensor, dtype=dtype, start=0, end=tensor.size * itemsize(dtype))


def agree(lora: Lora, weights_for: Callable[[Family], FamilyWeights]) -> FamilyWeights:
    """The weights for the file's family, where all families that fit it agree on every module.

    Families for which there are none do not count, unless there are none for any: then the first one's error is
    raised. Raises AmbiguousFamilyError.
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
    return resolved[0]


def _no_treatment(*_: object) -> str:
    return ""


def make_plan(
    lora: Lora, weights: FamilyWeights, look: Look, dtype: str | None = None, treat: Treat = _no_treatment
) -> Plan:
    """Decide for every module; `dtype` (`F16`) re-encodes the floating tensors of known modules.

    `treat` is asked about modules that no factor scales. Raises NotBakeableError where it has no answer, and where
    an infinity would be written.
    """
    placed = list(lora.placed(weights.family))
    weighed = [(module, place, weights.of(place, module.path)) for module, place in placed]
    treatments = _treatments(lora, weighed, dtype, treat)
    decisions = tuple(
        _decide(module, place, weight, dtype, look, treatments.get(module.name)) for module, place, weight in weighed
    )
    return Plan(lora, weights, decisions, tuple(_warnings(lora, weights, decisions)))


def _decide(
    module: Module, place: Place, weight: float, dtype: str | None, look: Look, treatment: Treatment | None
) -> Decision:
    edits: dict[str, Edit] = dict(treatment.edits) if treatment else {}
    if weight == 1.0 or module.algorithm.fixed:
        action = COPIED
    elif weight == 0.0:
        action = _neutralise(module, edits)
    else:
        action = SCALED
        _scale(module, weight, dtype, look, edits)
    _encode(module, dtype, look, edits)
    return Decision(module, place, weight, action, edits, treatment)


def _neutralise(module: Module, edits: dict[str, Edit]) -> str:
    """Weight 0: zeros where trainers start with zeros; modules no value makes neutral are removed."""
    algorithm = module.algorithm
    values = dict.fromkeys(carriers_of(module, "grow"), 0.0) if algorithm.exact else algorithm.neutral
    if values is None or "magnitude" in module.tensors:
        edits |= {tensor.name: Drop() for tensor in module.all_tensors}
        return REMOVED
    for role, value in values.items():
        edits |= {tensor.name: Fill(value, tensor.dtype) for tensor in module.tensors.get(role, ())}
    _turn_back(module, 0.0, edits)
    edits |= {tensor.name: Drop() for tensor in module.tensors.get("dora_scale", ())}
    return ZEROED


def _turn_back(module: Module, weight: float, edits: dict[str, Edit]) -> None:
    for role in module.algorithm.matrices:
        for tensor in module.tensors[role]:
            if len(tensor.shape) < 2 or tensor.shape[-2] != tensor.shape[-1] or not tensor.size:
                raise NotBakeableError(f"{module.name}: {tensor.name} holds no square matrices", LEAVE_OUT)
            edits[tensor.name] = towards(tensor, weight, np.eye(tensor.shape[-1]))


def stored_as(tensor: Tensor, dtype: str | None) -> str:
    """The dtype of new values in place of a tensor's: its own unless another is asked for, or it is a float8."""
    return dtype or ("BF16" if tensor.dtype in FLOAT8 else tensor.dtype)


def towards(tensor: Tensor, weight: float, neutral: Array | float) -> Compute:
    """N + weight (tensor - N) for a neutral N, in float32: half precision has no room for small differences from 1."""

    def values(read: Read) -> Array:
        blended: Array = neutral + weight * (read(tensor).astype(np.float64) - neutral)
        return blended

    return Compute(tensor.name, "F32", tensor.shape, values)


def carriers_of(module: Module, column: str) -> list[str]:
    """The roles that take a factor: one of each product, by a column of the algorithm table, and the additive ones."""
    factors = [present(getattr(product, column), module.tensors) for product in module.algorithm.products]
    return [role for role in (*factors, *ADDITIVE) if role in module.tensors and role is not None]


def _scale(module: Module, weight: float, dtype: str | None, look: Look, edits: dict[str, Edit]) -> None:
    _turn_back(module, weight, edits)
    treated = set(edits)
    columns = ("shrink", "grow") if abs(weight) < 1 else ("grow", "shrink")
    choices = [carriers_of(module, column) for column in columns]
    narrow = [tensor for tensor in module.all_tensors if tensor.dtype in FLOAT8]
    widened = {}
    if dtype is None and narrow and (treated or not _exact(module, choices[0], weight, look)):
        widened = {tensor.name: Multiply(tensor.dtype, "BF16", 1.0) for tensor in narrow if tensor.name not in treated}
        edits |= widened
    limit = 0.0
    # Position by position: the factors of one product are alternatives of each other, those of two are not.
    for roles in zip(*choices, strict=True):
        # A treatment has answered for the products; what adds to them is scaled as always.
        if treated and (roles[0] not in ADDITIVE or module.tensors[roles[0]][0].name in treated):
            continue
        for role in dict.fromkeys(roles):
            steps = {
                tensor: _step(module, tensor, "BF16" if tensor.name in widened else dtype, weight)
                for tensor in module.tensors[role]
            }
            surveys = {tensor: look(tensor, step) for tensor, step in steps.items() if step.may_overflow}
            if not any(survey.overflows for survey in surveys.values()):
                edits |= {tensor.name: step for tensor, step in steps.items()}
                break
            limits = [largest(steps[tensor].target) / survey.peak for tensor, survey in surveys.items() if survey.peak]
            limit = max(limit, min(limits))
        else:
            raise NotBakeableError(
                f"{module.name}: weight {weight:g} overflows {', '.join(sorted({t.dtype for t in steps}))}; "
                f"the largest safe weight is {limit:.6g}",
                "use a smaller weight, or write wider numbers with --dtype f32",
            )


def _exact(module: Module, roles: Iterable[str], weight: float, look: Look) -> bool:
    """Whether the product with every value of these tensors has a place in their own dtype."""
    tensors = [tensor for role in roles for tensor in module.tensors[role]]
    return not any(look(tensor, _step(module, tensor, None, weight)).inexact for tensor in tensors)


def _step(module: Module, tensor: Tensor, dtype: str | None, factor: float) -> Multiply:
    if tensor.dtype not in FLOATS:
        raise NotBakeableError(
            f"{module.name}: {tensor.name} has dtype {tensor.dtype}, which cannot be multiplied by {factor:g}",
            "convert the LoRA to a floating dtype first",
        )
    return Multiply(tensor.dtype, dtype or tensor.dtype, factor)


def _encode(module: Module, dtype: str | None, look: Look, edits: dict[str, Edit]) -> None:
    """Give every floating tensor not yet multiplied its new dtype."""
    if dtype is None:
        return
    for role, group in module.tensors.items():
        for tensor in group:
            edit = edits.get(tensor.name)
            if tensor.dtype not in FLOATS or tensor.dtype == dtype or isinstance(edit, Multiply | Drop | Compute):
                continue
            if isinstance(edit, Fill):
                edits[tensor.name] = Fill(edit.value, dtype)
                continue
            step = Multiply(tensor.dtype, dtype, 1.0)
            if role in _PRECIOUS and look(tensor, step).inexact:
                continue
            if step.may_overflow and look(tensor, step).overflows:
                raise NotBakeableError(
                    f"{module.name}: {tensor.name} holds values beyond {dtype}", "choose --dtype bf16 or f32"
                )
            edits[tensor.name] = step


def _treatments(
    lora: Lora, weighed: Iterable[tuple[Module, Place, float]], dtype: str | None, treat: Treat
) -> dict[str, Treatment]:
    """Module name -> treatment, for those that need one. Raises NotBakeableError if any has none."""
    asked = [
        (module, place, treat(module, place, weight, dtype))
        for module, place, weight in weighed
        if weight not in (0.0, 1.0) and not module.linear and not module.algorithm.fixed
    ]
    refused = [(module, place, answer) for module, place, answer in asked if isinstance(answer, str)]
    if refused:
        kinds = Counter(module.algorithm_name for module, _, _ in refused)
        what = ", ".join(f"{count} {name}" for name, count in kinds.items())
        blocks = _some(dict.fromkeys(place.block for _, place, _ in refused))
        ways = dict.fromkeys(way for _, _, way in refused if way)
        raise NotBakeableError(
            f"{lora.file.path}: {what} modules (the first is {refused[0][0].name}) cannot take "
            "a weight other than 0 or 1 exactly: their update is not proportional to any tensor in the file",
            "; ".join((f"give 0 or 1 to {blocks}", *ways)),
        )
    return {module.name: answer for module, _, answer in asked if isinstance(answer, Treatment)}


def _some(names: Iterable[str], limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _warnings(lora: Lora, weights: FamilyWeights, decisions: tuple[Decision, ...]) -> Iterable[str]:
    family = weights.family
    if unknown := lora.unknown(family):
        names = _some((tensor.name for tensor in unknown), 5)
        yield f"{len(unknown)} unknown tensors copied untouched: {names}"
    if weights.layout is not None and weights.layout not in map(len, family.layouts):
        matched = [block for block in family.blocks if block not in weights.unlisted]
        yield f"{weights.layout} weights are not a layout of {family.name}; matched by name: {_some(matched, 30)}"
    unlisted = [d for d in decisions if d.place.block in weights.unlisted and d.action in (ZEROED, REMOVED)]
    if unlisted:
        blocks = [block for block in family.blocks if block in {decision.place.block for decision in unlisted}]
        yield f"{len(unlisted)} modules zeroed because the weights do not list their blocks: {_some(blocks, 30)}"
    for element in weights.options.elements:
        if not any(matches_element(element, family, d.place, d.module.path) for d in decisions):
            yield f"element rule {element} matches no module"
    fixed = [d.module.name for d in decisions if d.module.algorithm.fixed and d.weight != 1.0]
    if fixed:
        yield f"{len(fixed)} absolute values kept, which no weight scales: {_some(fixed, 3)}"
    lost = defaultdict(list)
    for decision in decisions:
        if decision.weight == 0.0 and not decision.module.linear:
            lost[decision.module.algorithm_name, decision.action].append(decision.module.name)
    for (name, action), modules in lost.items():
        done = "removed" if action == REMOVED else "made neutral (magnitudes and rescales with them)"
        yield f"{len(modules)} {name} modules at weight 0 {done}: {_some(modules, 3)}"
    yield from _caveats(decisions)


def _caveats(decisions: Iterable[Decision]) -> Iterable[str]:
    """What is not exact, block by block."""
    found: dict[tuple[str, str, str], list[float | None]] = defaultdict(list)
    for decision in decisions:
        if (treatment := decision.treatment) and treatment.caveat:
            found[decision.place.block, decision.module.algorithm_name, treatment.caveat].append(treatment.error)
    for (block, name, caveat), errors in found.items():
        known = [100 * error for error in errors if error is not None]
        span = " to ".join(dict.fromkeys(f"{bound(known):.3g}" for bound in (min, max))) + " %" if known else ""
        yield f"{block}: {len(errors)} {name} modules {caveat}{span}"
