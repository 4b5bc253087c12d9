"""IQ4_NL and IQ4_XS: 4 bits that select a value of a table, and a scale."""

from __future__ import annotations

import numpy as np

from packager.gguf.quantize.jit import compiled
from packager.gguf.quantize.search import SCALE, STATE, nonlinear_value, search_nonlinear_scale
from packager.gguf.quantize.simd_layout import (
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
    nearest_int,
    store_half,
    sum_of_squares,
    weigh_by_importance,
)  # fmt: skip

_SIZE = 32


@compiled
def iq4(block_size: int, rows: Floats, importance: Floats, out: Bytes) -> None:
    """`quantize_iq4_nl` (blocks of 32 weights) and `quantize_iq4_xs` (256, in eight parts)."""
    parts = block_size // _SIZE
    blocks_per_row = rows.shape[1] // block_size
    total = rows.shape[0] * blocks_per_row
    block_bytes = out.shape[1] // blocks_per_row
    flat, target = rows.reshape(rows.size), out.reshape(out.size)
    v, s = np.empty(VALUES, np.float32), np.empty(STATE, np.float32)
    sigma2 = np.zeros(LANES, np.float32)
    for first in range(0, total, LANES // parts):
        blocks = min(LANES // parts, total - first)
        start, count = first * block_size, blocks * parts
        load(flat, start, count, _SIZE, v, X)
        if importance.size > 0:
            load_importance(importance, start, count, _SIZE, v, W)
            for block in range(blocks):
                mean = sum_of_squares(flat, start + block * block_size, block_size)
                mean *= np.float32(2) / np.float32(block_size)
                for part in range(parts):
                    sigma2[block * parts + part] = mean
            weigh_by_importance(v, sigma2, _SIZE)
        else:
            for j in range(_SIZE * LANES):
                v[W + j] = v[X + j] * v[X + j]
        search_nonlinear_scale(v, s, _SIZE)
        for block in range(blocks):
            at, weights = (first + block) * block_bytes, start + block * block_size
            if parts == 1:
                scale = s[SCALE + block]
                store_half(target, at, scale)
                _store(flat, weights, ONE / scale if scale != ZERO else ZERO, target, at + 2)
            else:
                _store_parts(flat, weights, s, block * parts, target, at)


@compiled
def _store_parts(flat: Floats, start: int, s: Floats, lane: int, out: Bytes, at: int) -> None:
    """A block of IQ4_XS: eight scales of 6 bits; their lower four and upper two bits are apart."""
    size, peak = ZERO, ZERO
    for part in range(8):
        if abs(s[SCALE + lane + part]) > size:
            size, peak = abs(s[SCALE + lane + part]), s[SCALE + lane + part]
    scale = -peak / np.float32(32)
    inverse = ONE / scale if scale != ZERO else ZERO
    store_half(out, at, scale)
    high = 0
    for part in range(8):
        bits = max(-32, min(31, nearest_int(inverse * s[SCALE + lane + part])))
        part_scale = scale * np.float32(bits)
        part_inverse = ONE / part_scale if part_scale != ZERO else ZERO
        _store(flat, start + part * _SIZE, part_inverse, out, at + 8 + part * 16)
        low = (bits + 32) & 0xF
        if part % 2 == 0:
            out[at + 4 + part // 2] = low
        else:
            out[at + 4 + part // 2] |= np.uint8(low << 4)
        high |= ((bits + 32) >> 4) << (2 * part)
    out[at + 2] = high & 0xFF
    out[at + 3] = high >> 8


@compiled
def _store(flat: Floats, start: int, inverse: Scalar, out: Bytes, at: int) -> None:
    """Two quants in each byte, 16 positions apart."""
    for i in range(16):
        low = _index(inverse * flat[start + i])
        out[at + i] = low | (_index(inverse * flat[start + 16 + i]) << 4)


@compiled
def _index(x: Scalar) -> Scalar:
    """The index of the nearest value in IQ4's table."""
    value = nonlinear_value(x)
    # From one value of the table to the next, the distance from the first grows by at least 10.
    index = 0
    index += value > np.float32(-127)
    index += value > np.float32(-104)
    index += value > np.float32(-83)
    index += value > np.float32(-65)
    index += value > np.float32(-49)
    index += value > np.float32(-35)
    index += value > np.float32(-22)
    index += value > np.float32(-10)
    index += value > np.float32(1)
    index += value > np.float32(13)
    index += value > np.float32(25)
    index += value > np.float32(38)
    index += value > np.float32(53)
    index += value > np.float32(69)
    index += value > np.float32(89)
    return index
