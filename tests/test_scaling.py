"""Every product is the float64 product, rounded once, for every bit pattern there is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from conftest import transformed
from hypothesis import given, settings
from hypothesis import strategies as st

from lbw_bake.scaling import FLOATS, Multiply, Survey, largest, numpy_dtype, smallest, survey, vanishing

FACTORS = (1.0, -1.0, 0.5, 0.3, -0.7, 1.5, 3.0, 2.0**-9, 1e-3, 1e5, -1e-30)


@dataclass(frozen=True)
class Format:
    """A small float format, decoded and rounded to without numpy's or ml_dtypes' help.

    `infinite` formats end in infinity and NaN as IEEE's do; `E4M3` has one NaN at its end; the `FNUZ` ones have one
    NaN in the place of -0.
    """

    exponent: int
    mantissa: int
    bias: int
    infinite: bool = False
    fnuz: bool = False

    @property
    def sign(self) -> int:
        return 1 << (self.exponent + self.mantissa)

    @property
    def magnitudes(self) -> np.ndarray:
        """The value of every bit pattern without a sign, as if all of them were finite: sorted, so indexed by it."""
        bits = np.arange(self.sign + 1)
        exponents, fraction = bits >> self.mantissa, bits & ((1 << self.mantissa) - 1)
        normal = fraction + (exponents > 0) * (1 << self.mantissa)
        return np.ldexp(normal.astype(np.float64), np.maximum(exponents, 1) - self.bias - self.mantissa)

    @property
    def limit(self) -> int:
        """The first bit pattern that is not finite."""
        if self.infinite:
            return ((1 << self.exponent) - 1) << self.mantissa
        return self.sign if self.fnuz else self.sign - 1

    def decode(self) -> np.ndarray:
        """The value of every bit pattern."""
        values = self.magnitudes[: self.sign]
        if not self.fnuz:
            values[self.limit :] = np.nan
        if self.infinite:
            values[self.limit] = np.inf
        both = np.concatenate([values, -values])
        if self.fnuz:
            both[self.sign] = np.nan
        return both

    def encode(self, values: np.ndarray) -> np.ndarray:
        """The bit pattern nearest to every value, ties to even; -1 for NaN."""
        magnitudes, wanted = self.magnitudes[: self.limit + 1], np.minimum(np.abs(values), np.finfo(np.float64).max)
        above = np.clip(np.searchsorted(magnitudes, wanted), 1, self.limit)
        middle = (magnitudes[above - 1] + magnitudes[above]) / 2
        down = (wanted < middle) | ((wanted == middle) & (above % 2 == 1))
        bits = above - down
        negative = np.signbit(values) & ~((bits == 0) & self.fnuz)
        nan = np.isnan(values) | ((bits == self.limit) & (not self.infinite))
        return np.where(nan, -1, bits + np.where(negative, self.sign, 0))


FORMATS = {
    "F16": Format(5, 10, 15, infinite=True),
    "BF16": Format(8, 7, 127, infinite=True),
    "F8_E4M3": Format(4, 3, 7),
    "F8_E5M2": Format(5, 2, 15, infinite=True),
    "F8_E4M3FNUZ": Format(4, 3, 8, fnuz=True),
    "F8_E5M2FNUZ": Format(5, 2, 16, fnuz=True),
}
SMALL = pytest.mark.parametrize("dtype", FORMATS)


def assert_rounded(got: np.ndarray, products: np.ndarray, target: str) -> None:
    """These bit patterns are the products rounded once; which NaN a new NaN is does not matter."""
    expected = FORMATS[target].encode(products)
    nan = expected == -1
    np.testing.assert_array_equal(got[~nan], expected[~nan])
    assert np.isnan(FORMATS[target].decode()[got[nan]]).all()


def products_of(values: np.ndarray, factor: float) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        return values.astype(np.float64) * factor


@pytest.mark.parametrize("factor", FACTORS)
@SMALL
def test_every_value_times_a_factor_is_rounded_once(dtype: str, factor: float) -> None:
    table = Multiply(dtype, dtype, factor).table()
    assert_rounded(table, products_of(FORMATS[dtype].decode(), factor), dtype)


@pytest.mark.parametrize("factor", FACTORS)
@SMALL
def test_nan_keeps_its_bits(dtype: str, factor: float) -> None:
    nan = np.flatnonzero(np.isnan(FORMATS[dtype].decode()))
    np.testing.assert_array_equal(Multiply(dtype, dtype, factor).table()[nan], nan)


@pytest.mark.parametrize("factor", [0.3, -0.7, 1.0, 1e5])
@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_every_value_is_rounded_once_to_another_dtype(source: str, target: str, factor: float) -> None:
    table = Multiply(source, target, factor).table()
    assert_rounded(table, products_of(FORMATS[source].decode(), factor), target)


@pytest.mark.parametrize("target", ["F32", "F64"])
@SMALL
def test_every_value_is_rounded_once_to_a_wide_dtype(dtype: str, target: str) -> None:
    table = Multiply(dtype, target, 0.3).table().view(numpy_dtype(target))
    expected = products_of(FORMATS[dtype].decode(), 0.3).astype(numpy_dtype(target))
    np.testing.assert_array_equal(table, expected)


def hard_values(target: str) -> np.ndarray:
    """Values beside every value of a format, beside every middle of two, and so near them that float32 cannot tell."""
    values = FORMATS[target].magnitudes[: FORMATS[target].limit + 1]
    middles = (values[1:] + values[:-1]) / 2
    marks = np.concatenate([values[1:], middles])
    return np.concatenate([marks, marks * (1 + 2.0**-40), marks * (1 - 2.0**-40), -marks, [0.0, -0.0, np.inf, np.nan]])


@pytest.mark.parametrize("target", FORMATS)
def test_float64_is_rounded_once_not_by_way_of_float32(target: str) -> None:
    values = hard_values(target)
    assert_rounded(multiplied(values, "F64", target, 1.0), values, target)


@pytest.mark.parametrize("factor", [0.3, 1.0, 1 + 2.0**-40])
@pytest.mark.parametrize("target", FORMATS)
def test_float32_is_rounded_once(target: str, factor: float) -> None:
    with np.errstate(over="ignore", under="ignore"):
        values = hard_values(target).astype(np.float32)
    assert_rounded(multiplied(values, "F32", target, factor), products_of(values, factor), target)


def test_a_middle_and_a_bit_is_rounded_up() -> None:
    """The classic: float32 would round 1 + 2**-8 + 2**-40 to the middle of two bfloat16 values, then to even."""
    bits = multiplied(np.array([1 + 2.0**-8, 1 + 2.0**-8 + 2.0**-40]), "F64", "BF16", 1.0)
    assert bits.tolist() == [0x3F80, 0x3F81]


EXTREME = st.floats(allow_nan=False) | st.sampled_from((5e-324, -5e-324, 2.0**-1022, 1.7e308, -0.0, 2.0**-149, 65520.0))


@pytest.mark.parametrize("source", ["F64", "F32"])
@pytest.mark.parametrize("target", FORMATS)
@settings(max_examples=200, deadline=None)
@given(values=st.lists(EXTREME, min_size=1, max_size=20), factor=EXTREME.filter(bool))
def test_any_value_times_any_factor_is_rounded_once(
    source: str, target: str, values: list[float], factor: float
) -> None:
    """Huge and tiny factors, denormals and signed zeros among the values; a factor of 0 is a fill, no product."""
    with np.errstate(over="ignore", under="ignore"):
        array = np.array(values).astype(numpy_dtype(source))
    assert_rounded(multiplied(array, source, target, factor), products_of(array, factor), target)


@pytest.mark.parametrize("factor", [5e-324, 2.0**-1022, 1e-300, 2.0**-24, 2.0**-149, 1e38, 1.7e308])
@SMALL
def test_every_value_times_an_extreme_factor_is_rounded_once(dtype: str, factor: float) -> None:
    table = Multiply(dtype, dtype, factor).table()
    assert_rounded(table, products_of(FORMATS[dtype].decode(), factor), dtype)


def multiplied(values: np.ndarray, source: str, target: str, factor: float) -> np.ndarray:
    """Bit patterns of a small target."""
    data = values.astype(numpy_dtype(source)).view(np.uint8)
    return transformed(Multiply(source, target, factor), data).view(f"u{numpy_dtype(target).itemsize}")


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", ["F32", "F64"])
def test_wide_dtypes_multiply_in_float64(dtype: str, factor: float) -> None:
    bits = np.random.default_rng(0).integers(0, 256, 400_000, np.uint8)
    values = bits.view(numpy_dtype(dtype))
    result = transformed(Multiply(dtype, dtype, factor), bits)
    with np.errstate(all="ignore"):
        expected = products_of(values, factor).astype(numpy_dtype(dtype))
    expected[np.isnan(values)] = values[np.isnan(values)]
    assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("length", [0, 1, 32 * 1024, 32 * 1024 + 1, 100_000])
@pytest.mark.parametrize(("source", "target"), [("F16", "F16"), ("F16", "F32"), ("F32", "BF16"), ("F8_E5M2", "BF16")])
def test_a_piece_of_any_length_is_multiplied_element_by_element(source: str, target: str, length: int) -> None:
    data = np.random.default_rng(1).integers(0, 124, length * numpy_dtype(source).itemsize, np.uint8)
    transform = partial(transformed, Multiply(source, target, 0.3))
    step = 1000 * numpy_dtype(source).itemsize
    pieces = [transform(data[start : start + step]).tobytes() for start in range(0, len(data), step)]
    assert transform(data).tobytes() == b"".join(pieces)


@pytest.mark.parametrize("dtype", sorted(FLOATS))
def test_the_largest_value_is_the_largest_finite_one(dtype: str) -> None:
    if dtype in FORMATS:
        values = FORMATS[dtype].decode()
        assert largest(dtype) == values[np.isfinite(values)].max()
    else:
        assert largest(dtype) == np.finfo(numpy_dtype(dtype)).max


SURVEYS = [
    ("F16", "F16", 0.5, [1.0, -4.0, np.inf, np.nan], Survey(4.0, overflows=False, inexact=False)),
    ("F16", "F16", 0.3, [1.0, -4.0], Survey(4.0, overflows=False, inexact=True)),
    ("F16", "F16", 2.0, [40000.0], Survey(40000.0, overflows=True, inexact=True)),
    ("F16", "BF16", 2.0, [40000.0], Survey(40000.0, overflows=False, inexact=True)),
    ("F16", "F16", 0.5, [2.0**-24], Survey(2.0**-24, overflows=False, inexact=True)),
    ("F8_E4M3", "F8_E4M3", 2.0, [448.0], Survey(448.0, overflows=True, inexact=True)),
    ("F8_E4M3", "BF16", 2.0, [448.0], Survey(448.0, overflows=False, inexact=False)),
    ("F32", "F32", 2.0, [3e38], Survey(float(np.float32(3e38)), overflows=True, inexact=True)),
    ("F32", "F16", 1.0, [65519.0], Survey(65519.0, overflows=False, inexact=True)),
    ("F32", "F16", 1.0, [65520.0], Survey(65520.0, overflows=True, inexact=True)),
    ("F16", "F16", 2.0, [np.inf, -np.inf, np.nan], Survey()),
    ("F16", "F16", 2.0, [], Survey()),
]


@pytest.mark.parametrize(("source", "target", "factor", "values", "expected"), SURVEYS)
def test_a_survey_says_what_a_factor_would_do(
    source: str, target: str, factor: float, values: list[float], expected: Survey
) -> None:
    data = np.array(values, numpy_dtype(source)).view(np.uint8)
    assert survey(Multiply(source, target, factor), [data]) == expected


@pytest.mark.parametrize("dtype", ["F16", "F32"])
def test_a_survey_takes_all_pieces_together(dtype: str) -> None:
    pieces = [np.array(values, numpy_dtype(dtype)).view(np.uint8) for values in ([2.0], [-8.0], [1.0])]
    assert survey(Multiply(dtype, dtype, 0.3), pieces) == Survey(8.0, overflows=False, inexact=True)


@pytest.mark.parametrize("dtype", FORMATS)
def test_the_smallest_value_is_the_first_above_zero(dtype: str) -> None:
    values = FORMATS[dtype].decode()
    assert smallest(dtype) == values[values > 0].min()


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_numbers_that_become_zero_are_counted(source: str, target: str) -> None:
    values = FORMATS[source].decode()
    bits = np.arange(len(values), dtype=f"u{numpy_dtype(source).itemsize}")
    for factor in FACTORS:
        step = Multiply(source, target, factor)
        products = FORMATS[target].decode()[step.table()]
        others = np.isfinite(values) & (values != 0)
        expected = np.count_nonzero(others), np.count_nonzero(others & (products == 0))
        assert vanishing(step, bits.view(np.uint8)) == expected, step


@pytest.mark.parametrize("factor", [1.0, 0.3, -7.0, 1e-300, 1e300])
def test_wide_numbers_that_become_zero_are_counted(factor: float) -> None:
    step = Multiply("F32", "F16", factor)
    halfway = np.float32(2.0**-25 / abs(factor)) if 1e-30 < abs(factor) < 1e30 else np.float32(1)
    around = halfway * np.array([0, 0.5, 1 - 1e-7, 1, 1 + 1.2e-7, 2, 1e5, np.nan], np.float32)
    values = np.concatenate([around, -around])
    products = transformed(step, values.view(np.uint8)).view(np.float16)
    others = np.isfinite(values) & (values != 0)
    expected = np.count_nonzero(others), np.count_nonzero(others & (products == 0))
    assert vanishing(step, values.view(np.uint8)) == expected


@pytest.mark.parametrize("target", FORMATS)
@pytest.mark.parametrize("source", FORMATS)
def test_where_no_finite_value_can_overflow_no_survey_is_needed(source: str, target: str) -> None:
    values = FORMATS[source].decode()
    for factor in FACTORS:
        step = Multiply(source, target, factor)
        overflows = not np.isfinite(FORMATS[target].decode()[step.table()[np.isfinite(values)]]).all()
        assert step.may_overflow or not overflows
