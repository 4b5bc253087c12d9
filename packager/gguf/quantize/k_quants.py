"""Q2_K to Q6_K: blocks of 256 weights in 16 or 8 parts, each with a scale of a few bits.

The kernels here, in nonlinear.py and in small_blocks.py take the same arguments: rows of weights,
float32 `[rows, columns]`; importance, float32 `[columns]`, or of length 0 for none; and the blocks
to fill, uint8 `[rows, bytes per row]`. ftpack gives no importance yet.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from packager.gguf.quantize.jit import compiled
from packager.gguf.quantize.search import (
    FINAL_MINIMUM,
    FINAL_SCALE,
    INVERSE,
    IS_EMPTY,
    MINIMUM,
    OFFSET,
    SCALE,
    STATE,
    SUM_W,
    Grid,
    search_scale,
    search_scale_and_minimum,
    search_scale_by_descent,
)  # fmt: skip
from packager.gguf.quantize.simd_layout import (
    AREA,
    LANES,
    NOTHING,
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
    nearest_int,
    quant_of,
    store_half,
    sum_of_squares,
    weigh_by_importance,
)  # fmt: skip

BLOCK = 256


class _Parts(NamedTuple):
    """Some parts of the weights.

    Attributes:
        start: where the first one begins.
        number: how many there are.
        size: how many weights each has.
    """

    start: int
    number: int
    size: int


@compiled
def _load_weighed(
    flat: Floats, importance: Floats, parts: _Parts, factor: Scalar, v: Floats, sigma2: Floats
) -> None:
    """Load parts and their search weights; sigma2 is `factor` times a block's mean square."""
    start, size = parts.start, parts.size
    in_block = BLOCK // size
    load_importance(importance, start, parts.number, size, v, W)
    for block in range(parts.number // in_block):
        total = sum_of_squares(flat, start + block * BLOCK, BLOCK)
        for k in range(block * in_block, (block + 1) * in_block):
            sigma2[k] = factor * total / np.float32(BLOCK)
    weigh_by_importance(v, sigma2, size)


@compiled
def _weigh_by_size(v: Floats, size: int, with_mean: bool) -> None:
    """Search weights without importance: |x|, plus the root mean square if `with_mean`."""
    mean = np.zeros(LANES, np.float32)
    if with_mean:
        for i in range(size):
            for k in range(LANES):
                mean[k] += v[X + i * LANES + k] * v[X + i * LANES + k]
        for k in range(LANES):
            mean[k] = np.sqrt(mean[k] / np.float32(size))
    for i in range(size):
        for k in range(LANES):
            v[W + i * LANES + k] = mean[k] + abs(v[X + i * LANES + k])


@compiled
def _weigh_by_square(v: Floats, size: int) -> None:
    for j in range(size * LANES):
        v[W + j] = v[X + j] * v[X + j]


@compiled
def _quantize_scales(
    values: Floats, weights: Floats, count: int, top: int, quants: Bytes
) -> Scalar:
    """`make_qp_quants`: value ~ scale * q with q in 0..top; returns the scale.

    A quant is kept in a byte, as in ggml: a negative one becomes a large one.
    """
    peak = ZERO
    for i in range(count):
        peak = max(peak, values[i])
    if peak < NOTHING:
        for i in range(count):
            quants[i] = 0
        return ZERO
    limit = np.float32(top)
    inverse = limit / peak
    scale = ONE / inverse
    best = ZERO
    for i in range(count):
        quants[i] = nearest_int(inverse * values[i]) & 0xFF
        difference = values[i] - scale * np.float32(quants[i])
        best += weights[i] * difference * difference
    for number in range(-4, 5):
        if number == 0:
            continue
        candidate = (np.float32(0.1) * np.float32(number) + limit) / peak
        scale = ONE / candidate
        error = ZERO
        for i in range(count):
            quant = min(top, nearest_int(candidate * values[i]))
            difference = values[i] - scale * np.float32(quant)
            error += weights[i] * difference * difference
        if error < best:
            best = error
            inverse = candidate
    sum_xl = ZERO
    sum_l2 = ZERO
    for i in range(count):
        quant = min(top, nearest_int(inverse * values[i]))
        quants[i] = quant & 0xFF
        sum_xl += weights[i] * values[i] * np.float32(quant)
        sum_l2 += weights[i] * np.float32(quant) * np.float32(quant)
    for _ in range(5):
        is_changed = False
        for i in range(count):
            weight, value, old = weights[i], values[i], np.int64(quants[i])
            rest_xl = sum_xl - weight * value * np.float32(old)
            rest_l2 = sum_l2 - weight * np.float32(old) * np.float32(old)
            if not (rest_xl > ZERO and rest_l2 > ZERO):
                continue
            new = min(top, nearest_int(value * rest_l2 / rest_xl))
            if new == old:
                continue
            rest_xl += weight * value * np.float32(new)
            rest_l2 += weight * np.float32(new) * np.float32(new)
            if rest_xl * rest_xl * sum_l2 > sum_xl * sum_xl * rest_l2:
                quants[i] = new & 0xFF
                sum_xl = rest_xl
                sum_l2 = rest_l2
                is_changed = True
        if not is_changed:
            break
    return sum_xl / sum_l2 if sum_l2 > ZERO else ZERO


@compiled
def _plain_scales(values: Floats, count: int, top: int, quants: Bytes) -> Scalar:
    """Scales relative to the largest: value ~ scale * q with q in 0..top; returns the scale."""
    peak = ZERO
    for i in range(count):
        peak = max(peak, values[i])
    limit = np.float32(top)
    inverse = limit / peak if peak > ZERO else ZERO
    for i in range(count):
        quants[i] = nearest_int(inverse * values[i]) & 0xFF
    return peak / limit


@compiled
def _final_quants(v: Floats, s: Floats, size: int, top: int, levels: Bytes) -> None:
    """The quants of every lane, for the scale and minimum that its bytes stand for.

    If that scale is zero, the quants are those of the search.
    """
    for i in range(size):
        for k in range(LANES):
            j = i * LANES + k
            x, minimum, scale = v[X + j], s[FINAL_MINIMUM + k], s[FINAL_SCALE + k]
            levels[j] = np.uint8(quant_of((x + minimum) / scale, 0, top))
    for k in range(LANES):
        if s[FINAL_SCALE + k] == ZERO:
            for j in range(k, size * LANES, LANES):
                x = v[X + j] - s[OFFSET + k]
                levels[j] = np.uint8(quant_of(s[INVERSE + k] * x, 0, top))


@compiled
def _collect(levels: Bytes, lane: int, size: int, quants: Bytes) -> None:
    """The quants of a block in order; its parts are in neighbouring lanes."""
    for i in range(size):
        for part in range(BLOCK // size):
            quants[part * size + i] = levels[i * LANES + lane + part]


@compiled
def with_minimum(bits: int, rows: Floats, importance: Floats, out: Bytes) -> None:
    """Q2_K, Q4_K and Q5_K: `quantize_row_q?_K_ref`, or `_impl` with importance."""
    size = 16 if bits == 2 else 32
    top = (1 << bits) - 1
    parts = BLOCK // size
    blocks_per_row = rows.shape[1] // BLOCK
    total = rows.shape[0] * blocks_per_row
    block_bytes = out.shape[1] // blocks_per_row
    flat, target = rows.reshape(rows.size), out.reshape(out.size)
    v, quants, s = (
        np.empty(VALUES, np.float32),
        np.empty(AREA, np.float32),
        np.empty(STATE, np.float32),
    )
    sigma2 = np.zeros(LANES, np.float32)
    levels, block_quants = np.empty(AREA, np.uint8), np.empty(BLOCK, np.uint8)
    scales, minima = np.empty(16, np.float32), np.empty(16, np.float32)
    weights = np.empty(16, np.float32)
    scale_bits, minimum_bits = np.empty(16, np.uint8), np.empty(16, np.uint8)
    has_importance = importance.size > 0
    for first in range(0, total, LANES // parts):
        blocks = min(LANES // parts, total - first)
        start, count = first * BLOCK, blocks * parts
        load(flat, start, count, size, v, X)
        if has_importance:
            factor = ONE if bits == 2 else np.float32(2)
            _load_weighed(flat, importance, _Parts(start, count, size), factor, v, sigma2)
            search_scale_and_minimum(
                v, quants, s, size, top, Grid(np.float32(-0.9), np.float32(0.05), 36, False)
            )
        else:
            _weigh_by_size(v, size, bits != 2)
            lowest = np.float32(-1) if bits == 4 else np.float32(-0.5)
            search_scale_and_minimum(
                v, quants, s, size, top,
                Grid(lowest, np.float32(0.1), 20 if bits == 4 else 15, bits == 2),
            )  # fmt: skip
        for block in range(blocks):
            lane = block * parts
            for part in range(parts):
                scales[part] = s[SCALE + lane + part]
                minima[part] = -s[MINIMUM + lane + part]
                weights[part] = s[SUM_W + lane + part]
            scale_top = 15 if bits == 2 else 63
            if has_importance:
                scale = _quantize_scales(scales, weights, parts, scale_top, scale_bits)
                minimum = _quantize_scales(minima, weights, parts, scale_top, minimum_bits)
            else:
                scale = _plain_scales(scales, parts, scale_top, scale_bits)
                minimum = _plain_scales(minima, parts, scale_top, minimum_bits)
            at = (first + block) * block_bytes
            if bits == 2:
                scale = store_half(target, at + 80, scale)
                minimum = store_half(target, at + 82, minimum)
                for part in range(16):
                    byte = (scale_bits[part] | (np.int64(minimum_bits[part]) << 4)) & 0xFF
                    target[at + part] = byte
                    scale_bits[part] = byte & 0xF
                    minimum_bits[part] = byte >> 4
            else:
                scale = store_half(target, at, scale)
                minimum = store_half(target, at + 2, minimum)
                # ggml clamps all of them to 63 without importance, with it only Q5_K's.
                if not has_importance or bits == 5:
                    for part in range(8):
                        scale_bits[part] = min(63, scale_bits[part])
                        minimum_bits[part] = min(63, minimum_bits[part])
                _pack_scales(scale_bits, minimum_bits, target, at + 4)
            for part in range(parts):
                s[FINAL_SCALE + lane + part] = scale * np.float32(scale_bits[part])
                s[FINAL_MINIMUM + lane + part] = minimum * np.float32(minimum_bits[part])
        _final_quants(v, s, size, top, levels)
        for block in range(blocks):
            at = (first + block) * block_bytes
            _collect(levels, block * parts, size, block_quants)
            if bits == 2:
                _pack_2_bits(block_quants, target, at + 16)
            elif bits == 4:
                _pack_4_bits(block_quants, target, at + 16)
            else:
                _pack_5_bits(block_quants, target, at + 16)


@compiled
def _pack_scales(scales: Bytes, minima: Bytes, out: Bytes, at: int) -> None:
    """Pack eight scales and minima of 6 bits into 12 bytes; read them back (`get_scale_min_k4`)."""
    for j in range(4):
        out[at + j] = scales[j]
        out[at + j + 4] = minima[j]
    for j in range(4, 8):
        scale, minimum = np.int64(scales[j]), np.int64(minima[j])
        out[at + j + 4] = (scale & 0xF) | ((minimum & 0xF) << 4)
        out[at + j - 4] |= np.uint8(((scale >> 4) << 6) & 0xFF)
        out[at + j] |= np.uint8(((minimum >> 4) << 6) & 0xFF)
    for j in range(4):
        scales[j] = out[at + j] & 63
        minima[j] = out[at + j + 4] & 63
    for j in range(4, 8):
        scales[j] = (out[at + j + 4] & 0xF) | ((out[at + j - 4] >> 6) << 4)
        minima[j] = (out[at + j + 4] >> 4) | ((out[at + j] >> 6) << 4)


@compiled
def _pack_2_bits(quants: Bytes, out: Bytes, at: int) -> None:
    """Four quants in each byte, 32 positions apart: 64 bytes."""
    for half in range(2):
        for i in range(32):
            j = half * 128 + i
            out[at + half * 32 + i] = (
                quants[j] | (quants[j + 32] << 2) | (quants[j + 64] << 4) | (quants[j + 96] << 6)
            )


@compiled
def _pack_4_bits(quants: Bytes, out: Bytes, at: int) -> None:
    """Two quants in each byte, 32 positions apart: 128 bytes."""
    for quarter in range(4):
        for i in range(32):
            j = quarter * 64 + i
            out[at + quarter * 32 + i] = (quants[j] & 0xF) | (quants[j + 32] << 4)


@compiled
def _pack_5_bits(quants: Bytes, out: Bytes, at: int) -> None:
    """The fifth bits, eight in each byte, and then the lower four as in `_pack_4_bits`."""
    for i in range(32):
        high: Scalar = 0
        for group in range(8):
            high |= (np.int64(quants[group * 32 + i]) >> 4) << group
        out[at + i] = high
    _pack_4_bits(quants, out, at + 32)


@compiled
def _final_signed_quants(v: Floats, s: Floats, half_range: int, levels: Bytes) -> None:
    """As `_final_quants`, for signed quants, which are stored with an offset."""
    low, high = -half_range, half_range - 1
    for i in range(16):
        for k in range(LANES):
            j = i * LANES + k
            levels[j] = np.uint8(quant_of(v[X + j] / s[FINAL_SCALE + k], low, high) + half_range)
    for k in range(LANES):
        if s[FINAL_SCALE + k] == ZERO:
            is_empty = s[IS_EMPTY + k] > ZERO
            for j in range(k, 16 * LANES, LANES):
                quant = quant_of(s[INVERSE + k] * v[X + j], low, high) + half_range
                levels[j] = np.uint8(0 if is_empty else quant)


@compiled
def q6_k(rows: Floats, importance: Floats, out: Bytes) -> None:
    """`quantize_row_q6_K_ref`; importance, if given, is the only search weight."""
    blocks_per_row = rows.shape[1] // BLOCK
    total = rows.shape[0] * blocks_per_row
    flat, target = rows.reshape(rows.size), out.reshape(out.size)
    v, s = np.empty(VALUES, np.float32), np.empty(STATE, np.float32)
    levels, quants = np.empty(AREA, np.uint8), np.empty(BLOCK, np.uint8)
    is_nothing = np.empty(LANES // 16, np.bool_)
    for first in range(0, total, LANES // 16):
        blocks = min(LANES // 16, total - first)
        start, count = first * BLOCK, blocks * 16
        load(flat, start, count, 16, v, X)
        if importance.size > 0:
            load_importance(importance, start, count, 16, v, W)
        else:
            _weigh_by_square(v, 16)
        multiply(v, 16)
        search_scale(v, s, 16, 32)
        for block in range(blocks):
            lane, at = block * 16, (first + block) * 210
            largest, peak = ZERO, ZERO
            for part in range(16):
                if abs(s[SCALE + lane + part]) > largest:
                    largest, peak = abs(s[SCALE + lane + part]), s[SCALE + lane + part]
            is_nothing[block] = largest < NOTHING
            if is_nothing[block]:
                target[at : at + 210] = 0
                continue
            inverse = np.float32(-128) / peak
            scale = store_half(target, at + 208, ONE / inverse)
            for part in range(16):
                bits = min(127, nearest_int(inverse * s[SCALE + lane + part]))
                target[at + 192 + part] = bits & 0xFF
                s[FINAL_SCALE + lane + part] = scale * np.float32(np.int8(bits))
        _final_signed_quants(v, s, 32, levels)
        for block in range(blocks):
            if not is_nothing[block]:
                _collect(levels, block * 16, 16, quants)
                _pack_6_bits(quants, target, (first + block) * 210)


@compiled
def _pack_6_bits(quants: Bytes, out: Bytes, at: int) -> None:
    """The lower four bits in 128 bytes, then the upper two in 64."""
    for half in range(2):
        for i in range(32):
            j = half * 128 + i
            a, b, c, d = quants[j], quants[j + 32], quants[j + 64], quants[j + 96]
            out[at + half * 64 + i] = (a & 0xF) | ((c & 0xF) << 4)
            out[at + half * 64 + i + 32] = (b & 0xF) | ((d & 0xF) << 4)
            high = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((d >> 4) << 6)
            out[at + 128 + half * 32 + i] = high


@compiled
def _signed_scales(values: Floats, weights: Floats, quants: Bytes) -> Scalar:
    """`make_qx_quants` for 16 scales in -32..31, stored with an offset; returns their scale."""
    size, peak = ZERO, ZERO
    for i in range(16):
        if abs(values[i]) > size:
            size, peak = abs(values[i]), values[i]
    if size < NOTHING:
        quants[:16] = 0
        return ZERO
    scale, best = ZERO, ZERO
    for attempt in range(-10, 10):
        if attempt == 0:
            continue
        number = 0 if attempt == -10 else attempt
        inverse = -(np.float32(32) + np.float32(0.1) * np.float32(number)) / peak
        sum_xl, sum_l2 = ZERO, ZERO
        for i in range(16):
            quant = np.float32(max(-32, min(31, nearest_int(inverse * values[i]))))
            sum_xl += weights[i] * values[i] * quant
            sum_l2 += weights[i] * quant * quant
        is_first = attempt == -10
        if is_first or (sum_l2 > ZERO and sum_xl * sum_xl > best * sum_l2):
            for i in range(16):
                quants[i] = 32 + max(-32, min(31, nearest_int(inverse * values[i])))
            scale = sum_xl / sum_l2 if sum_l2 != ZERO else ZERO
            best = scale * sum_xl
    return scale


@compiled
def q3_k(rows: Floats, importance: Floats, out: Bytes) -> None:
    """`quantize_row_q3_K_ref`, or `_impl` with importance."""
    blocks_per_row = rows.shape[1] // BLOCK
    total = rows.shape[0] * blocks_per_row
    flat, target = rows.reshape(rows.size), out.reshape(out.size)
    v, s = np.empty(VALUES, np.float32), np.empty(STATE, np.float32)
    searched = np.empty(AREA, np.float32)
    sigma2 = np.zeros(LANES, np.float32)
    weights, values = np.empty(16, np.float32), np.empty(16, np.float32)
    levels, quants = np.empty(AREA, np.uint8), np.empty(BLOCK, np.uint8)
    scale_bits = np.empty(16, np.uint8)
    has_importance = importance.size > 0
    for first in range(0, total, LANES // 16):
        blocks = min(LANES // 16, total - first)
        start, count = first * BLOCK, blocks * 16
        load(flat, start, count, 16, v, X)
        if has_importance:
            sixteens = _Parts(start, count, 16)
            _load_weighed(flat, importance, sixteens, np.float32(2), v, sigma2)
            multiply(v, 16)
            search_scale(v, s, 16, 4)
        else:
            _weigh_by_square(v, 16)
            multiply(v, 16)
            search_scale_by_descent(v, searched, s, 16)
        for block in range(blocks):
            lane, at = block * 16, (first + block) * 110
            for part in range(16):
                values[part] = s[SCALE + lane + part]
            if has_importance:
                for part in range(16):
                    weight = ZERO
                    for i in range(16):
                        weight += v[W + i * LANES + lane + part]
                    weights[part] = weight
                scale = _signed_scales(values, weights, scale_bits)
            else:
                scale = _signed_share(values, scale_bits)
            scale = store_half(target, at + 108, scale)
            for part in range(16):
                bits = np.int64(scale_bits[part]) - 32
                s[FINAL_SCALE + lane + part] = scale * np.float32(bits)
            _pack_signed_scales(scale_bits, target, at + 96)
        _final_signed_quants(v, s, 4, levels)
        if not has_importance:
            _keep_searched(searched, s, levels)
        for block in range(blocks):
            _collect(levels, block * 16, 16, quants)
            _pack_3_bits(quants, target, (first + block) * 110)


@compiled
def _keep_searched(searched: Floats, s: Floats, levels: Bytes) -> None:
    """Where a scale is zero, keep the quants of the search."""
    for k in range(LANES):
        if s[FINAL_SCALE + k] == ZERO and s[IS_EMPTY + k] == ZERO:
            for j in range(k, 16 * LANES, LANES):
                levels[j] = np.uint8(np.int32(searched[j]) + 4)


@compiled
def _signed_share(values: Floats, quants: Bytes) -> Scalar:
    """Q3_K's scales relative to the largest, in -32..31, stored with an offset."""
    size, peak = ZERO, ZERO
    for i in range(16):
        if abs(values[i]) > size:
            size, peak = abs(values[i]), values[i]
    if peak == ZERO:
        # ggml stores zero bytes, which stand for -32.
        quants[:16] = 0
        return ZERO
    inverse = np.float32(-32) / peak
    for i in range(16):
        quant: Scalar = np.int64(np.int8(nearest_int(inverse * values[i])))
        quants[i] = max(-32, min(31, quant)) + 32
    return ONE / inverse


@compiled
def _pack_3_bits(quants: Bytes, out: Bytes, at: int) -> None:
    """The third bits, eight in each byte, and the lower two, four in each byte."""
    for i in range(32):
        high: Scalar = 0
        for group in range(8):
            high |= (np.int64(quants[group * 32 + i]) >> 2) << group
        out[at + i] = high
    for half in range(2):
        for i in range(32):
            j = half * 128 + i
            a, b, c, d = quants[j] & 3, quants[j + 32] & 3, quants[j + 64] & 3, quants[j + 96] & 3
            out[at + 32 + half * 32 + i] = a | (b << 2) | (c << 4) | (d << 6)


@compiled
def _pack_signed_scales(scales: Bytes, out: Bytes, at: int) -> None:
    """Sixteen scales of 6 bits in 12 bytes."""
    for j in range(8):
        out[at + j] = (scales[j] & 0xF) | ((scales[j + 8] & 0xF) << 4)
    for j in range(4):
        out[at + 8 + j] = (
            (scales[j] >> 4)
            | ((scales[j + 4] >> 4) << 2)
            | ((scales[j + 8] >> 4) << 4)
            | ((scales[j + 12] >> 4) << 6)
        )
