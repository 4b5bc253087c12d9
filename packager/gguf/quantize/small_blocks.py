"""Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: blocks of 32 weights with a scale and, in some, a minimum."""

from __future__ import annotations

import numpy as np

from packager.gguf.quantize.jit import compiled
from packager.gguf.quantize.search import (
    INVERSE,
    IS_EMPTY,
    MINIMUM,
    OFFSET,
    SCALE,
    STATE,
    Grid,
    search_scale,
    search_scale_and_minimum,
)  # fmt: skip
from packager.gguf.quantize.simd_layout import (
    AREA,
    LANES,
    ONE,
    VALUES,
    ZERO,
    Bytes,
    Floats,
    Scalar,
    W,
    X,
    load,
    load_importance,
    multiply,
    quant_of,
    store_half,
    sum_of_squares,
    weigh_by_importance,
)  # fmt: skip

_SIZE = 32


@compiled
def q8_0(rows: Floats, importance: Floats, out: Bytes) -> None:
    """`quantize_row_q8_0_ref`, which ignores importance."""
    flat, target = rows.reshape(rows.size), out.reshape(out.size)
    bits = flat.view(np.int32)
    for block in range(rows.size // _SIZE):
        start, at = block * _SIZE, block * 34
        # Magnitudes have the same order as integers, whose maximum is a vector operation.
        peak = np.int32(0)
        for i in range(start, start + _SIZE):
            peak = max(peak, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
        scale = np.int32(peak).view(np.float32) / np.float32(127)
        inverse = ONE / scale if scale != ZERO else ZERO
        store_half(target, at, scale)
        for i in range(_SIZE):
            # roundf: halves are rounded away from zero.
            x = flat[start + i] * inverse
            shifted = np.float32(x + np.copysign(np.float32(0.49999997), x))
            target[at + 2 + i] = np.uint8(np.int32(shifted) & 0xFF)


@compiled
def _row_mean_squares(flat: Floats, start: int, count: int, columns: int, sigma2: Floats) -> None:
    """The mean square of the whole row that a block belongs to, for each block."""
    row = -1
    mean = ZERO
    for k in range(count):
        if (start + k * _SIZE) // columns != row:
            row = (start + k * _SIZE) // columns
            mean = sum_of_squares(flat, row * columns, columns) / np.float32(columns)
        sigma2[k] = mean


@compiled
def with_importance(
    bits: int, has_minimum: bool, rows: Floats, importance: Floats, out: Bytes
) -> None:
    """Q4_0, Q4_1, Q5_0 and Q5_1 with importance: `quantize_row_q?_?_impl`."""
    columns = rows.shape[1]
    blocks_per_row = columns // _SIZE
    total = rows.size // _SIZE
    block_bytes = out.shape[1] // blocks_per_row
    flat, target = rows.reshape(rows.size), out.reshape(out.size)
    v, s = np.empty(VALUES, np.float32), np.empty(STATE, np.float32)
    searched = np.empty(AREA, np.float32)
    sigma2 = np.zeros(LANES, np.float32)
    quants = np.empty(_SIZE, np.uint8)
    top, half_range = (1 << bits) - 1, 1 << (bits - 1)
    for first in range(0, total, LANES):
        count = min(LANES, total - first)
        start = first * _SIZE
        load(flat, start, count, _SIZE, v, X)
        load_importance(importance, start, count, _SIZE, v, W)
        _row_mean_squares(flat, start, count, columns, sigma2)
        weigh_by_importance(v, sigma2, _SIZE)
        if has_minimum:
            grid = Grid(np.float32(-0.9), np.float32(0.05), 36, False)
            search_scale_and_minimum(v, searched, s, _SIZE, top, grid)
        else:
            multiply(v, _SIZE)
            search_scale(v, s, _SIZE, half_range)
        shift = 0 if has_minimum else half_range
        for k in range(count):
            at = (first + k) * block_bytes
            store_half(target, at, s[SCALE + k])
            if has_minimum:
                store_half(target, at + 2, s[MINIMUM + k])
            inverse, offset = s[INVERSE + k], s[OFFSET + k]
            is_empty = s[IS_EMPTY + k] > ZERO
            for i in range(_SIZE):
                x = flat[start + k * _SIZE + i]
                quant = quant_of(inverse * (x - offset), -shift, top - shift)
                quants[i] = 0 if is_empty else np.uint8(quant + shift)
            _pack(quants, bits, target, at + (4 if has_minimum else 2))


@compiled
def _pack(quants: Bytes, bits: int, out: Bytes, at: int) -> None:
    """The fifth bits if there are five, then two quants in each byte, 16 positions apart."""
    if bits == 5:
        for group in range(4):
            high: Scalar = 0
            for i in range(8):
                high |= (np.int64(quants[group * 8 + i]) >> 4) << i
            out[at + group] = high
        at += 4
    for i in range(16):
        out[at + i] = (quants[i] & 0xF) | ((quants[i + 16] & 0xF) << 4)
