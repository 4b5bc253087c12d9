"""GPTQ's and AWQ's packed integers, against the formats' definitions and gptqmodel's own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from packager.errors import CorruptFileError, UnsupportedError
from tests.dequantize.quantized import dequantized, same

MODULE = "model.layers.0.mlp.up_proj"
GROUP = 32
# Column 2 of a word is where AWQ's second lowest four bits belong, and so on.
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def random_parts(bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers `[in_features, out_features]`, zero points and scales `[groups, out_features]`."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randint(0, 1 << bits, (96, 64), generator=generator)
    zeros = torch.randint(0, 1 << bits, (3, 64), generator=generator)
    return values, zeros, (torch.rand(3, 64, generator=generator) * 0.01).to(torch.float16)


def pack(columns: list[list[int]], bits: int, places: tuple[int, ...] | None = None) -> list[int]:
    """Rows of integers as signed words of 32 bits, the first in the lowest bits."""
    words = []
    for row in columns:
        word = 0
        for index, value in enumerate(row):
            word |= value << (bits * (index if places is None else places.index(index)))
        words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return words


def words(values: torch.Tensor, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """`[rows, columns]` packed along the columns."""
    rows = values.reshape(-1, 32 // bits).tolist()
    return torch.tensor(pack(rows, bits, places), dtype=torch.int32).reshape(len(values), -1)


def expected(
    values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group_of: torch.Tensor
) -> torch.Tensor:
    """By definition: scale times the distance from the zero point, rounded as fp16."""
    distances = (values - zeros[group_of]).double() * scales[group_of].double()
    return distances.to(torch.float16).T.contiguous().to(torch.bfloat16)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("is_ordered", [True, False])
def test_gptq_weights_are_those_of_the_definition(
    bits: int, layout: str, is_ordered: bool, tmp_path: Path
) -> None:
    values, zeros, scales = random_parts(bits)
    group_of = torch.arange(96) // GROUP
    if not is_ordered:
        group_of = group_of[torch.randperm(96, generator=torch.Generator().manual_seed(6))]
    stored = words(zeros, bits)
    if layout == "gptq":  # one less in every place of a word, borrowing from the next
        stored -= int("".join(["0" * (bits - 1) + "1"] * (32 // bits)), 2)
    tensors = {
        f"{MODULE}.qweight": words(values.T.contiguous(), bits).T,
        f"{MODULE}.qzeros": stored,
        f"{MODULE}.scales": scales,
        f"{MODULE}.g_idx": group_of.to(torch.int32),
        f"{MODULE}.bias": torch.ones(64),
    }
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}

    found = dequantized(tmp_path / "m", tensors, settings | {"checkpoint_format": layout})

    assert found.tensors[f"{MODULE}.weight"].shape == (64, 96)
    assert set(found.tensors) == {f"{MODULE}.weight", f"{MODULE}.bias"}
    assert same(found.load(f"{MODULE}.weight"), expected(values, zeros, scales, group_of))


def awq_tensors(
    values: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor
) -> dict[str, torch.Tensor]:
    # The lowest bits hold column 0, then 2, 4, 6, 1, 3, 5, 7.
    return {
        f"{MODULE}.qweight": words(values, 4, AWQ_PLACES),
        f"{MODULE}.qzeros": words(zeros, 4, AWQ_PLACES),
        f"{MODULE}.scales": scales,
    }


def test_awq_weights_are_those_of_the_definition(tmp_path: Path) -> None:
    values, zeros, scales = random_parts(4)
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}

    found = dequantized(tmp_path / "m", awq_tensors(values, zeros, scales), settings)

    assert found.tensors[f"{MODULE}.weight"].shape == (64, 96)
    wanted = expected(values, zeros, scales, torch.arange(96) // GROUP)
    assert same(found.load(f"{MODULE}.weight"), wanted)


def test_awq_weights_are_those_of_gptqmodel(tmp_path: Path) -> None:
    packing = pytest.importorskip(
        "gptqmodel.quantization.awq.utils.packing_utils", reason="gptqmodel is not installed"
    )
    tensors = awq_tensors(*random_parts(4))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP}

    found = dequantized(tmp_path / "m", tensors, settings)

    wanted = packing.dequantize_gemm(
        tensors[f"{MODULE}.qweight"],
        tensors[f"{MODULE}.qzeros"],
        tensors[f"{MODULE}.scales"],
        4,
        GROUP,
    )
    assert same(found.load(f"{MODULE}.weight"), wanted.T.contiguous().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"quant_method": "gptq", "bits": 3}, "`bits` 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "bits": 8}, "`bits` 8"),
    ],
)
def test_other_variants_are_refused_by_name(
    settings: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedError, match=named):
        dequantized(tmp_path / "m", {"a.weight": torch.ones(2, 2)}, settings)


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_a_weight_without_a_part_is_refused_by_name(part: str, method: str, tmp_path: Path) -> None:
    tensors = awq_tensors(*random_parts(4))
    del tensors[f"{MODULE}.{part}"]

    with pytest.raises(CorruptFileError, match=rf"up_proj\.weight.*{part}"):
        dequantized(tmp_path / "m", tensors, {"quant_method": method, "bits": 4})
