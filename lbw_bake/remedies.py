"""What can be done for modules that no factor scales, at a weight other than 0 and 1.

With the base model DoRA keeps its form and rank wherever it can, everything else becomes its full difference, which is
linear in every loader; without it the nearest thing in the module's own form, if inexact results are allowed.
Deciding reads headers alone, and what says how far a rotation is off; the arithmetic (`nonlinear`, and with it torch)
runs when a tensor is written, module by module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from .algorithms import ADDITIVE, MAGNITUDES
from .alphas import scales_of
from .basemodel import BaseModel, BaseWeight
from .cuda import with_room
from .edits import LEAVE_OUT, Compute, Drop, Edit, Edits, fitting, stored_as, towards
from .errors import DeviceError, NotBakeableError
from .factors import step_of
from .families import Family, Place
from .keys import lora_stem
from .lora import Lora
from .modules import Module
from .plan import Treatment
from .scaling import FLOATS, Multiply, numpy_dtype, round_to
from .updates import MISFIT, Array, Arrays, Read, alpha_of

if TYPE_CHECKING:
    import torch

    from .nonlinear import Dora, Reading, Rotation

T = TypeVar("T")

_BASE = "bake them exactly with --base CHECKPOINT"
_EITHER = f"{_BASE}, or nearly with --inexact allow"
_TURNED = "turn by the weighted angle, which is off their weighted update by "
_NAIVE = (
    "keep their magnitudes while their factors are scaled: how far that is off their weighted update cannot be known "
    "without the base model (it is exact only where DoRA is ignored)"
)
_PEFT = "are scaled as PEFT scales them: exact in PEFT, but near 0 they are not switched off"

_DECOMPOSABLE = ("lora", "loha", "lokr", "glora", "full", "lora_embedding")

# What makes a module more than its algorithm says: weight-shaped biases, larger layers, a difference beside factors.
_ODD = {"bias", "reshape_weight", "diff"}


@dataclass(frozen=True, slots=True)
class Means:
    """What may be used: a base model, the norm that divides the magnitudes of output rows, approximations; where."""

    base: Path | None
    dora_norm: str
    inexact: bool
    device: str


class Remedies:
    """Treats the modules of one file, read with `read`; an instance is a `plan.Treat`."""

    def __init__(self, lora: Lora, family: Family, means: Means, read: Read) -> None:
        self._family, self._means, self._read = family, means, read
        self._scale_of = scales_of(lora)
        self._latest: tuple[str, Arrays] = "", {}
        self._device = "cpu"

    def __call__(self, module: Module, place: Place, weight: float, dtype: str | None) -> Treatment | str:
        """The module's treatment at a weight, to be stored in a dtype (None keeps); or what would make one possible."""
        kind = _kind(module)
        exactly = {"set": self._set, "oft": self._rotated, "dora": self._decomposed}.get(kind)
        if exactly is None:
            return ""
        if not self._means.base:
            return self._nearly(kind, module, weight, dtype)
        if kind != "set":
            _require_torch()
        with fitting(module.name):
            return exactly(module, place, weight, dtype)

    def _nearly(self, kind: str, module: Module, weight: float, dtype: str | None) -> Treatment | str:
        """The treatment without a base model, if there is one and it is allowed; or what would make one possible."""
        if kind == "set":
            return _BASE
        if not self._means.inexact:
            return _EITHER
        if kind == "dora":
            return Treatment({}, _PEFT if "magnitude" in module.tensors else _NAIVE, means={"inexact": "allow"})
        _require_torch()
        with fitting(module.name):
            return self._rotated_nearly(module, weight, dtype)

    def difference(self, module: Module, place: Place) -> Callable[[Read], Array] | None:
        """What makes the module's whole update on the base model, of the layer's shape; None if nothing can.

        Raises DeviceError without torch, and what `basemodel` raises for a base that does not fit.
        """
        kind = _kind(module)
        if kind not in ("oft", "dora") or not self._means.base:
            return None
        _require_torch()
        with fitting(module.name):
            if kind == "oft":
                return self._rotation_update(module, place)[1]
            _, _, dora = self._dora(module, place)
        return self._whole(module, dora)

    def _set(self, module: Module, place: Place, weight: float, dtype: str | None) -> Treatment:
        """(1 - r) W + r S in place of S; in float32, because what counts is its small difference from W."""
        del dtype
        (tensor,) = module.tensors["set_weight"]
        base = self._base.weight(module, place.component)
        _check(base.shape == tensor.shape, module, base)

        def values(read: Read) -> Array:
            return (1 - weight) * base.read().astype(np.float64) + weight * read(tensor)

        return self._exactly({tensor.name: Compute(tensor.name, "F32", tensor.shape, values)})

    def _rotated(self, module: Module, place: Place, weight: float, dtype: str | None) -> Treatment:
        base, difference = self._rotation_update(module, place)
        return self._exactly(_in_full(module, base, dtype, lambda read: weight * difference(read)))

    def _rotation_update(self, module: Module, place: Place) -> tuple[BaseWeight, Callable[[Read], Array]]:
        base = self._base.weight(module, place.component)
        rows = sum(block.shape[-3] * block.shape[-1] for block in module.tensors["oft_blocks"])
        _check(rows == base.shape[0], module, base)

        def difference(read: Read) -> Array:
            w = self._tensor(base.read())
            return (self._rotation(module, read).applied(w) - w).cpu().numpy()

        return base, self._with_room(difference)

    def _decomposed(self, module: Module, place: Place, weight: float, dtype: str | None) -> Treatment:
        from .nonlinear import spread_over

        base, reading, dora = self._dora(module, place)
        role = _magnitude(module)
        used = {"dora_norm": self._means.dora_norm} if role == "dora_scale" and reading.axis == 0 else {}
        factors = spread_over(module.algorithm.name, reading.axis, weight)
        if not factors:
            update = self._whole(module, dora)
            return self._exactly(_in_full(module, base, dtype, lambda read: weight * update(read)), **used)
        dtypes = {name: stored_as(module.tensors[name][0], dtype) for name in factors}

        def rounded(name: str, values: torch.Tensor) -> torch.Tensor:
            return self._tensor(round_to(values.cpu().numpy(), numpy_dtype(dtypes[name])))

        def parts(read: Read) -> Arrays:
            new, magnitudes = dora(read).weighted(weight, rounded)
            return {name: values.cpu().numpy() for name, values in {**new, role: magnitudes}.items()}

        edits: dict[str, Edit] = {}
        for name in (*factors, role):
            (tensor,) = module.tensors[name]
            values = partial(self._part, module.name, name, self._with_room(parts))
            edits[tensor.name] = Compute(tensor.name, dtypes.get(name, "F32"), tensor.shape, values)
        return self._exactly(edits, **used)

    def _dora(self, module: Module, place: Place) -> tuple[BaseWeight, Reading, Callable[[Read], Dora]]:
        from .nonlinear import Dora

        base = self._base.weight(module, place.component)
        role = _magnitude(module)
        reading = self._reading(module, base, role)
        scale = self._scale_of(module, self._read)

        def dora(read: Read) -> Dora:
            floats = {name: group[0] for name, group in module.tensors.items() if group[0].dtype in FLOATS}
            factors = {name: self._tensor(read(tensor)) for name, tensor in floats.items()}
            w = _oriented(module, self._tensor(base.read()))
            return Dora(module.name, module.algorithm.name, factors, w, scale, factors[role].flatten(), reading)

        return base, reading, dora

    def _rotated_nearly(self, module: Module, weight: float, dtype: str | None) -> Treatment:
        """Blocks times r turn by r times the angle; the constraint of COFT must grow with them."""
        from .nonlinear import Rotation, rotation_error

        edits: dict[str, Edit] = {
            tensor.name: step_of(module, tensor, stored_as(tensor, dtype), weight)
            for tensor in module.tensors["oft_blocks"]
        }
        # kohya reads one alpha for the whole file.
        alphas = () if module.name.startswith("oft_") else module.tensors.get("alpha", ())
        scaled = [tensor for tensor in alphas if tensor.dtype in FLOATS]
        edits |= {tensor.name: Multiply(tensor.dtype, tensor.dtype, abs(weight)) for tensor in scaled}
        edits |= {tensor.name: towards(tensor, weight, 1.0) for tensor in module.tensors.get("rescale", ())}

        def off(read: Read) -> float:
            exact = self._rotation(module, read)
            alpha = exact.alpha * (abs(weight) if scaled else 1.0)
            rescale = None if exact.rescale is None else 1 + weight * (exact.rescale - 1)
            return rotation_error(exact, weight, Rotation([block * weight for block in exact.blocks], alpha, rescale))

        error = self._with_room(off)(self._read)
        if not math.isfinite(error):
            raise NotBakeableError(f"{module.name}: its blocks are no rotation, they hold NaN or infinity", LEAVE_OUT)
        return Treatment(edits, _TURNED, error, {"inexact": "allow"})

    def _rotation(self, module: Module, read: Read) -> Rotation:
        from .nonlinear import Rotation

        alpha = alpha_of(module, read) or 0.0
        blocks = [self._tensor(read(tensor)) for tensor in module.tensors["oft_blocks"]]
        rescale = [self._tensor(read(tensor)) for tensor in module.tensors.get("rescale", ())]
        return Rotation(blocks, alpha, rescale[0] if rescale else None)

    @cached_property
    def _base(self) -> BaseModel:
        return BaseModel(cast("Path", self._means.base), self._family)

    def _with_room(self, compute: Callable[[Read], T]) -> Callable[[Read], T]:
        """The same, on the device if that has room for it, else on the CPU."""

        def computed(read: Read) -> T:
            def on(device: str) -> T:
                self._device = device
                return compute(read)

            return with_room(self._means.device, on)

        return computed

    def _whole(self, module: Module, dora: Callable[[Read], Dora]) -> Callable[[Read], Array]:
        """What makes the update of a DoRA, in the layer's shape."""
        return self._with_room(lambda read: _oriented(module, dora(read).update()).cpu().numpy())

    def _reading(self, module: Module, base: BaseWeight, role: str) -> Reading:
        """How the magnitude is read, by its shape; the factors are checked against the base weight."""
        import torch

        from .nonlinear import Reading, update

        shape = module.shapes[role]
        shapes = {name: torch.empty(shape, device="meta") for name, shape in module.shapes.items()}
        w = _oriented(module, torch.empty(base.shape, device="meta"))
        try:
            update(module.algorithm.name, shapes, w)
        except (*MISFIT, RuntimeError):
            _check(False, module, base)
        rows = role == "magnitude" or (len(shape) > 1 and shape[0] == w.shape[0])
        axis = 0 if rows else 1
        _check(math.prod(shape) == w.shape[axis] and (rows or shape[:1] == (1,)), module, base)
        return Reading(axis, by_base=rows and role == "dora_scale" and self._means.dora_norm == "comfyui")

    def _exactly(self, edits: Edits, **used: str) -> Treatment:
        return Treatment(edits, means={"base": cast("Path", self._means.base).name, **used})

    def _part(self, name: str, role: str, parts: Callable[[Read], Arrays], read: Read) -> Array:
        """One of the tensors that are computed together; only those of the latest module are remembered."""
        if self._latest[0] != name:
            self._latest = "", {}
            self._latest = name, parts(read)
        return self._latest[1][role]

    def _tensor(self, array: Array) -> torch.Tensor:
        import torch

        with np.errstate(invalid="ignore"):  # a signalling NaN is a value like another
            wide = array.astype(np.float64)
        return torch.from_numpy(wide).to(self._device)


def _kind(module: Module) -> str:
    """What answers for the module: `dora`, or its algorithm; empty if it holds more than that says, or no floats."""
    algorithm = module.algorithm.name
    odd = (_ODD - {*module.algorithm.requires[:1]}) & module.tensors.keys()
    factors = (tensor for role, group in module.tensors.items() for tensor in group if role != "alpha")
    if odd or any(tensor.dtype not in FLOATS for tensor in factors):
        return ""
    return ("dora" if algorithm in _DECOMPOSABLE else "") if module.decomposed else algorithm


def _magnitude(module: Module) -> str:
    return next(role for role in MAGNITUDES if role in module.tensors)


def _oriented(module: Module, weight: torch.Tensor) -> torch.Tensor:
    """A layer's weight as the factors see it, or the other way: that of an embedding is stored transposed."""
    return weight.mT if module.algorithm.name == "lora_embedding" else weight


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise DeviceError("torch, which --base and --inexact need, is not installed", "install torch")


def _in_full(module: Module, base: BaseWeight, dtype: str | None, difference: Callable[[Read], Array]) -> Edits:
    """A module as its full difference, in place of its first tensor; biases stay beside it."""
    first, *others = (
        tensor for role, group in module.tensors.items() for tensor in group if role == "diff" or role not in ADDITIVE
    )
    floats = (tensor for tensor in module.all_tensors if tensor.dtype in FLOATS)
    largest = max(floats, key=lambda tensor: tensor.size)
    name = f"{lora_stem(module.name)}.diff"
    edits: dict[str, Edit] = {tensor.name: Drop() for tensor in others}
    return edits | {first.name: Compute(name, stored_as(largest, dtype), base.shape, difference)}


def _check(fits: bool, module: Module, base: BaseWeight) -> None:
    """Raise NotBakeableError if a module does not fit its base weight."""
    if not fits:
        shapes = ", ".join(f"{role} {list(shape)}" for role, shape in module.shapes.items() if shape)
        raise NotBakeableError(
            f"{base.pieces[0][0].path}: {base.pieces[0][1].name} has shape {list(base.shape)}, "
            f"which does not fit {module.name} ({shapes})",
            "give the model this LoRA was made for",
        )
