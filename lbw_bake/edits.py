"""What becomes of one tensor: it is multiplied, filled, computed or left out; else it is copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .algorithms import Shape
from .errors import NotBakeableError
from .scaling import FLOAT8, Multiply, itemsize
from .tensorfile import Tensor
from .updates import MISFIT, Array, Read

LEAVE_OUT = "no loader could apply this module; leave the file out"


@contextmanager
def fitting(name: str) -> Iterator[None]:
    """Raise NotBakeableError about a module (or tensor) in place of what tensors that do not fit together lead to."""
    try:
        yield
    except (*MISFIT, RuntimeError) as error:  # torch's are RuntimeErrors
        raise NotBakeableError(f"{name}: its tensors do not fit together: {error}", LEAVE_OUT) from error


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


def edited(tensor: Tensor, edit: Multiply | Fill | Compute | None) -> Tensor:
    """The tensor that results, of the right length."""
    if edit is None:
        return tensor
    if isinstance(edit, Compute):
        return new_tensor(edit.name, edit.dtype, edit.shape)
    dtype = edit.target if isinstance(edit, Multiply) else edit.dtype
    return tensor if dtype == tensor.dtype else new_tensor(tensor.name, dtype, tensor.shape)


def new_tensor(name: str, dtype: str, shape: Shape) -> Tensor:
    """A tensor of floats to be written: its length is known, its place is still to be found."""
    return Tensor(name, dtype, shape, 0, math.prod(shape) * itemsize(dtype))


def stored_as(tensor: Tensor, dtype: str | None) -> str:
    """The dtype of new values in place of a tensor's: its own unless another is asked for, or it is a float8."""
    return dtype or ("BF16" if tensor.dtype in FLOAT8 else tensor.dtype)


def towards(tensor: Tensor, weight: float, neutral: Array | float) -> Compute:
    """N + weight (tensor - N) for a neutral N, in float32: half precision has no room for small differences from 1."""

    def values(read: Read) -> Array:
        return neutral + weight * (read(tensor).astype(np.float64) - neutral)

    return Compute(tensor.name, "F32", tensor.shape, values)
