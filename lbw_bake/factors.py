"""What a weight does to one module: which of its tensors take the factor, and how they are stored.

What must be known of tensor data (would a factor overflow?) is asked of `look`, a function.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import numpy as np

from .algorithms import ADDITIVE, MAGNITUDES, carriers_among
from .edits import LEAVE_OUT, Compute, Drop, Edit, Edits, Fill, towards
from .errors import NotBakeableError
from .modules import Module
from .scaling import FLOAT8, FLOATS, Multiply, Survey, largest
from .tensorfile import Tensor

Look = Callable[[Tensor, Multiply], Survey]

ACTIONS = COPIED, SCALED, ZEROED, REMOVED = "copied", "scaled", "zeroed", "removed"

_WIDEST = frozenset(["BF16", "F32", "F64"])  # float32 has no room for what is beyond these
# Roles that are read as they are: re-encoded only where that changes nothing.
_PRECIOUS = ("alpha", "scale", "rescale", "oft_diag", *MAGNITUDES)


def weigh(
    module: Module, weight: float, dtype: str | None, look: Look, treated: Edits | None = None
) -> tuple[str, dict[str, Edit]]:
    """What gives a module its weight: the action's name, and an edit for every tensor that is not copied.

    `dtype` (`F16`) is what floating tensors become, None keeps theirs; `treated` are the edits of a treatment, which
    come first. Raises NotBakeableError.
    """
    edits: dict[str, Edit] = dict(treated or {})
    if weight == 1.0 or module.algorithm.fixed:
        action = COPIED
    elif weight == 0.0:
        action = _neutralise(module, edits)
    else:
        action = SCALED
        _scale(module, weight, dtype, look, edits)
    _encode(module, dtype, look, edits)
    return action, edits


def _neutralise(module: Module, edits: dict[str, Edit]) -> str:
    """Weight 0: zeros where trainers start with zeros; modules no value makes neutral are removed."""
    algorithm, roles = module.algorithm, frozenset(module.tensors)
    values = dict.fromkeys(carriers_among(roles, "grow"), 0.0) if algorithm.exact else algorithm.neutral
    if values is None or "magnitude" in module.tensors:
        edits |= {tensor.name: Drop() for tensor in module.all_tensors}
        return REMOVED
    for role, value in values.items():
        for tensor in module.tensors.get(role, ()):
            edits[tensor.name] = Fill(value, tensor.dtype if tensor.dtype in FLOATS or not value else "F32")
    _turn_back(module, 0.0, edits)
    edits |= {tensor.name: Drop() for tensor in module.tensors.get("dora_scale", ())}
    return ZEROED


def _turn_back(module: Module, weight: float, edits: dict[str, Edit]) -> None:
    for role in module.algorithm.matrices:
        for tensor in module.tensors[role]:
            if len(tensor.shape) < 2 or tensor.shape[-2] != tensor.shape[-1] or not tensor.size:
                raise NotBakeableError(f"{module.name}: {tensor.name} holds no square matrices", LEAVE_OUT)
            edits[tensor.name] = towards(tensor, weight, np.eye(tensor.shape[-1]))


def _scale(module: Module, weight: float, dtype: str | None, look: Look, edits: dict[str, Edit]) -> None:
    for tensor in module.all_tensors if edits else ():  # a treatment's own factors
        step = edits.get(tensor.name)
        if isinstance(step, Multiply) and step.may_overflow and (found := look(tensor, step)).overflows:
            raise _overflow(module, weight, {step.target}, largest(step.target) / found.peak)
    _turn_back(module, weight, edits)
    treated = set(edits)
    columns = ("shrink", "grow") if abs(weight) < 1 else ("grow", "shrink")
    choices = [carriers_among(frozenset(module.tensors), column) for column in columns]
    narrow = [tensor for group in module.tensors.values() for tensor in group if tensor.dtype in FLOAT8]
    widened = {}
    if dtype is None and narrow and (treated or not _exact(module, choices[0], weight, look)):
        widened = {tensor.name: Multiply(tensor.dtype, "BF16", 1.0) for tensor in narrow if tensor.name not in treated}
        edits |= widened
    limits: list[float] = []  # of the products that overflow
    # Position by position: the factors of one product are alternatives of each other, those of two are not.
    for roles in zip(*choices, strict=True):
        # A treatment has answered for the products; what adds to them is scaled as always.
        if treated and (roles[0] not in ADDITIVE or module.tensors[roles[0]][0].name in treated):
            continue
        limit = 0.0
        for role in dict.fromkeys(roles):
            steps = [
                (tensor, step_of(module, tensor, "BF16" if tensor.name in widened else dtype, weight))
                for tensor in module.tensors[role]
            ]
            surveys = [(step, look(tensor, step)) for tensor, step in steps if step.may_overflow]
            if not any(found.overflows for _, found in surveys):
                edits |= {tensor.name: step for tensor, step in steps}
                break
            limit = max(limit, min(largest(step.target) / found.peak for step, found in surveys if found.peak))
        else:
            limits.append(limit)
            dtypes = {step.target for _, step in steps}
    if limits:
        raise _overflow(module, weight, dtypes, min(limits))


def _overflow(module: Module, weight: float, dtypes: Collection[str], limit: float) -> NotBakeableError:
    wider = ", or write wider numbers with --dtype f32" if _WIDEST.isdisjoint(dtypes) else ""
    return NotBakeableError(
        f"{module.name}: weight {weight:g} overflows {', '.join(sorted(dtypes))}; "
        f"the largest safe weight is {limit:.6g}",
        f"use a smaller weight{wider}",
    )


def _exact(module: Module, roles: Iterable[str], weight: float, look: Look) -> bool:
    """Whether the product with every value of these tensors has a place in their own dtype."""
    tensors = [tensor for role in roles for tensor in module.tensors[role]]
    return not any(look(tensor, step_of(module, tensor, None, weight)).inexact for tensor in tensors)


def step_of(module: Module, tensor: Tensor, dtype: str | None, factor: float) -> Multiply:
    """What multiplies a tensor, stored in a dtype (None keeps). Raises NotBakeableError if it holds no floats."""
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
