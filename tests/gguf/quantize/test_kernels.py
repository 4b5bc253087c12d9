"""Every kernel gives the bytes of `ggml_quantize_chunk` for any weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from packager.files import cache_folder
from packager.gguf.quantize import kernels
from packager.gguf.quantize.ggml import quantize_with_ggml
from packager.gguf.toolchain import find_toolchain
from packager.gguf.types import tensor_bytes
from packager.model.checkpoint import FolderCheckpoint

Array = np.ndarray[Any, Any]
TYPES = sorted(kernels.WITH_IMPORTANCE)
CASES = [(name, False) for name in sorted(kernels.PLAIN)] + [(name, True) for name in TYPES]
IDS = [f"{name}-importance" if has_importance else name for name, has_importance in CASES]
LARGEST = np.finfo(np.float32).max


@pytest.fixture(scope="module", autouse=True)
def _toolchain() -> None:
    find_toolchain().activate()


def require_the_bytes_of_ggml(
    type_name: str, rows: Array, importance: Array | None, what: str = ""
) -> None:
    rows = np.ascontiguousarray(rows, np.float32)
    size = tensor_bytes(rows.shape[1], type_name)
    expected, actual = (np.full((len(rows), size), fill, np.uint8) for fill in (0, 255))
    quantize_with_ggml(type_name, rows, expected, importance)
    table = kernels.PLAIN if importance is None else kernels.WITH_IMPORTANCE
    table[type_name](rows, np.empty(0, np.float32) if importance is None else importance, actual)
    wrong = np.flatnonzero((expected != actual).any(axis=1))
    assert wrong.size == 0, f"{what}: rows {wrong[:5]} of {len(rows)} differ"


def importances(columns: int, *, has_importance: bool) -> list[Array | None]:
    """Only None; or random importance, and importance that is often zero."""
    if not has_importance:
        return [None]
    values = np.random.default_rng(7).random(columns, np.float32)
    return [values, np.where(np.arange(columns) % 3 == 0, values, 0).astype(np.float32)]


def kinds_of_weights(columns: int) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    shape = (23, columns)  # too few blocks to fill the lanes
    normal = (rng.standard_normal(shape) * 0.02).astype(np.float32)
    outlier = normal.copy()
    outlier[:, ::32] = 5
    signs = np.where(rng.random(shape) < 0.5, -1, 1).astype(np.float32)
    exponents = rng.uniform(-38, 38, shape)
    return {
        "normals": normal,
        "heavy tails": (rng.standard_t(1.5, shape) * 0.02).astype(np.float32),
        "zeros": np.zeros(shape, np.float32),
        "negative zeros": np.full(shape, -0.0, np.float32),
        "constants": np.repeat(rng.standard_normal((23, columns // 32)), 32, 1).astype(np.float32),
        "one outlier per block": outlier,
        "denormals": (normal * np.float32(1e-37)).astype(np.float32),
        "smallest": signs * np.float32(1e-45),
        "near the threshold for zero": (normal * np.float32(1e-14)).astype(np.float32),
        "largest": signs * LARGEST,
        "largest beside zeros": np.where(rng.random(shape) < 0.1, LARGEST, 0).astype(np.float32),
        "all negative": -np.abs(normal) - np.float32(0.5),
        "all positive": np.abs(normal) + np.float32(0.5),
        "every magnitude": (signs * 10.0**exponents).astype(np.float32),
        "integers": rng.integers(-9, 10, shape).astype(np.float32),
        "bf16": (normal.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
    }


@pytest.mark.parametrize(("type_name", "has_importance"), CASES, ids=IDS)
def test_the_bytes_equal_those_of_ggml(type_name: str, has_importance: bool) -> None:
    for columns in (256, 768):
        for importance in importances(columns, has_importance=has_importance):
            for what, rows in kinds_of_weights(columns).items():
                require_the_bytes_of_ggml(type_name, rows, importance, what)


@pytest.mark.parametrize(("type_name", "has_importance"), CASES, ids=IDS)
@pytest.mark.parametrize("count", [1, 7, 9, 64, 65])
def test_any_number_of_rows_gives_the_bytes_of_ggml(
    type_name: str, has_importance: bool, count: int
) -> None:
    smallest = 256 if "K" in type_name or type_name == "IQ4_XS" else 32
    for columns in (smallest, 3 * smallest):
        rows = np.random.default_rng(count).standard_normal((count, columns), np.float32)
        for importance in importances(columns, has_importance=has_importance):
            require_the_bytes_of_ggml(type_name, rows, importance)


@pytest.mark.parametrize(("type_name", "has_importance"), CASES, ids=IDS)
def test_real_weights_give_the_bytes_of_ggml(type_name: str, has_importance: bool) -> None:
    bases: list[Path] = sorted(cache_folder().glob("demo-base-*/gemma-3-270m"))
    if not bases:
        pytest.skip("the demo's base is not in the cache (scripts/demo makes it)")
    base = FolderCheckpoint(bases[-1])
    layer = "model.layers.3"
    for name in (
        "model.embed_tokens.weight",
        f"{layer}.self_attn.q_proj.weight",
        f"{layer}.self_attn.o_proj.weight",
        f"{layer}.mlp.down_proj.weight",
    ):
        rows = next(iter(base.blocks(name, 96))).float().numpy()
        columns = rows.shape[1] // 256 * 256
        for importance in importances(columns, has_importance=has_importance):
            require_the_bytes_of_ggml(type_name, rows[:, :columns], importance, name)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
# Few distinct values, so that blocks have many ties and equal extremes.
ROWS = st.one_of(
    hypothesis_numpy.arrays(np.float32, (2, 256), elements=FINITE),
    st.lists(FINITE, min_size=1, max_size=5).flatmap(
        lambda values: hypothesis_numpy.arrays(
            np.float32, (2, 256), elements=st.sampled_from(values)
        )
    ),
)
IMPORTANCE = hypothesis_numpy.arrays(
    np.float32, 256, elements=st.floats(0, 2**20, width=32, allow_subnormal=True)
)


@pytest.mark.parametrize(("type_name", "has_importance"), CASES, ids=IDS)
@settings(max_examples=100, deadline=None)
@given(rows=ROWS, importance=IMPORTANCE)
def test_generated_weights_give_the_bytes_of_ggml(
    type_name: str, has_importance: bool, rows: Array, importance: Array
) -> None:
    require_the_bytes_of_ggml(type_name, rows, importance if has_importance else None)
