"""Singular values of updates: how strong a module is in its strongest direction, and how many directions it uses.

The update itself is built only where that is no larger than its factors: a product's singular values are those of
the small core that QR of both factors leaves, a Kronecker product's are the products of its factors', and a full
matrix has a Gram matrix on its smaller side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from .lowrank import FORMS
from .modules import Module
from .scaling import unwarned
from .updates import MISFIT, Array, Arrays, Read, Scale, arrays_of, factors_of, flat


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The largest singular value of a module's update, and its effective rank.

    The effective rank is exp(H), H the entropy of the singular values divided by their sum (Roy and Vetterli 2007):
    1 for one direction, n for n equal ones. It is None for an update that is zero.
    """

    largest: float
    effective_rank: float | None


@unwarned()  # NaN and infinity make values that say so
def spectrum(module: Module, read: Read, scale_of: Scale) -> Spectrum | None:
    """The spectrum of a module's update at weight 1, biases left out.

    None where the update is no matrix, depends on the base model, or cannot be told from such tensors. DoRA counts
    without its magnitude. `read` gives a tensor as an array.
    """
    values_of = _VALUES.get(module.algorithm.name)
    if values_of is None:
        return None
    try:
        arrays = arrays_of(module, read)
        values = values_of(arrays) * abs(scale_of(module, read))
    except (*MISFIT, np.linalg.LinAlgError):  # NaN and infinity too
        return None
    if not values.size or not np.isfinite(values).all():
        return None
    return Spectrum(float(values.max()), effective_rank(values))


def effective_rank(values: Array) -> float | None:
    """exp(entropy) of values divided by their sum, None if that is zero."""
    total = float(values.sum())
    if not total:
        return None
    shares = values[values > 0] / total
    return math.exp(-float((shares * np.log(shares)).sum()))


def _of_product(left: Array, right: Array) -> Array:
    """Singular values of left x right."""
    if left.shape[1] >= min(len(left), right.shape[1]):
        return _of_matrix(left @ right)
    one, two = (np.asarray(np.linalg.qr(matrix, mode="r")) for matrix in (left, right.T))
    return np.linalg.svd(one @ two.T, compute_uv=False)


def _of_matrix(matrix: Array) -> Array:
    """Singular values by the Gram matrix on the smaller side; those below 1e-8 of the largest are noise."""
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    values: Array = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0.0, None))
    return values


def _low_rank(algorithm: str, arrays: Arrays) -> Array:
    update = FORMS[algorithm](arrays, ())
    return _of_product(update.up, flat(update.down))


def _loha(arrays: Arrays) -> Array:
    (a, b), (c, d) = (factors_of(arrays, f"hada_w{n}") for n in "12")
    b, d = flat(b), flat(d)
    if a.shape[1] * c.shape[1] >= min(len(a), b.shape[1]):
        return _of_matrix((a @ b) * (c @ d))
    return _low_rank("loha", arrays)


def _kron_factor(arrays: Arrays, factor: str) -> Array:
    if (full := arrays.get(factor)) is not None:
        return np.linalg.svd(flat(full), compute_uv=False)
    left, right = factors_of(arrays, factor)
    return _of_product(left, flat(right))


_VALUES: dict[str, Callable[[Arrays], Array]] = {
    "lora": partial(_low_rank, "lora"),
    "adalora": partial(_low_rank, "lora"),
    "lora_embedding": lambda arrays: _of_product(arrays["embedding_b"], arrays["embedding_a"]),
    "loha": _loha,
    "lokr": lambda arrays: np.outer(*(_kron_factor(arrays, f"lokr_w{n}") for n in "12")).reshape(-1),
    "full": lambda arrays: _of_matrix(flat(arrays["diff"])) if arrays["diff"].ndim > 1 else np.empty(0),
}
