"""The bytes of tensors that are filled with a value, computed, or multiplied one by one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .edits import Compute, Drop, Fill, edited, fitting
from .errors import NotBakeableError
from .factors import weigh
from .modules import Module
from .scaling import FLOATS, Bytes, Multiply, numpy_dtype, round_to
from .tensordata import PIECE, TensorData
from .tensorfile import Tensor
from .updates import Array

# A tensor to be written, and its bytes in pieces.
Made = tuple[Tensor, Iterator[Bytes]]


def _constant(fill: Fill, nbytes: int) -> Iterator[Bytes]:
    """So many bytes of one value, in pieces."""
    dtype = numpy_dtype(fill.dtype) if fill.dtype in FLOATS else np.dtype(np.uint8)
    piece = np.full(min(PIECE, nbytes) // dtype.itemsize, fill.value, dtype).view(np.uint8)
    for start in range(0, nbytes, PIECE):
        yield piece[: nbytes - start]


def rounded(name: str, dtype: str, values: Array) -> Iterator[Bytes]:
    """The bytes of float64 values rounded once to a safetensors dtype, in pieces.

    Raises NotBakeableError, naming the tensor, for a value that is not finite.
    """
    target = numpy_dtype(dtype)
    values = np.ascontiguousarray(values, np.float64).reshape(-1)
    step = PIECE // target.itemsize
    for start in range(0, len(values), step):
        piece = values[start : start + step]
        if not np.isfinite(piece).all():
            hint = "use a smaller weight, or leave out the file: it may hold NaN or infinity"
            raise NotBakeableError(f"{name}: comes out as NaN or infinity", hint)
        stored = round_to(piece, target)
        if not np.isfinite(stored.astype(np.float64)).all():
            raise NotBakeableError(f"{name}: overflows {dtype}", "write wider numbers with --dtype f32")
        yield stored.view(np.uint8)


def bake_module(module: Module, weight: float, dtype: str | None, data: TensorData) -> list[Made]:
    """A module's tensors as a bake writes them at a weight. Raises NotBakeableError."""
    _, edits = weigh(module, weight, dtype, data.survey)
    kept = ((tensor, edits.get(tensor.name)) for tensor in module.all_tensors)
    return [(edited(tensor, edit), remade(tensor, edit, data)) for tensor, edit in kept if not isinstance(edit, Drop)]


def remade(tensor: Tensor, edit: Multiply | Fill | Compute | None, data: TensorData) -> Iterator[Bytes]:
    """The bytes an edit makes of a tensor, in pieces. Raises NotBakeableError for computed values not finite."""
    if isinstance(edit, Fill):
        yield from _constant(edit, edited(tensor, edit).nbytes)
    elif isinstance(edit, Compute):
        with fitting(edit.name), np.errstate(all="ignore"):
            values = edit.values(data.read)
        yield from rounded(edit.name, edit.dtype, values)
    else:
        for piece in data.pieces(tensor):
            yield edit.applied(piece) if edit else piece
