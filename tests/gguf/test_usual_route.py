"""The GGUFs equal those of the usual route: PEFT, convert_hf_to_gguf.py, llama_model_quantize."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from packager.package.plan import plan_of
from packager.package.prepare import prepare
from packager.verbs.build import build
from testing.usual_route import (
    convert_with_llama_cpp,
    merge_with_peft,
    quantize_with_llama_cpp,
    read_gguf,
)
from tests.requests import request_for

QUANTS = ("Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "F16")
# The key-values that differ, each with its reason. No others may.
EXCEPTIONS = {
    "general.name": "the usual route takes it from the folder's name",
    "general.basename": "likewise",
    "general.finetune": "likewise",
    "general.version": "likewise",
    "general.size_label": "likewise, if the name contains a size",
    "tokenizer.chat_template": "ours begins with a comment; compared separately",
    "tokenizer.ggml.eot_token_id": "ours names the token that ends a turn",
    "tokenizer.ggml.eom_token_id": "ours names another token that ends an answer",
    "tokenizer.ggml.add_bos_token": "ours says how training prompts begin",
}


def without_exceptions(values: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if key not in EXCEPTIONS}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {}),
        ("qwen3", {}),
        ("gemma3", {}),
        ("phi3", {}),
        ("gpt2", {}),
        # The converter stacks experts; ftpack reads them one by one.
        ("qwen3moe", {}),
        # Rows of 192 weights do not fit K-quants' blocks of 256: llama.cpp uses other types.
        ("llama", {"hidden_size": 192}),
    ],
    ids=["llama", "qwen3", "gemma3", "phi3", "gpt2", "qwen3moe", "llama-fallback"],
)
def test_every_quant_has_the_tensors_types_bytes_and_key_values_of_the_usual_route(
    kind: str,
    options: dict[str, int],
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    base = small_model(kind, **options)
    attention = {"targets": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    lora = adapter(kind, base, **attention if kind == "qwen3moe" else {})
    request = request_for(lora, QUANTS, "ours", tmp_path / "ours", base)
    bundle = build(prepare(request, tmp_path)).bundle

    merged = merge_with_peft(base, lora, tmp_path / "usual")
    wide = convert_with_llama_cpp(merged, tmp_path / "usual.gguf", "bf16", llama_cpp_source)
    assert tuple(file.quant for file in bundle.ggufs) == QUANTS
    for file in bundle.ggufs:
        usual = tmp_path / f"usual-{file.quant}.gguf"
        if file.quant == "F16":
            convert_with_llama_cpp(merged, usual, "f16", llama_cpp_source)
        else:
            quantize_with_llama_cpp(wide, usual, file.quant)
        expected_values, expected_tensors = read_gguf(usual, llama_cpp_source)
        values, tensors = read_gguf(bundle.path(file), llama_cpp_source)

        assert tensors == expected_tensors, file.quant
        assert without_exceptions(values) == without_exceptions(expected_values), file.quant
        assert str(values["tokenizer.chat_template"]).endswith(
            str(expected_values["tokenizer.chat_template"])
        )
        usual.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("qwen3", {"use_dora": True, "modules_to_save": ["lm_head"]}),
        ("qwen3", {"trainable_token_indices": {"embed_tokens": [5, 7]}}),
        ("gpt2", {"bias": "all"}),
        ("qwen3moe", {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}),
    ],
    ids=["dora-untied", "tokens-tied", "biases", "experts"],
)
def test_peft_only_methods_give_the_gguf_of_the_usual_route(
    kind: str,
    options: dict[str, object],
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    base = small_model(kind)
    targets = ["c_attn"] if kind == "gpt2" else ["q_proj", "o_proj"]
    lora = adapter(kind, base, targets=targets, **options)
    request = request_for(lora, ("Q8_0",), "ours", tmp_path / "ours", base)
    bundle = build(prepare(request, tmp_path)).bundle

    merged = merge_with_peft(base, lora, tmp_path / "usual")
    wide = convert_with_llama_cpp(merged, tmp_path / "usual.gguf", "bf16", llama_cpp_source)
    usual = quantize_with_llama_cpp(wide, tmp_path / "usual-Q8_0.gguf", "Q8_0")

    expected_values, expected_tensors = read_gguf(usual, llama_cpp_source)
    values, tensors = read_gguf(bundle.path(bundle.ggufs[0]), llama_cpp_source)
    assert tensors == expected_tensors
    assert without_exceptions(values) == without_exceptions(expected_values)


def test_a_tied_embedding_that_is_tuned_on_one_side_gets_its_own_output(
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    base = small_model("qwen3")
    lora = adapter("qwen3", base, targets=["embed_tokens"])
    request = request_for(base, ("F16",), "ours", tmp_path / "base")
    of_base = build(prepare(request, tmp_path)).bundle
    request = request_for(lora, ("F16",), "ours", tmp_path / "ours", base)
    bundle = build(prepare(request, tmp_path)).bundle

    _, tensors = read_gguf(bundle.path(bundle.ggufs[0]), llama_cpp_source)
    _, expected = read_gguf(of_base.path(of_base.ggufs[0]), llama_cpp_source)
    assert "output.weight" not in expected
    assert tensors.pop("output.weight") == expected["token_embd.weight"]
    assert tensors.pop("token_embd.weight") != expected.pop("token_embd.weight")
    assert tensors == expected


def test_fallbacks_and_true_bits_per_weight_are_reported(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = small_model("llama", hidden_size=192)

    request = request_for(model, ("Q4_K_M",), out=tmp_path / "out")
    package = prepare(request, tmp_path)

    (quant,) = plan_of(package, [file.typed for file in package.ggufs]).quants
    # Q4_K has blocks of 256; llama.cpp's `tensor_type_fallback` replaces it with Q5_0.
    assert any(line.endswith("Q5_0 instead of Q4_K") for line in quant.fallbacks)
    assert quant.bits_per_weight > 4.85, "more than Q4_K_M has without fallbacks"
