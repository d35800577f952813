"""Arithmetic: bytes of one dtype times a factor become bytes of another, exactly rounded once.

An 8- or 16-bit dtype times one factor is a table of all its values, computed in float64 and applied by lookup:
no branch per dtype, NaN and infinity included, and the same bytes wherever the lookup runs. Wider dtypes
multiply directly in float64. ml_dtypes supplies bfloat16 and the float8 dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, reduce
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Transform = Callable[[Bytes, Bytes], None]

# safetensors' dtype -> numpy's or ml_dtypes' name, for the dtypes a factor can be applied to.
_FLOATS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
_NATIVE = ("float16", "float32", "float64")
FLOATS = frozenset(_FLOATS)
FLOAT8 = frozenset(name for name in _FLOATS if name.startswith("F8"))

# Elements per lookup: a table of 128 KiB and its input and output stay in a core's second-level cache.
_PIECE = 32 * 1024


@cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy dtype of a safetensors float dtype (`BF16`)."""
    spelled = _FLOATS[name]
    if spelled in _NATIVE:
        return np.dtype(spelled)
    import ml_dtypes

    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, spelled))
    return dtype


@cache
def largest(name: str) -> float:
    """The largest finite value of a safetensors float dtype."""
    return float(_limits(name).max)


@cache
def smallest(name: str) -> float:
    """The smallest number above 0 of a safetensors float dtype."""
    return float(_limits(name).smallest_subnormal)


def _limits(name: str) -> Any:
    dtype = numpy_dtype(name)
    if dtype.name in _NATIVE:
        return np.finfo(dtype)
    import ml_dtypes

    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def itemsize(name: str) -> int:
    """Bytes per element of a safetensors float dtype."""
    return numpy_dtype(name).itemsize


@dataclass(frozen=True, slots=True)
class Multiply:
    """Multiply by a factor (a Python float) while going from one safetensors float dtype to another."""

    source: str
    target: str
    factor: float

    @property
    def may_overflow(self) -> bool:
        """Whether some finite value of the source dtype has a product beyond the target dtype."""
        return largest(self.source) * abs(self.factor) > largest(self.target)

    @property
    def tabled(self) -> bool:
        """Whether the source dtype is small enough for a table of all its values."""
        return itemsize(self.source) <= 2

    # Distinct factors are few in any one file; what would come together over thousands of files is bounded.
    @lru_cache(maxsize=128)  # noqa: B019 - what it keeps alive is three small values
    def table(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Target bit pattern by source bit pattern: 256 or 65,536 unsigned integers."""
        source, target = numpy_dtype(self.source), numpy_dtype(self.target)
        bits = np.arange(1 << 8 * source.itemsize, dtype=f"u{source.itemsize}")
        return multiply(bits.view(source), self.factor, target).view(f"u{target.itemsize}")

    @lru_cache(maxsize=128)  # noqa: B019 - as above
    def transform(self) -> Transform:
        """The function that does this to any whole number of elements: from the first bytes into the second."""
        return _by_table(self) if self.tabled else _by_product(self)

    def applied(self, data: Bytes) -> Bytes:
        """The products of a whole number of elements, given as bytes."""
        products = np.empty(len(data) // itemsize(self.source) * itemsize(self.target), np.uint8)
        self.transform()(data, products)
        return products


class Backend:
    """Where bytes are multiplied, and the memory that products go to: here numpy's; `cuda` has a GPU's."""

    def transform(self, step: Multiply) -> Transform:
        """The function that multiplies bytes. It may use the bytes it is given only until it returns.

        Products of the same size may take the place of what they are made from.
        """
        return step.transform()

    def memory(self, nbytes: int) -> Bytes:
        """New memory that products can be written to quickly."""
        return np.empty(nbytes, np.uint8)

    def wait(self) -> None:
        """Return when all products of transforms that were called are where they were to go."""


CPU = Backend()


# Signalling NaN and overflow are ordinary values here, nothing to warn of.
@contextmanager
def unwarned() -> Iterator[None]:
    """Have numpy not warn of what numbers become, and afterwards as the program has it.

    An errstate that decorates would serve all calls, of which numpy 1 remembers one state: functions that call one
    another, or run in several threads, would leave the program without its warnings.
    """
    with np.errstate(all="ignore"):
        yield


@unwarned()
def multiply(values: npt.NDArray[Any], factor: float, target: np.dtype[Any]) -> npt.NDArray[Any]:
    """Values of any float dtype times a factor in float64, rounded once to the target dtype; NaN keeps its bits."""
    products = round_to(values.astype(np.float64) * factor, target)
    if values.dtype == target and (nan := np.isnan(values)).any():
        products[nan] = values[nan]
    return products


@unwarned()
def round_to(values: npt.NDArray[np.float64], target: np.dtype[Any]) -> npt.NDArray[Any]:
    """Float64 values rounded once, to nearest even, to the target dtype.

    ml_dtypes goes through float32 and so rounds twice. Rounding to odd on the way (the last bit of an inexact
    float32 set) makes the second rounding right (Boldo & Melquiond, 2008).
    """
    if target.name in _NATIVE:
        return values.astype(target)
    nearest = values.astype(np.float32)
    bits = nearest.view(np.uint32)
    away = np.abs(nearest.astype(np.float64)) > np.abs(values)
    inexact = nearest.astype(np.float64) != values
    odd = np.where(inexact & ~np.isnan(values), (bits - away) | 1, bits).astype(np.uint32)
    return odd.view(np.float32).astype(target)


@dataclass(frozen=True, slots=True)
class Survey:
    """What multiplying a tensor would do to it.

    `peak` is its largest finite magnitude; `overflows`: a finite value becomes infinite or NaN; `inexact`: a
    value is not the exact product.
    """

    peak: float = 0.0
    overflows: bool = False
    inexact: bool = False


def survey(step: Multiply, pieces: Iterable[Bytes]) -> Survey:
    """Look at all of a tensor's data, given in pieces, before multiplying it."""
    source = numpy_dtype(step.source)
    if not step.tabled:
        return reduce(_worse, (_survey_values(step, piece.view(source)) for piece in pieces), Survey())
    index = np.dtype(f"u{source.itemsize}")
    seen = np.zeros(1 << 8 * source.itemsize, bool)
    for piece in pieces:
        seen[piece.view(index)] = True
    return _survey_values(step, np.flatnonzero(seen).astype(index).view(source))


@unwarned()
def _survey_values(step: Multiply, values: npt.NDArray[Any]) -> Survey:
    wide = values.astype(np.float64)
    wide = wide[np.isfinite(wide)]
    if not wide.size:
        return Survey()
    exact = wide * step.factor
    got = round_to(exact, numpy_dtype(step.target)).astype(np.float64)
    return Survey(float(np.abs(wide).max()), not np.isfinite(got).all(), bool((got != exact).any()))


def _worse(one: Survey, other: Survey) -> Survey:
    return Survey(max(one.peak, other.peak), one.overflows or other.overflows, one.inexact or other.inexact)


def not_finite(dtype: str, data: Bytes) -> tuple[int, int]:
    """How many NaN and how many infinities there are among values of a safetensors float dtype, given as bytes."""
    # The largest bit patterns of either sign tell whether any is beyond: far quicker than asking each of them.
    patterns = _largest_patterns(dtype)
    if patterns and all(np.maximum.reduce(data.view(kind), initial=0) <= finite for kind, finite in patterns):
        return 0, 0
    with np.errstate(all="ignore"):
        values = data.view(numpy_dtype(dtype))
        return int(np.isnan(values).sum()), int(np.isinf(values).sum())


def vanishing(step: Multiply, data: Bytes) -> tuple[int, int]:
    """How many finite numbers of the source dtype, given as bytes, are not 0, and how many of these become 0."""
    kind = np.dtype(f"u{itemsize(step.source)}")
    # Without their signs, bit patterns are in the order of what they stand for; that of 0 becomes the largest.
    before = (data.view(kind) & kind.type(np.iinfo(kind).max >> 1)) - kind.type(1)
    finite, gone = (int(np.count_nonzero(before < last)) for last in _last_patterns(step))
    return finite, gone


@lru_cache(maxsize=128)
def _last_patterns(step: Multiply) -> tuple[int, int]:
    """The bits of the largest finite number of the source dtype, and of the largest whose product is rounded to 0."""
    finite, halfway = largest(step.source), smallest(step.target) / 2
    with np.errstate(all="ignore"):
        nearest = float(np.array(min(halfway / abs(step.factor), finite), numpy_dtype(step.source)))
    above = nearest * abs(step.factor) > halfway
    return _pattern(finite, step.source), _pattern(nearest, step.source) - above


def _pattern(number: float, dtype: str) -> int:
    """The bits of a number in a safetensors float dtype."""
    return int(np.array(number, numpy_dtype(dtype)).view(f"u{itemsize(dtype)}"))


@cache
def _largest_patterns(dtype: str) -> tuple[tuple[np.dtype[Any], int], ...]:
    """The bits of the largest finite value of a safetensors float dtype, read as positive numbers and as negative."""
    size = itemsize(dtype)
    bits, finite = 8 * size, _pattern(largest(dtype), dtype)
    kinds = ((np.dtype(f"i{size}"), finite), (np.dtype(f"u{size}"), finite | 1 << bits - 1))
    return kinds if bits > 8 else ()


def _by_table(step: Multiply) -> Transform:
    table = step.table()
    index = np.dtype(f"u{itemsize(step.source)}")

    def transform(data: Bytes, out: Bytes) -> None:
        bits, products = data.view(index), out.view(table.dtype)
        for start in range(0, len(bits), _PIECE):
            piece = slice(start, start + _PIECE)
            # Every index is in range by its type; "clip" only spares numpy the check.
            table.take(bits[piece], out=products[piece], mode="clip")

    return transform


def _by_product(step: Multiply) -> Transform:
    source, target = numpy_dtype(step.source), numpy_dtype(step.target)

    def transform(data: Bytes, out: Bytes) -> None:
        values, products = data.view(source), out.view(target)
        for start in range(0, len(values), _PIECE):
            piece = slice(start, start + _PIECE)
            products[piece] = multiply(values[piece], step.factor, target)

    return transform
