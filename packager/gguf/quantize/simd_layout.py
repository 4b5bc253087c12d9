"""The kernels' memory layout: structures of arrays, with one block in each lane.

ggml searches one block after another, and each step of a search waits for the step before. Here
`LANES` blocks are searched side by side: element `i` of the block in lane `k` is at
`i * LANES + k`, and a loop over `k` becomes one vector operation. The order of operations within a
block remains ggml's, and so does every rounding.

Flat float32 arrays hold a tile: `v` has the blocks' values, which a search reads, and `s` the state
of the lanes, which it writes. Offsets into them are constants, so that the compiler sees that
nothing overlaps; otherwise it would not vectorize.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from packager.gguf.quantize.jit import compiled, inlined

Floats = Any
Bytes = Any
# float32 or an integer in Numba's own types, which mypy does not know.
Scalar = Any

LANES = 64
# The longest block in a lane: 32 weights.
AREA = 32 * LANES
# Elements of a block in one pass over the lanes, during which its sums stay in registers.
ROWS = 8
# The areas of `v`: the model's weights, the search weight of each, and the product of both.
X, W, WX = 0, AREA, 2 * AREA
VALUES = 3 * AREA

# 1.5 * 2**23: adding it rounds a float32 to an integer, halves to even, and leaves the integer in
# the mantissa.
_ROUNDER = np.float32(12582912.0)
ZERO = np.float32(0)
ONE = np.float32(1)
# ggml treats a block with smaller values as all zero (GROUP_MAX_EPS).
NOTHING = np.float32(1e-15)


@inlined
def nearest_int(value: Scalar) -> Scalar:
    """`nearest_int` of ggml for every float32, even beyond 2**22, where the result is arbitrary."""
    # Every step is kept at 32 bits: otherwise Numba widens integers, which halves the lanes.
    bits = np.float32(value + _ROUNDER).view(np.int32)
    return np.int32(np.int32(bits & np.int32(0x7FFFFF)) - np.int32(0x400000))


@inlined
def quant_of(value: Scalar, low: int, high: int) -> Scalar:
    """The nearest integer, clamped to a range."""
    return max(np.int32(low), min(np.int32(high), nearest_int(value)))


@inlined
def rows_of(values: Floats, start: int) -> Floats:
    """`ROWS` rows of lanes: with constant offsets the compiler sees what does not overlap."""
    return values[start : start + ROWS * LANES]


@compiled
def half_bits(value: Scalar) -> Scalar:
    """A float32 as the bits of IEEE half precision, rounded to even (`GGML_FP32_TO_FP16`)."""
    bits = np.int64(np.float32(value).view(np.int32)) & 0xFFFFFFFF
    sign = (bits >> 16) & 0x8000
    size = bits & 0x7FFFFFFF
    if size > 0x7F800000:
        return sign | 0x7E00
    if size >= 0x477FF000:
        return sign | 0x7C00
    if size < 0x38800000:
        # Denormal halves are multiples of 2**-24, and so are float32 between 0.5 and 1.
        shifted = np.float32(abs(np.float32(value)) + np.float32(0.5))
        return sign | (np.int64(shifted.view(np.int32)) - 0x3F000000)
    return sign | ((size + 0xFFF + ((size >> 13) & 1) - 0x38000000) >> 13)


@compiled
def half_value(bits: int) -> Scalar:
    """The float32 of a half's bits (`GGML_FP16_TO_FP32`)."""
    exponent = (bits >> 10) & 0x1F
    mantissa = bits & 0x3FF
    if exponent == 0:
        value = np.float32(mantissa) * np.float32(2.0**-24)
        return -value if bits & 0x8000 else value
    widened = 0xFF if exponent == 0x1F else exponent + 112
    word = ((bits & 0x8000) << 16) | (widened << 23) | (mantissa << 13)
    return np.int32(word).view(np.float32)


@compiled
def store_half(out: Bytes, at: int, value: Scalar) -> Scalar:
    """Write a float32 as two bytes of half precision; return the value that they stand for."""
    bits = half_bits(value)
    out[at] = bits & 0xFF
    out[at + 1] = bits >> 8
    return half_value(bits)


@compiled
def load(source: Floats, start: int, count: int, size: int, v: Floats, area: int) -> None:
    """Put `count` blocks of `size` weights, which follow one another in `source`, into lanes.

    Lanes beyond `count` are zero.
    """
    for k in range(LANES):
        if k < count:
            at = start + k * size
            for i in range(size):
                v[area + i * LANES + k] = source[at + i]
        else:
            for i in range(size):
                v[area + i * LANES + k] = ZERO


@compiled
def load_importance(
    importance: Floats, start: int, count: int, size: int, v: Floats, area: int
) -> None:
    """Put the importance of the same blocks into lanes; it has one value for each column."""
    columns = importance.size
    for k in range(LANES):
        at = (start + k * size) % columns
        for i in range(size):
            v[area + i * LANES + k] = importance[at + i] if k < count else ZERO


@compiled
def sum_of_squares(source: Floats, start: int, count: int) -> Scalar:
    """The sum of `count` squares, added one after another as in ggml."""
    total = ZERO
    for i in range(start, start + count):
        total += source[i] * source[i]
    return total


@compiled
def weigh_by_importance(v: Floats, sigma2: Floats, size: int) -> None:
    """Search weights: importance times `sqrt(sigma2 + x * x)`; `sigma2` has a value a lane."""
    for i in range(size):
        for k in range(LANES):
            x = v[X + i * LANES + k]
            v[W + i * LANES + k] *= np.sqrt(sigma2[k] + x * x)


@compiled
def multiply(v: Floats, size: int) -> None:
    """Fill `WX`, the product of the search weights and the model's weights."""
    for j in range(size * LANES):
        v[WX + j] = v[W + j] * v[X + j]
