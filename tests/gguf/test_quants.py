"""The table of quants is llama.cpp's; names are accepted in any case."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import UnknownQuantError, UnsupportedError
from packager.gguf.quants import DEFAULT_QUANT, QUANTS, parse_quant
from packager.package.prepare import prepare
from packager.verbs.build import build
from packager.verbs.gguf import plan
from testing.usual_route import convert_with_llama_cpp, quantize_with_llama_cpp, read_gguf
from tests.requests import request_for


def test_names_and_numbers_are_those_of_llama_cpp() -> None:
    import llama_cpp

    constants = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): value
        for name, value in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_")
    }
    assert {name: quant.ftype for name, quant in QUANTS.items()} == {
        name: value
        for name, value in constants.items()
        # GUESSED is not a type; the quantizer does not make NVFP4.
        if name not in ("GUESSED", "NVFP4")
    }


@pytest.mark.parametrize(
    ("text", "name"),
    [("q5_k_m", "Q5_K_M"), ("Q4_K", "Q4_K_M"), ("bf16", "BF16"), ("iq4-xs", "IQ4_XS")],
)
def test_names_are_accepted_in_any_case(text: str, name: str) -> None:
    assert parse_quant(text).name == name


def test_a_wrong_name_lists_similar_ones() -> None:
    with pytest.raises(UnknownQuantError, match="Q4_K_M"):
        parse_quant("q4_k_n")


@pytest.mark.slow
def test_every_quant_has_its_planned_size_and_the_tensors_that_llama_cpp_makes(
    small_model: Callable[..., Path], llama_cpp_source: Path, tmp_path: Path
) -> None:
    model = small_model("qwen3", layers=1)
    quants = plan(request_for(model, name="all", out=tmp_path / "out")).quants
    assert {quant.quant for quant in quants} == set(QUANTS)
    assert [quant.quant for quant in quants if quant.is_default] == [DEFAULT_QUANT]
    makeable = [quant.quant for quant in quants if not quant.needs_imatrix]
    assert {"Q2_K", "Q3_K_L", "IQ4_XS", "TQ2_0", "MXFP4_MOE", "Q5_1"} <= set(makeable)

    request = request_for(model, makeable, "all", tmp_path / "out")
    bundle = build(prepare(request, tmp_path)).bundle

    wide = convert_with_llama_cpp(model, tmp_path / "wide.gguf", "bf16", llama_cpp_source)
    planned = {quant.quant: quant.size_bytes for quant in quants}
    assert [file.quant for file in bundle.ggufs] == makeable
    for file in bundle.ggufs:
        _, tensors = read_gguf(bundle.path(file), llama_cpp_source)
        metadata_bytes = file.size_bytes - planned[file.quant]
        assert 0 < metadata_bytes < 16 << 20
        if file.quant in ("F32", "F16"):
            continue
        usual = quantize_with_llama_cpp(wide, tmp_path / "usual.gguf", file.quant)
        assert tensors == read_gguf(usual, llama_cpp_source)[1], file.quant
        bundle.path(file).unlink()


def test_a_quant_that_needs_an_importance_matrix_is_refused(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    request = request_for(small_model("llama"), ("IQ2_XXS",), out=tmp_path / "out")
    with pytest.raises(UnsupportedError, match="IQ2_XXS") as refused:
        prepare(request, tmp_path)
    assert refused.value.exit_code == 3
    assert not (tmp_path / "out").exists()
