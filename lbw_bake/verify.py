"""What was written, read again and held to its plan before it gets its name.

It shares with what wrote it the plan and nothing else: a stored number is right if no neighbour of it in its dtype is
nearer to the exact one, which needs no rounding of our own; hashes are taken anew from what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .edits import Compute, Drop, Edit, Fill
from .errors import FileFormatError, VerificationError
from .metadata import DataHashes
from .plan import Plan
from .progress import Progress, silent
from .scaling import FLOATS, Multiply, itemsize, numpy_dtype, unwarned
from .tensordata import PIECE, TensorData
from .tensorfile import Header, Tensor, TensorFile, read_header

Flags = npt.NDArray[np.bool_]

# Numbers looked at together: a piece of the widest dtype.
_NUMBERS = PIECE // 8

# Distinct factors whose products are remembered, at up to 320 kB each.
_FACTORS = 16

# Computed twice, a number may differ by this part of the tensor's largest: sums need not run in the same order.
_COMPUTED_TWICE = 1e-12


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file should be: a plan carried out, under these metadata; `hashed`: with true hashes of its data."""

    plan: Plan
    output: Path
    metadata: Mapping[str, str]
    hashed: bool


def verify(expected: Expected, written: Path, data: TensorData, progress: Progress = silent) -> None:
    """Hold a written file to what it should be; `data` is the plan's input, `progress` is told of large ones.

    Raises VerificationError naming what is wrong, FileFormatError for an input that cannot be read.
    """
    try:
        file = read_header(written)
        with TensorData(file) as copy:
            _check_tensors(expected, file)
            _check_metadata(expected, file, copy)
            _check_data(expected, expected.plan.lora.file.passed(progress), file, data, copy)
    except FileFormatError as error:
        if error.path != written:
            raise
        raise VerificationError(expected.output, error.problem) from error


@unwarned()
def nearest(stored: npt.NDArray[Any], exact: npt.NDArray[np.float64], slack: float = 0.0) -> Flags:
    """Whether each stored number is the one of its dtype nearest to the exact one, the even one of two.

    It is if the exact one lies between the middles of the gaps to its neighbours, which float64 holds exactly for every
    narrower dtype. `slack` is how far beyond them it may lie.
    """
    unsigned = np.dtype(f"u{stored.itemsize}").type
    magnitude = stored.view(unsigned) & unsigned((1 << 8 * stored.itemsize - 1) - 1)
    got, wanted = stored.astype(np.float64), np.abs(exact)
    above = _value(magnitude + unsigned(1), stored.dtype)
    below = np.where(magnitude > 0, _value(magnitude - (magnitude > 0), stored.dtype), -above)
    low, high = (np.abs(got) + below) / 2, (np.abs(got) + above) / 2
    even = (magnitude % 2 == 0) & ((wanted == low) | (wanted == high))
    near = (low - slack < wanted) & (wanted < high + slack) | even
    if stored.dtype == np.float64:
        near = np.abs(got - exact) <= slack
    # Some dtypes have no negative zero, and what is computed twice may be either.
    signless = (got == 0) & (stored.dtype.name.endswith("fnuz") or slack > 0)
    right: Flags = near & (signless | (np.signbit(got) == np.signbit(exact)))
    return np.where(np.isfinite(exact), right, (got == exact) | (np.isnan(got) & np.isnan(exact)))


def _value(magnitude: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """What these bits mean without a sign, infinity for what is no number."""
    value = magnitude.astype(f"u{dtype.itemsize}").view(dtype).astype(np.float64)
    return np.where(np.isnan(value), np.inf, value)


def _check_tensors(expected: Expected, file: TensorFile) -> None:
    edits = expected.plan.edition.edits
    tensors = [(tensor, edits.get(tensor.name)) for tensor in expected.plan.lora.file.tensors]
    wanted = [_form(tensor, edit) for tensor, edit in tensors if not isinstance(edit, Drop)]
    got = [(tensor.name, tensor.dtype, tensor.shape) for tensor in file.tensors]
    for one, other in zip(wanted, got, strict=False):
        if one != other:
            raise VerificationError(expected.output, f"its header has {other} in the place of {one}")
    if len(wanted) != len(got):
        raise VerificationError(expected.output, f"it has {len(got)} tensors, not {len(wanted)}")


def _form(tensor: Tensor, edit: Edit | None) -> tuple[str, str, tuple[int, ...]]:
    """Name, dtype and shape of what becomes of a tensor."""
    if isinstance(edit, Compute):
        return edit.name, edit.dtype, edit.shape
    if isinstance(edit, Multiply):
        return tensor.name, edit.target, tensor.shape
    return tensor.name, edit.dtype if isinstance(edit, Fill) else tensor.dtype, tensor.shape


def _check_metadata(expected: Expected, file: TensorFile, copy: TensorData) -> None:
    wanted = dict(expected.metadata)
    if expected.hashed:
        hashes = DataHashes(Header(file.tensors), expected.metadata)
        for piece in copy.between(file.data_start, file.size):
            hashes.update(piece.data)
        wanted = hashes.metadata()
    got = dict(file.metadata)
    wrong = [key for key in wanted | got if wanted.get(key) != got.get(key)]
    if wrong:
        raise VerificationError(expected.output, f"{wrong[0]} in its metadata is not what it should be")


def _check_data(
    expected: Expected, tensors: Iterable[Tensor], file: TensorFile, data: TensorData, copy: TensorData
) -> None:
    edits = expected.plan.edition.edits
    written = {tensor.name: tensor for tensor in file.tensors}
    products = lru_cache(maxsize=_FACTORS)(_Products)
    for tensor in tensors:
        edit = edits.get(tensor.name)
        if isinstance(edit, Drop):
            continue
        result = written[edit.name if isinstance(edit, Compute) else tensor.name]
        position = 0
        for right in _judged(tensor, edit, result, data, copy, products):
            if not right.all():
                where = f"number {position + int(right.argmin())}" if edit else f"byte {position + int(right.argmin())}"
                raise VerificationError(expected.output, f"{result.name} is not what it should be at {where}")
            position += len(right)


def _judged(
    tensor: Tensor,
    edit: Edit | None,
    result: Tensor,
    data: TensorData,
    copy: TensorData,
    products: Callable[[Multiply], _Products],
) -> Iterator[Flags]:
    """Whether the bytes of a copied tensor, the numbers of any other, are right: in pieces."""
    if isinstance(edit, Multiply):
        pairs = zip(_numbers(data, tensor), _numbers(copy, result), strict=True)
        yield from (products(edit).judge(one, other) for one, other in pairs)
    elif isinstance(edit, Compute):
        yield from _is_computed(np.asarray(edit.values(data.read), np.float64).reshape(-1), _numbers(copy, result))
    elif isinstance(edit, Fill):
        yield from (_is_filled(piece, edit) for piece in copy.pieces(result))
    else:
        copied = zip(data.pieces(tensor), copy.pieces(result), strict=True)
        yield from (one == other for one, other in copied)


def _numbers(data: TensorData, tensor: Tensor) -> Iterator[npt.NDArray[Any]]:
    """A tensor's numbers, so many together whatever their dtype."""
    dtype = numpy_dtype(tensor.dtype)
    return (piece.view(dtype) for piece in data.pieces(tensor, _NUMBERS * dtype.itemsize))


class _Products:
    """Judges numbers against a factor; a narrow number and its product are judged once and then known by their bits."""

    def __init__(self, step: Multiply) -> None:
        self._factor = step.factor
        patterns = 1 << 16 if step.tabled else 0
        self._right = np.zeros(patterns, f"u{itemsize(step.target)}")
        self._judged = np.zeros(patterns, bool)

    def judge(self, source: npt.NDArray[Any], stored: npt.NDArray[Any]) -> Flags:
        """Whether each stored number is the product of the source's."""
        if not len(self._judged):
            return _is_product(source, self._factor, stored)
        index, bits = source.view(f"u{source.itemsize}"), stored.view(self._right.dtype)
        known: Flags = self._judged[index] & (self._right[index] == bits)
        new = np.flatnonzero(~known)
        if len(new):
            known[new] = right = _is_product(source[new], self._factor, stored[new])
            self._right[index[new][right]] = bits[new][right]
            self._judged[index[new][right]] = True
        return known


@unwarned()
def _is_product(source: npt.NDArray[Any], factor: float, stored: npt.NDArray[Any]) -> Flags:
    right = nearest(stored, source.astype(np.float64) * factor)
    if source.dtype == stored.dtype:  # then NaN keeps its bits
        unsigned = f"u{stored.itemsize}"
        right &= ~np.isnan(source) | (source.view(unsigned) == stored.view(unsigned))
    return right


def _is_computed(exact: npt.NDArray[np.float64], numbers: Iterator[npt.NDArray[Any]]) -> Iterator[Flags]:
    slack = _COMPUTED_TWICE * float(np.abs(exact[np.isfinite(exact)]).max(initial=0.0))
    position = 0
    for stored in numbers:
        yield nearest(stored, exact[position : position + len(stored)], slack)
        position += len(stored)


def _is_filled(piece: npt.NDArray[np.uint8], fill: Fill) -> Flags:
    numeric = fill.value and fill.dtype in FLOATS
    right: Flags = piece.view(numpy_dtype(fill.dtype)).astype(np.float64) == fill.value if numeric else piece == 0
    return right
