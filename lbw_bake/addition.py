"""One layer of several LoRAs as one: the tensors of the exact sum of its modules, or a single module as it is baked.

    sum of r_i s_i U_i D_i  =  [g_1 U_1 | g_2 U_2 | ...] [D_1; D_2; ...] x alpha / R,   g_i = r_i s_i R / alpha

with r_i the weight of the module's block in file i, s_i its alpha / rank and R the sum of ranks. Differences, norms and
biases add. What has no such sum keeps its own form, if it is the only one of its layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .algorithms import ADDITIVE, INSIDE
from .basemodel import ALL_ROWS, Rows, with_all_rows
from .edits import new_tensor
from .errors import NotBakeableError
from .families import Kernel, Place
from .lowrank import FORMS, LowRank, concatenate, factored, truncate
from .modules import Module
from .remade import Made, bake_module, rounded
from .scaling import largest, numpy_dtype, round_to
from .tensordata import TensorData
from .updates import WHOLE, Array, Read, arrays_of, flat, unread

# What a norm calls its differences -> what all other layers call theirs. Loaders take the one or the other.
_OF_NORMS = {"w_norm": "diff", "b_norm": "diff_b"}

_PORTABLE = {"loha", "lokr", "glora", *WHOLE}  # algorithms whose tensors have the same names everywhere


@dataclass(frozen=True, slots=True)
class Form:
    """What is made of sums: `dtype` is what the file's floats become, None keeps theirs.

    `alpha` is the one of the whole file, None if it has none; products are truncated to `rank` on `device`; `suffixes`
    follow a layer's name in those of its factors, by role, as in the file `like`, if there is one.
    """

    dtype: str | None
    alpha: float | None
    rank: int | None
    device: str
    suffixes: Mapping[str, str]
    like: Path | None

    def unloaded(self, rank: int) -> float:
        """What undoes the alpha / rank that loaders multiply a product of this rank by."""
        return 1.0 if self.alpha is None else rank / self.alpha


@dataclass(frozen=True, slots=True)
class Addend:
    """One file's module of a layer: its weight, where to read it, and what loaders multiply it by (alpha / rank).

    `difference` makes the whole update of a module whose factors do not tell it: DoRA and OFT on their base model.
    `rows` are those of the layer that it adapts, where the layer is several modules of this file; `kernel` is that of
    the layer, where its name tells.
    """

    path: Path
    module: Module
    weight: float
    data: TensorData
    scale: float
    difference: Callable[[Read], Array] | None
    rows: Rows
    kernel: Kernel

    @property
    def kind(self) -> str:
        """The algorithm it adds up as."""
        return "full" if self.difference else self.module.algorithm.name

    @property
    def adds(self) -> bool:
        """Whether its whole update is a product or a summand that can be read."""
        known = self.module.linear and self.kind in (*FORMS, *WHOLE) and not _odd(self.module)
        return self.difference is not None or known

    @property
    def unsaid(self) -> float:
        """The part of its scale that its own tensors do not hold: a configuration told it, which is left out."""
        return 1.0 if "alpha" in self.module.tensors else self.scale

    @property
    def bakes(self) -> bool:
        """Whether its own tensors can hold its weight, and stand for the layer."""
        own = self.module.linear or self.weight == 0.0 or (self.weight == 1.0 and self.unsaid == 1.0)
        return own and self.rows == ALL_ROWS


@dataclass(frozen=True, slots=True)
class Layer:
    """All modules of one name, in the order of the files; `stored` is the dtype their sum is stored as."""

    stem: str
    place: Place
    stored: str
    addends: list[Addend]

    @property
    def bare(self) -> str:
        """Its name without that of PEFT's adapter, which modules of several in one file are told apart by."""
        return self.stem.partition("[")[0]


@dataclass(frozen=True, slots=True)
class Sum:
    """What becomes of a layer: its tensors; the module, if it keeps its own form; and what truncation did to a product.

    `lost` is how far it is from the product, and how large that is, in Frobenius norms.
    """

    tensors: tuple[Made, ...]
    kept: Addend | None = None
    lost: tuple[float, float] = (0.0, 0.0)


def add(layer: Layer, form: Form) -> Sum:
    """What becomes of a layer. Raises NotBakeableError for modules without a sum, ValueError for what does not fit."""
    addends = [addend for addend in layer.addends if addend.weight] or layer.addends[:1]
    first, strange = addends[0], [addend for addend in addends if not addend.adds]
    # With one alpha for the file, and with a rank, a product is made anew even if it is the only one.
    anew = not strange and first.kind in ((*FORMS, "full") if form.rank else ("lora",))
    if len(addends) == 1 and first.bakes and not anew:
        return Sum(tuple(_baked(layer, first, form.dtype)), kept=first)
    if strange:
        raise _does_not_add(strange[0])
    summed = _additive(addends)
    total, lost = _product(layer, addends, summed, form)
    names = _factor_names(layer, addends, form)
    # PEFT's bias stays beside a product whose names have a place for it.
    beside = total and _name_of("up_bias", layer) == f"{names['up'].removesuffix('weight')}bias"
    if "up_bias" in summed and not beside:
        _put(summed, "diff_b", summed.pop("up_bias"))
    if total:  # loaders multiply these by alpha / rank with the product
        summed |= {role: summed[role] * form.unloaded(total.rank) for role in INSIDE if role in summed}
    arrays = {} if total is None else _factors(total, names)
    arrays |= {_name_of(role, layer): array for role, array in summed.items()}
    made = [_made(name, array, layer.stored) for name, array in arrays.items()]
    if total and form.alpha is not None:
        alpha = np.array(form.alpha)
        exact = round_to(alpha, numpy_dtype(layer.stored)) == alpha
        made.append(_made(f"{layer.bare}.alpha", alpha, layer.stored if exact else "F32"))
    return Sum(tuple(made), lost=lost)


def _baked(layer: Layer, addend: Addend, dtype: str | None) -> Iterator[Made]:
    """A module in its own form, as a bake writes it; its name may have to become the layer's."""
    own = addend.module.name
    if "." in own and own != layer.stem and addend.module.algorithm.name not in _PORTABLE:
        raise NotBakeableError(
            f"{addend.path}: {own} is {addend.module.algorithm_name}, which kohya's names have no place for",
            "leave this file out, or merge it with files of its own spelling",
        )
    for tensor, pieces in bake_module(addend.module, addend.weight * addend.unsaid, dtype, addend.data):
        name = tensor.name if own.startswith("oft_") else tensor.name.replace(own, layer.stem, 1)
        yield replace(tensor, name=name), pieces


def _made(name: str, array: Array, dtype: str) -> Made:
    return new_tensor(name, dtype, array.shape), rounded(name, dtype, array)


def _does_not_add(addend: Addend) -> NotBakeableError:
    module, odd = addend.module, _odd(addend.module)
    what = f"{module.algorithm_name} with {', '.join(odd)}" if module.linear and odd else module.algorithm_name
    based = "DoRA and OFT do as full differences: give their base model as --base CHECKPOINT"
    hint = "leave one of the files out" if module.linear else based
    return NotBakeableError(f"{addend.path}: {module.name} is {what}, which does not add up", hint)


def _odd(module: Module) -> list[str]:
    """The roles by which a module is more than one summand.

    Of a product and differences of the whole weight under one name, A1111 reads the product, ComfyUI the last of these.
    """
    differences = [role for role in ("diff", "w_norm") if role in module.tensors]
    return unread(module) + (differences if len(differences) + bool(module.algorithm.products) > 1 else [])


def _additive(addends: Sequence[Addend]) -> dict[str, Array]:
    """The sums of what adds by itself, by role. Raises ValueError for what is of different layers."""
    summed: dict[str, Array] = {}
    names = {} if all(addend.kind == "norm" for addend in addends) else _OF_NORMS
    for addend in addends:
        arrays = arrays_of(addend.module, addend.data.read)
        for role in (role for role in ADDITIVE if role in arrays and not (role == "diff" and addend.difference)):
            factor = addend.weight * (addend.scale if role in INSIDE else 1.0)
            array = with_all_rows(arrays[role], addend.rows)
            _put(summed, names.get(role, role), array * factor if factor else np.zeros_like(array))
        if addend.difference:
            difference = with_all_rows(addend.difference(addend.data.read), addend.rows)
            _put(summed, "diff", difference * addend.weight)
    return summed


def _put(summed: dict[str, Array], role: str, array: Array) -> None:
    """Add to a sum, in the shape it has: a layer may be a matrix in one file, a convolution of one pixel in another."""
    if (total := summed.get(role)) is not None:
        if len(total) != len(array) or total.size != array.size:
            raise ValueError(f"{role} has shape {list(array.shape)}, and {list(total.shape)} before")
        array = total + array.reshape(total.shape)
    summed[role] = array


def _product(
    layer: Layer, addends: Sequence[Addend], summed: dict[str, Array], form: Form
) -> tuple[LowRank | None, tuple[float, float]]:
    """The sum of the products, if it is to be one, and what truncation lost; the sum of differences takes part.

    Its factors are those of the files, each with all that multiplies it, unless truncation makes new ones.
    """
    products = [(addend, _low_rank(addend)) for addend in addends if addend.kind in FORMS]
    sizes = {f"{len(one.up)} x {one.down.shape[1]}": addend.path for addend, one in products}
    if len(sizes) > 1:
        found = ", ".join(f"{size} in {path}" for size, path in sizes.items())
        raise NotBakeableError(f"{layer.stem} is of several sizes: {found}", "merge LoRAs of one model")
    rank, full = sum(one.rank for _, one in products), "diff" in summed
    anew = full or bool(form.rank and rank > form.rank)
    factor = 1.0 if anew else form.unloaded(rank)
    limit = largest(layer.stored)
    scaled = [(addend.kind, one.times(addend.weight * addend.scale * factor, limit)) for addend, one in products]
    total = concatenate([one if kind == "lora" else one.evened() for kind, one in scaled]) if scaled else None
    if full:
        if total:
            _put(summed, "diff", total.dense())
        difference = summed["diff"]
        lower = form.rank and difference.ndim > 1 and form.rank < min(flat(difference).shape)
        total = factored(summed.pop("diff")) if lower else None
    if not form.rank:
        return total, (0.0, 0.0)
    if anew and total:
        total, lost = _truncated(total, form.rank, form.device)
        return total.times(form.unloaded(total.rank), limit), lost
    size = _size(total) / form.unloaded(total.rank) if total else float(np.linalg.norm(summed.get("diff", 0.0)))
    return total, (0.0, size)


def _low_rank(addend: Addend) -> LowRank:
    """A module's product as one of the whole layer, without its weight and alpha."""
    product = FORMS[addend.kind](arrays_of(addend.module, addend.data.read), addend.kernel)
    return LowRank(with_all_rows(product.up, addend.rows), product.down)


def _size(product: LowRank) -> float:
    """The Frobenius norm of a product."""
    down = flat(product.down)
    return float(np.sqrt(max(((product.up.T @ product.up) * (down @ down.T)).sum(), 0.0)))


def _truncated(total: LowRank, rank: int, device: str) -> tuple[LowRank, tuple[float, float]]:
    """The product at a lower rank, how far that is, and the size of the whole. Raises ValueError."""
    size = _size(total)
    total, error = truncate(total, rank, device)
    if not math.isfinite(error * size):
        raise ValueError("its numbers are too large, or not finite")
    return total, (error * size, size)


def _factors(total: LowRank, names: Mapping[str, str]) -> dict[str, Array]:
    """The factors of a sum by their names."""
    kernel = total.down.shape[2:]
    return {names["down"]: total.down, names["up"]: total.up.reshape(*total.up.shape, *(1 for _ in kernel))}


def _factor_names(layer: Layer, addends: Sequence[Addend], form: Form) -> dict[str, str]:
    """What the factors of a sum are called: as in the first LoRA of the layer's own name, or as others in the file.

    diffusers reads no lora_A beside lora_down. Only layers of an attention have `_lora.down` or XLabs' `.down`.
    """
    loras = (addend for addend in addends if addend.module.algorithm.name == "lora")
    own = next((addend for addend in loras if addend.module.name == layer.stem), None)
    names = {role: own.module.tensors[role][0].name for role in ("down", "up")} if own else {}
    if own and (own.path == form.like or not names["down"].startswith(f"{layer.bare}.lora")):
        return names
    return {role: f"{layer.bare}{suffix}" for role, suffix in form.suffixes.items()}


def _name_of(role: str, layer: Layer) -> str:
    """What a sum that is no product is called: as in the first file that has it, but for the layer's name."""
    modules = (addend.module for addend in layer.addends if not addend.difference and role in addend.module.tensors)
    names = ((module.tensors[role][0].name, module.name) for module in modules)
    return next((name.replace(stem, layer.stem, 1) for name, stem in names), f"{layer.bare}.{role}")
