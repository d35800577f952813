"""Inner products of updates: how strong a module's update is, and how much of one there is in another.

A product's inner products need only small matrices, rank x rank; the update itself is never built, except LoHa's,
a band of rows at a time. All in float64, so that a norm is as exact as the file. Formulas: LyCORIS' `functional`
package; what multiplies a product, alpha / rank, is told by `alphas`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .algorithms import ADDITIVE, INSIDE
from .modules import Module
from .scaling import unwarned
from .tensorfile import Tensor

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Read = Callable[[Tensor], Array]
Scale = Callable[[Module, Read], float]  # what multiplies a module's product

# What tensors of dtypes, shapes or values lead to that no trainer writes.
MISFIT = (ValueError, TypeError, IndexError, OverflowError)

_BAND = 1 << 20  # elements of a LoHa update built at a time

# Elements of the largest array built from a module's tensors, a gigabyte in float64. Thin factors of a few megabytes
# could ask for terabytes.
_LARGEST = 1 << 27


def norm(module: Module, read: Read, scale_of: Scale) -> float | None:
    """The Frobenius norm of the module's update at weight 1, biases included.

    None where it depends on the base model, is not finite, or cannot be told from such tensors. DoRA counts without
    its magnitude, GLoRA without the part that multiplies the base weight. `read` gives a tensor as an array.
    """
    if not measurable(module):
        return None
    try:
        arrays = {role: array for role, array in arrays_of(module, read).items() if role not in _ON_BASE}
        squared = inner(module, arrays, arrays, scale_of(module, read) ** 2)
    except MISFIT:
        return None
    return math.sqrt(max(squared, 0.0)) if math.isfinite(squared) else None


def measurable(module: Module) -> bool:
    """Whether the file alone tells the module's update, or the part of it that `norm` counts."""
    return module.algorithm.name in _INNER or module.algorithm.name in WHOLE


def alpha_of(module: Module, read: Read) -> float | None:
    """The module's alpha, None where the file has none."""
    group = module.tensors.get("alpha")
    if not group or not group[0].size:
        return None
    try:
        return float(read(group[0]).reshape(-1)[0])
    except ValueError:  # no number
        return None


def unread(module: Module) -> list[str]:
    """The roles by which a module is more than what `arrays_of` reads of it: others, several of one, empty ones."""
    return [
        role
        for role, group in module.tensors.items()
        if role not in (*_ROLES, "alpha", "scalar") or len(group) > 1 or not group[0].size
    ]


@unwarned()  # a signalling NaN is a value like another
def arrays_of(module: Module, read: Read) -> dict[str, Array]:
    """The module's tensors that make up its update, by role, in float64; AdaLoRA's singular values in a factor."""
    arrays = {role: read(group[0]).astype(np.float64) for role, group in module.tensors.items() if role in _ROLES}
    if (values := arrays.pop("lora_e", None)) is not None:
        arrays["down"] = arrays["down"] * values
    return arrays


@unwarned()  # NaN and infinity in a file make a product that says so
def inner(module: Module, a: Arrays, b: Arrays, scale: float) -> float:
    """The inner product of the updates of two modules of one algorithm and layer, given their arrays.

    `scale` is what multiplies the one's product times what multiplies the other's. GLoRA's second product counts as an
    update of its own.
    """
    added = (role for role in ADDITIVE if role in a and role in b)
    total = sum(float(np.vdot(a[role], b[role])) * (scale if role in INSIDE else 1.0) for role in added)
    if product := _INNER.get(module.algorithm.name):
        total += product(a, b) * scale
    return total


def check_room(*sizes: int) -> None:
    """Raises ValueError for an array of these sizes, if it is larger than any layer."""
    if math.prod(sizes) > _LARGEST:
        raise ValueError(f"{' x '.join(map(str, sizes))} numbers are more than any layer has")


def through_core(core: Array, right: Array) -> Array:
    """A Tucker core (p, q, *kernel) times (q, in): (p, in, *kernel). Raises ValueError."""
    check_room(*core.shape[:1], *core.shape[2:], *right.shape[1:])
    product: Array = np.einsum("pq...,qi->pi...", core, right)
    return product


def flat(array: Array) -> Array:
    """An array as a matrix with the same rows."""
    return array.reshape(len(array), -1)


def factors_of(arrays: Arrays, factor: str) -> tuple[Array, Array]:
    """A factored factor of LoHa or LoKr (`hada_w1`, `lokr_w2`) as (out, p) and (p, in, *kernel). Raises ValueError."""
    left, right, core = arrays[f"{factor}_a"], arrays[f"{factor}_b"], arrays.get(factor.replace("_w", "_t"))
    return (left, right) if core is None else (left.T, through_core(core, right))


# A matrix, or a stack of them for the pixels of a kernel, as left (out, p) x core (p, q, pixels) x right (q, in).
Factors = tuple[Array, Array, Array | None]


def _matrix(left: Array, right: Array, core: Array | None) -> Factors:
    return flat(left), flat(right), None if core is None else core.reshape(*core.shape[:2], -1).transpose(2, 0, 1)


def _factored(a: Factors, b: Factors) -> float:
    check_room(a[0].shape[1], b[0].shape[1])
    check_room(len(a[1]), len(b[1]))
    outer, across = a[0].T @ b[0], a[1] @ b[1].T
    if a[2] is None or b[2] is None:
        return float(np.vdot(outer, across))  # unlike a product, refuses arrays of different sizes
    return float(((a[2].transpose(0, 2, 1) @ outer @ b[2]).transpose(0, 2, 1) * across.T).sum())


def _product(left: str, right: str, core: str, a: Arrays, b: Arrays) -> float:
    return _factored(*(_matrix(arrays[left], arrays[right], arrays.get(core)) for arrays in (a, b)))


def _loha(a: Arrays, b: Arrays) -> float:
    pairs = [factors_of(arrays, f"hada_w{n}") for arrays in (a, b) for n in "12"]
    factors = [(left, flat(right)) for left, right in pairs]
    rows, columns = len(factors[0][0]), factors[0][1].shape[1]
    band = max(_BAND // max(columns, 1), 1)
    total = 0.0
    for start in range(0, rows, band):
        one, two, three, four = (left[start : start + band] @ right for left, right in factors)
        total += float(np.vdot(one * two, three * four))
    return total


def _lokr(a: Arrays, b: Arrays) -> float:
    return math.prod(_kron_factor(a, b, n) for n in "12")


def _kron_factor(a: Arrays, b: Arrays, n: str) -> float:
    if f"lokr_w{n}" in a:
        return float(np.vdot(a[f"lokr_w{n}"], b[f"lokr_w{n}"]))
    return _factored(_low_rank(a, n), _low_rank(b, n))


def _low_rank(arrays: Arrays, n: str) -> Factors:
    left, right, core = arrays[f"lokr_w{n}_a"], arrays[f"lokr_w{n}_b"], arrays.get(f"lokr_t{n}")
    return _matrix(left if core is None else left.T, right, core)


def _glora(a: Arrays, b: Arrays) -> float:
    pairs = [pair for pair in (("a1", "a2"), ("b1", "b2")) if {*pair} <= a.keys() & b.keys()]
    pairs = [pair if _is_outer(a[pair[0]], a[pair[1]]) else pair[::-1] for pair in pairs]
    return sum(_product(*pair, "bm" if "b1" in pair else "", a, b) for pair in pairs)


def _is_outer(one: Array, other: Array) -> bool:
    """Whether the product is one times other: before LyCORIS 2.0 the first of each pair was the inner one."""
    either = other.shape[1] == len(one)
    return one.shape[1] == len(other) and (not either or len(one) >= one.shape[1])


_INNER: dict[str, Callable[[Arrays, Arrays], float]] = {
    "lora": partial(_product, "up", "down", "mid"),
    "adalora": partial(_product, "up", "down", ""),
    "lora_embedding": partial(_product, "embedding_b", "embedding_a", ""),
    "glora": _glora,
    "loha": _loha,
    "lokr": _lokr,
}
WHOLE = ("full", "norm", "bias")  # algorithms whose tensors are summands themselves
_ON_BASE = ("a1", "a2")  # GLoRA's product that multiplies the base weight
_ROLES = {
    *("up", "down", "lora_e", "mid", "embedding_a", "embedding_b", "b1", "b2", "bm", *_ON_BASE, *ADDITIVE),
    *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
}
