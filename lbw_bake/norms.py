"""How strong a module's update is: its Frobenius norm, without ever building the update.

A product's norm needs only the Gram matrices of its factors, rank x rank. LoHa alone is built, a band of rows at
a time. Formulas: LyCORIS' `functional` package; `alpha / rank` as web UIs read it (1 where alpha is absent).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from .algorithms import ADDITIVE
from .modules import Module
from .tensorfile import Tensor

Array = npt.NDArray[Any]
Read = Callable[[Tensor], Array]

_BAND = 1 << 20  # elements of a LoHa update built at a time


def update_norm(module: Module, read: Read) -> float | None:
    """The Frobenius norm of the module's update at weight 1, None where it depends on the base model.

    `read` gives a tensor as a float array. DoRA counts without its magnitude, GLoRA without its part in the base.
    """
    tensors = {role: read(group[0]) for role, group in module.tensors.items() if role in _READ_ROLES}
    squared = sum(float(np.square(tensors[role], dtype=np.float64).sum()) for role in ADDITIVE if role in tensors)
    if module.algorithm.name in _PRODUCTS:
        squared += (_PRODUCTS[module.algorithm.name](tensors) * _scale(module, tensors)) ** 2
    elif module.algorithm.name not in _SUMS:
        return None
    return math.sqrt(squared)


def alpha_of(module: Module, read: Read) -> float | None:
    """The module's alpha, None where the file has none."""
    group = module.tensors.get("alpha")
    return float(read(group[0]).reshape(-1)[0]) if group and group[0].size else None


def _scale(module: Module, tensors: Mapping[str, Array]) -> float:
    full = module.algorithm.name == "lokr" and "lokr_w1" in tensors and "lokr_w2" in tensors
    if full or "alpha" not in tensors or not module.rank:
        return 1.0
    return float(tensors["alpha"].reshape(-1)[0]) / module.rank


def _matrix_norm(left: Array, right: Array, core: Array | None = None) -> float:
    """Norm of left (out, p) x core (p, q, ...) x right (q, in); no core stands for the identity."""
    outer, inner = left.T @ left, right @ right.T
    if core is None:
        return math.sqrt(max(float((outer * inner).sum()), 0.0))
    slices = core.reshape(*core.shape[:2], -1).transpose(2, 0, 1)
    return math.sqrt(max(float(((outer @ slices @ inner) * slices).sum()), 0.0))


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1)


def _lora(t: Mapping[str, Array]) -> float:
    return _matrix_norm(_flat(t["up"]), _flat(t["down"]), t.get("mid"))


def _loha(t: Mapping[str, Array]) -> float:
    one, two = (_hada(t, n) for n in "12")
    band = max(_BAND // one[1].shape[1], 1)
    rows = range(0, len(one[0]), band)
    return math.sqrt(sum(_square(_rows(one, start, band) * _rows(two, start, band)) for start in rows))


def _hada(t: Mapping[str, Array], n: str) -> tuple[Array, Array]:
    """One Hadamard factor as (out, rank) and (rank, everything else)."""
    left, right, core = t[f"hada_w{n}_a"], t[f"hada_w{n}_b"], t.get(f"hada_t{n}")
    if core is None:
        return left, _flat(right)
    return left.T, _flat(np.einsum("pq...,qi->pi...", core, right))


def _rows(factors: tuple[Array, Array], start: int, count: int) -> Array:
    product: Array = factors[0][start : start + count] @ factors[1]
    return product


def _square(array: Array) -> float:
    return float(np.square(array, dtype=np.float64).sum())


def _lokr(t: Mapping[str, Array]) -> float:
    return _kron_factor(t, "1") * _kron_factor(t, "2")


def _kron_factor(t: Mapping[str, Array], n: str) -> float:
    if f"lokr_w{n}" in t:
        return math.sqrt(_square(t[f"lokr_w{n}"]))
    left, right, core = t[f"lokr_w{n}_a"], t[f"lokr_w{n}_b"], t.get(f"lokr_t{n}")
    return _matrix_norm(left, _flat(right)) if core is None else _matrix_norm(left.T, right, core)


def _glora(t: Mapping[str, Array]) -> float:
    return _matrix_norm(_flat(t["b1"]), _flat(t["b2"]), t.get("bm"))


_PRODUCTS: dict[str, Callable[[Mapping[str, Array]], float]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
    "glora": _glora,
    "lora_embedding": lambda t: _matrix_norm(t["embedding_b"], t["embedding_a"]),
}
_SUMS = ("full", "norm", "bias")
_READ_ROLES = frozenset(
    {
        *("up", "down", "mid", "alpha", "embedding_a", "embedding_b", "b1", "b2", "bm", *ADDITIVE),
        *(f"hada_{part}" for part in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
        *(f"lokr_{part}" for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    }
)
