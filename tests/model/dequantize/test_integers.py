"""GPTQ's and AWQ's packed integers, against the formats' definitions and gptqmodel's own code."""

from __future__ import annotations

import ast
import importlib.util
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from packager.errors import CorruptFileError, UnsupportedError
from tests.model.dequantize.quantized import dequantized, same

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


def gptq_tensors(
    parts: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    group_of: torch.Tensor,
    bits: int,
    layout: str,
) -> dict[str, torch.Tensor]:
    values, zeros, scales = parts
    stored = words(zeros, bits)
    if layout == "gptq":  # one less in every place of a word, borrowing from the next
        stored -= int("".join(["0" * (bits - 1) + "1"] * (32 // bits)), 2)
    return {
        f"{MODULE}.qweight": words(values.T.contiguous(), bits).T,
        f"{MODULE}.qzeros": stored,
        f"{MODULE}.scales": scales,
        f"{MODULE}.g_idx": group_of.to(torch.int32),
        f"{MODULE}.bias": torch.ones(64),
    }


def groups(is_ordered: bool) -> torch.Tensor:
    """The group of each row of weights."""
    group_of = torch.arange(96) // GROUP
    if is_ordered:
        return group_of
    return group_of[torch.randperm(96, generator=torch.Generator().manual_seed(6))]


def gptqmodel(file: str, *names: str) -> dict[str, Any]:
    """Functions of gptqmodel, from its source: importing the package takes an accelerator's stack.

    It is enough that the package lies where Python looks (`pip install --no-deps`, or its source
    distribution in PYTHONPATH).
    """
    spec = importlib.util.find_spec("gptqmodel")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gptqmodel is not installed")
    source = (Path(spec.submodule_search_locations[0]) / file).read_text(encoding="utf-8")
    space: dict[str, Any] = {"t": torch, "torch": torch}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            code = textwrap.dedent(ast.get_source_segment(source, node, padded=True) or "")
            exec(f"from __future__ import annotations\n{code}", space)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").isupper():
            try:
                space[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return space


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("is_ordered", [True, False])
def test_gptq_weights_are_those_of_the_definition(
    bits: int, layout: str, is_ordered: bool, tmp_path: Path
) -> None:
    parts, group_of = random_parts(bits), groups(is_ordered)
    tensors = gptq_tensors(parts, group_of, bits, layout)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}

    checkpoint = dequantized(tmp_path / "m", tensors, settings | {"checkpoint_format": layout})

    assert checkpoint.tensors[f"{MODULE}.weight"].shape == (64, 96)
    assert set(checkpoint.tensors) == {f"{MODULE}.weight", f"{MODULE}.bias"}
    assert same(checkpoint.load(f"{MODULE}.weight"), expected(*parts, group_of))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("is_ordered", [True, False])
def test_gptq_weights_are_those_of_gptqmodel(
    bits: int, layout: str, is_ordered: bool, tmp_path: Path
) -> None:
    names = ("_torch_right_shift", "_dequantize_from_codes", "dequantize_weight")
    functions = gptqmodel("nn_modules/qlinear/__init__.py", *names)
    parts, group_of = random_parts(bits), groups(is_ordered)
    tensors = gptq_tensors(parts, group_of, bits, layout)
    settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP}

    checkpoint = dequantized(tmp_path / "m", tensors, settings | {"checkpoint_format": layout})

    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    # A layer as it stands after loading, which turns the first layout into the second.
    layer = SimpleNamespace(
        planar=False,
        bits=bits,
        pack_factor=32 // bits,
        maxq=(1 << bits) - 1,
        in_features=96,
        qweight=tensors[f"{MODULE}.qweight"],
        qzeros=words(parts[1], bits),
        scales=parts[2],
        g_idx=group_of,
        dequant_dtype=torch.int16 if bits == 8 else torch.int8,
        wf_unsqueeze_zero=shifts[None, None],
        wf_unsqueeze_neg_one=shifts[None, :, None],
        _init_wf_unsqueeze_buffers=lambda: None,
    )
    layer._dequantize_from_codes = lambda *codes, **settings: functions["_dequantize_from_codes"](
        layer, *codes, **settings
    )
    wanted = functions["dequantize_weight"](layer)
    assert same(checkpoint.load(f"{MODULE}.weight"), wanted.T.contiguous().to(torch.bfloat16))


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

    checkpoint = dequantized(tmp_path / "m", awq_tensors(values, zeros, scales), settings)

    assert checkpoint.tensors[f"{MODULE}.weight"].shape == (64, 96)
    wanted = expected(values, zeros, scales, torch.arange(96) // GROUP)
    assert same(checkpoint.load(f"{MODULE}.weight"), wanted)


def test_awq_weights_are_those_of_gptqmodel(tmp_path: Path) -> None:
    packing = gptqmodel(
        "quantization/awq/utils/packing_utils.py",
        *("unpack_awq", "_unpack_columnwise", "reverse_awq_order", "dequantize_gemm"),
    )
    tensors = awq_tensors(*random_parts(4))
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP}

    checkpoint = dequantized(tmp_path / "m", tensors, settings)

    wanted = packing["dequantize_gemm"](
        tensors[f"{MODULE}.qweight"],
        tensors[f"{MODULE}.qzeros"],
        tensors[f"{MODULE}.scales"],
        4,
        GROUP,
    )
    assert same(checkpoint.load(f"{MODULE}.weight"), wanted.T.contiguous().to(torch.bfloat16))


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
