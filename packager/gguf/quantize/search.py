"""The searches for a block's scale (and minimum), with one block in each lane.

Each docstring names the function of ggml-quants.c that is followed, operation for operation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packager.gguf.quantize.jit import compiled, inlined
from packager.gguf.quantize.simd_layout import (
    LANES,
    NOTHING,
    ONE,
    ROWS,
    WX,
    ZERO,
    Floats,
    Scalar,
    W,
    X,
    quant_of,
    rows_of,
)  # fmt: skip

# The areas of `s`, the state of the lanes. First the results of a search: scale and minimum;
SCALE = 0 * LANES
MINIMUM = 1 * LANES
# the inverse and offset that give its quants by quant_of(INVERSE * (x - OFFSET), ...);
INVERSE = 2 * LANES
OFFSET = 3 * LANES
# the block's extremes, the sum of its search weights, and whether (0 or 1) it is empty.
LOW = 4 * LANES
HIGH = 5 * LANES
SUM_W = 6 * LANES
IS_EMPTY = 7 * LANES
# Then the scale and minimum that a block's bytes stand for.
FINAL_SCALE = 18 * LANES
FINAL_MINIMUM = 19 * LANES
# Then the variables of a search; _TRIED is the inverse scale of the current candidate.
_SUM_X = 9 * LANES
_BEST = 10 * LANES
_TRIED = 11 * LANES
_SUM_L = 12 * LANES
_SUM_L2 = 13 * LANES
_SUM_XL = 14 * LANES
_NEW_SCALE = 15 * LANES
_NEW_MINIMUM = 16 * LANES
_ERROR = 17 * LANES
_PEAK = 8 * LANES
STATE = 20 * LANES


@compiled
def _survey(v: Floats, s: Floats, size: int) -> None:
    """Extremes and sums of each block."""
    for k in range(LANES):
        x, w = v[X + k], v[W + k]
        s[LOW + k] = x
        s[HIGH + k] = x
        s[SUM_W + k] = w
        s[_SUM_X + k] = w * x
    for i in range(1, size):
        for k in range(LANES):
            x, w = v[X + i * LANES + k], v[W + i * LANES + k]
            s[LOW + k] = min(s[LOW + k], x)
            s[HIGH + k] = max(s[HIGH + k], x)
            s[SUM_W + k] += w
            s[_SUM_X + k] += w * x


class Grid(NamedTuple):
    """The scales that a search tries.

    Attributes:
        first: `rmin`, which the first candidate adds to the largest quant.
        step: `rdelta`, which each further candidate adds.
        steps: `nstep`.
        is_absolute: `use_mad`, whether the error is absolute and not squared.
    """

    first: Scalar
    step: Scalar
    steps: int
    is_absolute: bool


@compiled
def search_scale_and_minimum(
    v: Floats, quants: Floats, s: Floats, size: int, top: int, grid: Grid
) -> None:
    """`make_qkx2_quants` and `make_qkx3_quants`: x ~ SCALE * q + MINIMUM with q in 0..top.

    Args:
        v: weights in `X`, search weights in `W`.
        quants: space for a block's quants in each lane.
        s: the state of the lanes.
        size: the block's length.
        top: the largest quant.
        grid: the scales to try.
    """
    limit = np.float32(top)
    _survey(v, s, size)
    for k in range(LANES):
        minimum = min(s[LOW + k], ZERO)
        s[MINIMUM + k] = minimum
        s[OFFSET + k] = minimum
        s[INVERSE + k] = limit / (s[HIGH + k] - minimum)
        s[SCALE + k] = ONE / s[INVERSE + k]
        s[IS_EMPTY + k] = ONE if s[HIGH + k] == minimum else ZERO
        s[_TRIED + k] = s[INVERSE + k]
        s[_NEW_SCALE + k] = s[SCALE + k]
        s[_NEW_MINIMUM + k] = minimum
    _add_up(v, quants, s, size, top)
    _measure(v, quants, s, size, grid.is_absolute)
    for k in range(LANES):
        s[_BEST + k] = s[_ERROR + k]
    for number in range(grid.steps + 1):
        factor = np.float32(grid.first + grid.step * np.float32(number)) + limit
        for k in range(LANES):
            s[_TRIED + k] = factor / (s[HIGH + k] - s[MINIMUM + k])
        _add_up(v, quants, s, size, top)
        _fit(s)
        _measure(v, quants, s, size, grid.is_absolute)
        _keep_better(s)
    for k in range(LANES):
        if s[IS_EMPTY + k] > ZERO:
            s[SCALE + k] = ZERO
            s[INVERSE + k] = ZERO
            s[MINIMUM + k] = min(s[LOW + k], ZERO)
            s[OFFSET + k] = min(s[LOW + k], ZERO)


@compiled
def _add_up(v: Floats, quants: Floats, s: Floats, size: int, top: int) -> None:
    """Quantize with the candidate scale, and add up the sums for the least squares."""
    for k in range(LANES):
        s[_SUM_L + k] = ZERO
        s[_SUM_L2 + k] = ZERO
        s[_SUM_XL + k] = ZERO
    for start in range(0, size * LANES, ROWS * LANES):
        xs, ws = rows_of(v, X + start), rows_of(v, W + start)
        row_quants = rows_of(quants, start)
        for k in range(LANES):
            inverse, minimum = s[_TRIED + k], s[MINIMUM + k]
            sum_l, sum_l2, sum_xl = s[_SUM_L + k], s[_SUM_L2 + k], s[_SUM_XL + k]
            for i in range(ROWS):
                j = i * LANES + k
                quant = np.float32(quant_of(inverse * (xs[j] - minimum), 0, top))
                row_quants[j] = quant
                weighed = ws[j] * quant
                sum_l += weighed
                sum_l2 += weighed * quant
                sum_xl += weighed * xs[j]
            s[_SUM_L + k] = sum_l
            s[_SUM_L2 + k] = sum_l2
            s[_SUM_XL + k] = sum_xl


@compiled
def _fit(s: Floats) -> None:
    """The scale and minimum of the least squares; the minimum is at most zero."""
    for k in range(LANES):
        sum_w, sum_x = s[SUM_W + k], s[_SUM_X + k]
        sum_l, sum_l2, sum_xl = s[_SUM_L + k], s[_SUM_L2 + k], s[_SUM_XL + k]
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        through_zero = sum_xl / sum_l2
        s[_NEW_SCALE + k] = through_zero if minimum > ZERO else scale
        s[_NEW_MINIMUM + k] = ZERO if minimum > ZERO else minimum


@compiled
def _measure(v: Floats, quants: Floats, s: Floats, size: int, is_absolute: bool) -> None:
    """The error of the new scale and minimum."""
    for k in range(LANES):
        s[_ERROR + k] = ZERO
    if is_absolute:
        _add_absolute_errors(v, quants, s, size)
    else:
        _add_squared_errors(v, quants, s, size)


@compiled
def _add_absolute_errors(v: Floats, quants: Floats, s: Floats, size: int) -> None:
    for start in range(0, size * LANES, ROWS * LANES):
        xs, ws = rows_of(v, X + start), rows_of(v, W + start)
        row_quants = rows_of(quants, start)
        for k in range(LANES):
            scale, minimum, error = s[_NEW_SCALE + k], s[_NEW_MINIMUM + k], s[_ERROR + k]
            for i in range(ROWS):
                j = i * LANES + k
                difference = scale * row_quants[j] + minimum - xs[j]
                error += ws[j] * abs(difference)
            s[_ERROR + k] = error


@compiled
def _add_squared_errors(v: Floats, quants: Floats, s: Floats, size: int) -> None:
    for start in range(0, size * LANES, ROWS * LANES):
        xs, ws = rows_of(v, X + start), rows_of(v, W + start)
        row_quants = rows_of(quants, start)
        for k in range(LANES):
            scale, minimum, error = s[_NEW_SCALE + k], s[_NEW_MINIMUM + k], s[_ERROR + k]
            for i in range(ROWS):
                j = i * LANES + k
                difference = scale * row_quants[j] + minimum - xs[j]
                error += ws[j] * (difference * difference)
            s[_ERROR + k] = error


@compiled
def _keep_better(s: Floats) -> None:
    for k in range(LANES):
        determinant = s[SUM_W + k] * s[_SUM_L2 + k] - s[_SUM_L + k] * s[_SUM_L + k]
        if (determinant > ZERO) & (s[_ERROR + k] < s[_BEST + k]):
            s[_BEST + k] = s[_ERROR + k]
            s[SCALE + k] = s[_NEW_SCALE + k]
            s[INVERSE + k] = s[_TRIED + k]
            s[OFFSET + k] = s[MINIMUM + k]
            s[MINIMUM + k] = s[_NEW_MINIMUM + k]


@compiled
def find_peaks(v: Floats, s: Floats, size: int) -> None:
    """Each block's weight of largest magnitude, the first of equals; `HIGH` is the magnitude."""
    for k in range(LANES):
        s[HIGH + k] = ZERO
        s[_PEAK + k] = ZERO
    for i in range(size):
        for k in range(LANES):
            x = v[X + i * LANES + k]
            if abs(x) > s[HIGH + k]:
                s[HIGH + k] = abs(x)
                s[_PEAK + k] = x
    for k in range(LANES):
        s[IS_EMPTY + k] = ONE if s[HIGH + k] < NOTHING else ZERO


@compiled
def search_scale(v: Floats, s: Floats, size: int, half_range: int) -> None:
    """`make_qx_quants`: x ~ SCALE * q with q in -half_range..half_range-1.

    Args:
        v: weights in `X`, search weights in `W`, the products of both in `WX`.
        s: the state of the lanes.
        size: the block's length.
        half_range: `nmax`.
    """
    limit = np.float32(half_range)
    find_peaks(v, s, size)
    for k in range(LANES):
        s[_TRIED + k] = -limit / s[_PEAK + k]
        s[INVERSE + k] = s[_TRIED + k]
        s[OFFSET + k] = ZERO
    _add_up_symmetric(v, s, size, half_range)
    for k in range(LANES):
        sum_xl, sum_l2 = s[_SUM_XL + k], s[_SUM_L2 + k]
        s[SCALE + k] = sum_xl / sum_l2 if sum_l2 != ZERO else ZERO
        s[_BEST + k] = s[SCALE + k] * sum_xl
    for number in range(-9, 10):
        if number == 0:
            continue
        factor = -(limit + np.float32(0.1) * np.float32(number))
        for k in range(LANES):
            s[_TRIED + k] = factor / s[_PEAK + k]
        _add_up_symmetric(v, s, size, half_range)
        _keep_better_scale(s)
    for k in range(LANES):
        if s[IS_EMPTY + k] > ZERO:
            s[SCALE + k] = ZERO


@compiled
def _add_up_symmetric(v: Floats, s: Floats, size: int, half_range: int) -> None:
    for k in range(LANES):
        s[_SUM_XL + k] = ZERO
        s[_SUM_L2 + k] = ZERO
    for start in range(0, size * LANES, ROWS * LANES):
        xs, ws, products = rows_of(v, X + start), rows_of(v, W + start), rows_of(v, WX + start)
        for k in range(LANES):
            inverse, sum_xl, sum_l2 = s[_TRIED + k], s[_SUM_XL + k], s[_SUM_L2 + k]
            for i in range(ROWS):
                j = i * LANES + k
                quant = np.float32(quant_of(inverse * xs[j], -half_range, half_range - 1))
                sum_xl += products[j] * quant
                sum_l2 += ws[j] * quant * quant
            s[_SUM_XL + k] = sum_xl
            s[_SUM_L2 + k] = sum_l2


@compiled
def _keep_better_scale(s: Floats) -> None:
    for k in range(LANES):
        sum_xl, sum_l2 = s[_SUM_XL + k], s[_SUM_L2 + k]
        if (sum_l2 > ZERO) & (sum_xl * sum_xl > s[_BEST + k] * sum_l2):
            scale = sum_xl / sum_l2
            s[SCALE + k] = scale
            s[INVERSE + k] = s[_TRIED + k]
            s[_BEST + k] = scale * sum_xl


@compiled
def search_scale_by_descent(v: Floats, quants: Floats, s: Floats, size: int) -> None:
    """`make_q3_quants` with `do_rmse`: x ~ SCALE * q with q in -4..3, improved one by one.

    A block that one round does not change, the next does not change either. `quants` is a result
    too. The search weights in `W` are the squares; `WX` has their products with x.
    """
    find_peaks(v, s, size)
    for k in range(LANES):
        s[_TRIED + k] = np.float32(-4) / s[_PEAK + k]
        s[_SUM_XL + k] = ZERO
        s[_SUM_L2 + k] = ZERO
    for i in range(size):
        for k in range(LANES):
            j = i * LANES + k
            quant = np.float32(quant_of(s[_TRIED + k] * v[X + j], -4, 3))
            quants[j] = quant
            s[_SUM_XL + k] += v[WX + j] * quant
            s[_SUM_L2 + k] += v[W + j] * quant * quant
    for _ in range(5):
        for k in range(LANES):
            s[_ERROR + k] = ZERO
        for i in range(size):
            for k in range(LANES):
                j = i * LANES + k
                x, w, wx, old = v[X + j], v[W + j], v[WX + j], quants[j]
                sum_xl, sum_l2 = s[_SUM_XL + k], s[_SUM_L2 + k]
                rest_xl = sum_xl - wx * old
                rest_l2 = sum_l2 - w * old * old
                new = np.float32(quant_of(x * rest_l2 / rest_xl, -4, 3))
                new_xl = rest_xl + wx * new
                new_l2 = rest_l2 + w * new * new
                is_better = (
                    (rest_xl > ZERO)
                    & (new != old)
                    & (new_l2 > ZERO)
                    & (new_xl * new_xl * sum_l2 > sum_xl * sum_xl * new_l2)
                )
                quants[j] = new if is_better else old
                s[_SUM_XL + k] = new_xl if is_better else sum_xl
                s[_SUM_L2 + k] = new_l2 if is_better else sum_l2
                s[_ERROR + k] += ONE if is_better else ZERO
        if not s[_ERROR : _ERROR + LANES].any():
            break
    for k in range(LANES):
        sum_xl, sum_l2 = s[_SUM_XL + k], s[_SUM_L2 + k]
        is_empty = s[IS_EMPTY + k] > ZERO
        s[SCALE + k] = sum_xl / sum_l2 if (sum_l2 > ZERO) & (not is_empty) else ZERO


@inlined
def nonlinear_value(x: Scalar) -> Scalar:
    """The value of IQ4's table (`kvalues_iq4nl`) nearest to x, the upper of two equally near.

    ggml's `best_index_int8` compares differences. They are exact at the midpoints between
    neighbours, so comparing with the midpoints gives the same. As in ggml, NaN gives the last.
    """
    value = np.float32(-127)
    value += ZERO if x < np.float32(-115.5) else np.float32(23)
    value += ZERO if x < np.float32(-93.5) else np.float32(21)
    value += ZERO if x < np.float32(-74) else np.float32(18)
    value += ZERO if x < np.float32(-57) else np.float32(16)
    value += ZERO if x < np.float32(-42) else np.float32(14)
    value += ZERO if x < np.float32(-28.5) else np.float32(13)
    value += ZERO if x < np.float32(-16) else np.float32(12)
    value += ZERO if x < np.float32(-4.5) else np.float32(11)
    value += ZERO if x < np.float32(7) else np.float32(12)
    value += ZERO if x < np.float32(19) else np.float32(12)
    value += ZERO if x < np.float32(31.5) else np.float32(13)
    value += ZERO if x < np.float32(45.5) else np.float32(15)
    value += ZERO if x < np.float32(61) else np.float32(16)
    value += ZERO if x < np.float32(79) else np.float32(20)
    value += ZERO if x < np.float32(101) else np.float32(24)
    return value


@compiled
def search_nonlinear_scale(v: Floats, s: Floats, size: int) -> None:
    """The search of `quantize_row_iq4_nl_impl` (`ntry` 7): x ~ SCALE * a value of IQ4's table."""
    find_peaks(v, s, size)
    for k in range(LANES):
        s[_TRIED + k] = ONE / (-s[_PEAK + k] / np.float32(-127))
    _add_up_nonlinear(v, s, size)
    for k in range(LANES):
        sum_xl, sum_l2 = s[_SUM_XL + k], s[_SUM_L2 + k]
        s[SCALE + k] = sum_xl / sum_l2 if sum_l2 > ZERO else ZERO
        s[_BEST + k] = s[SCALE + k] * sum_xl
    for number in range(-7, 8):
        for k in range(LANES):
            s[_TRIED + k] = np.float32(number - 127) / s[_PEAK + k]
        _add_up_nonlinear(v, s, size)
        _keep_better_scale(s)
    for k in range(LANES):
        if s[IS_EMPTY + k] > ZERO:
            s[SCALE + k] = ZERO


@compiled
def _add_up_nonlinear(v: Floats, s: Floats, size: int) -> None:
    for k in range(LANES):
        s[_SUM_XL + k] = ZERO
        s[_SUM_L2 + k] = ZERO
    for i in range(size):
        for k in range(LANES):
            j = i * LANES + k
            value = nonlinear_value(s[_TRIED + k] * v[X + j])
            weighed = v[W + j] * value
            s[_SUM_XL + k] += weighed * v[X + j]
            s[_SUM_L2 + k] += weighed * value
