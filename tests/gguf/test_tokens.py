"""The runtime reads a prompt as training did: the same ids, one BOS, the same control tokens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from packager.gguf.types import write_skeleton
from packager.model.model_file import ModelFile
from packager.package.prepare import prepare
from packager.prompt.chat_template import load_chat_template
from packager.prompt.conversation import CORE
from packager.verbs.build import build
from testing.usual_route import read_gguf
from tests.requests import request_for

MESSAGES = [
    {"role": "user", "content": "Where do birds live, and why? 12 345 naïve 你好 🐦\n"},
    {"role": "assistant", "content": "In nests."},
    {"role": "user", "content": "All of them?"},
]
# The token that ends a turn in each model's chat template, by its published card.
END_OF_TURN = {
    "llama": "<|eot_id|>",
    "qwen3": "<|im_end|>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
}


def vocabulary_of(gguf: Path) -> Any:
    import llama_cpp

    return llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)


@pytest.fixture(scope="module")
def gguf(
    small_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    paths: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in paths:
            out = tmp_path_factory.mktemp(kind)
            request = request_for(small_model(kind), ("Q4_0",), kind, out)
            bundle = build(prepare(request, tmp_path_factory.mktemp("scratch"))).bundle
            paths[kind] = bundle.path(bundle.ggufs[0])
        return paths[kind]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", END_OF_TURN)
def test_the_prompt_has_the_training_ids_and_one_bos(
    kind: str, gguf: Callable[[str], Path], small_model: Callable[..., Path]
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_model(kind))
    expected = tokenizer.apply_chat_template(
        MESSAGES, add_generation_prompt=True, return_dict=False
    )
    text = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    llama = vocabulary_of(gguf(kind))

    # As in llama-server, which removes the template's BOS from the text if it adds one itself.
    adds_bos = llama.metadata["tokenizer.ggml.add_bos_token"] == "true"
    text = text.removeprefix(tokenizer.bos_token or "") if adds_bos else text
    ids = llama.tokenize(text.encode(), add_bos=adds_bos, special=True)

    assert ids == list(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", END_OF_TURN)
def test_the_end_of_a_turn_is_one_control_token_that_ends_generation(
    kind: str, gguf: Callable[[str], Path]
) -> None:
    import llama_cpp

    llama = vocabulary_of(gguf(kind))
    (token,) = llama.tokenize(END_OF_TURN[kind].encode(), add_bos=False, special=True)
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)

    assert llama_cpp.llama_vocab_is_control(vocabulary, token)
    assert llama_cpp.llama_vocab_is_eog(vocabulary, token)


@pytest.mark.slow
def test_an_added_token_with_content_is_not_a_control_token(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Control tokens do not appear in the output; a token that a user added to be read must."""
    import llama_cpp
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(small_model("qwen3"), model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<verdict>"])
    assert len(tokenizer) <= rows_of(model), "Qwen's embedding is padded"
    tokenizer.save_pretrained(model)

    request = request_for(model, ("Q4_0",), "x", tmp_path / "out")
    bundle = build(prepare(request, tmp_path)).bundle

    llama = vocabulary_of(bundle.path(bundle.ggufs[0]))
    (token,) = llama.tokenize(b"<verdict>", add_bos=False, special=True)
    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    assert not llama_cpp.llama_vocab_is_control(vocabulary, token)
    assert llama.detokenize([token]) == b"<verdict>"


@pytest.mark.slow
def test_the_looks_of_an_added_token_do_not_make_it_a_control_token(
    adapter: Callable[..., Path], small_model: Callable[..., Path], tmp_path: Path
) -> None:
    """`<|...|>` may be content; a token in the chat template is a marker, special or not."""
    import llama_cpp
    from transformers import AutoTokenizer

    own = tmp_path / "adapter"
    shutil.copytree(adapter("qwen3"), own)
    tokenizer = AutoTokenizer.from_pretrained(small_model("qwen3"))
    tokenizer.add_tokens(["<|verdict|>", "<|note|>"])
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|hidden|>"]})
    tokenizer.chat_template = "{{ '<|note|>' }}" + tokenizer.chat_template
    tokenizer.save_pretrained(own)
    package = prepare(request_for(own, ("Q8_0",)), tmp_path)
    write_skeleton(tmp_path / "v.gguf", package.text)

    llama = vocabulary_of(tmp_path / "v.gguf")

    vocabulary = llama_cpp.llama_model_get_vocab(llama.model)
    control = {}
    for text in ("<|verdict|>", "<|note|>", "<|hidden|>", "<|im_end|>"):
        (token,) = llama.tokenize(text.encode(), add_bos=False, special=True)
        control[text] = llama_cpp.llama_vocab_is_control(vocabulary, token)
    assert control == {
        "<|verdict|>": False, "<|note|>": True, "<|hidden|>": True, "<|im_end|>": True,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [["<|im_start|>", "<|im_end|>"], [{"content": "<|im_start|>", "__type": "AddedToken"}], [], {}],
    ids=["texts", "tokens", "empty", "empty by name"],
)
def test_extra_special_tokens_in_each_form_give_the_same_vocabulary(
    extra: object, small_model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 4 cannot read a list."""
    model = tmp_path / "qwen3"
    shutil.copytree(small_model("qwen3"), model)
    expected = vocabulary_values(small_model("qwen3"), tmp_path)
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "extra_special_tokens": extra}))
    before = path.read_bytes()

    assert vocabulary_values(model, tmp_path) == expected
    assert path.read_bytes() == before


def vocabulary_values(model: Path, scratch: Path) -> dict[str, Any]:
    metadata = prepare(request_for(model, ("Q8_0",), "m"), scratch).text.metadata
    return {key: value for key, value in metadata.items() if key.startswith("tokenizer.")}


@pytest.mark.slow
def test_added_tokens_that_transformers_5_writes_only_to_tokenizer_json_are_in_the_gguf(
    gguf: Callable[[str], Path],
    small_model: Callable[..., Path],
    llama_cpp_source: Path,
    tmp_path: Path,
) -> None:
    """With a tokenizer.model, llama.cpp's converter by itself makes them unused entries."""
    model = tmp_path / "gemma3"
    shutil.copytree(small_model("gemma3"), model)
    config = json.loads((model / "tokenizer_config.json").read_text())
    del config["added_tokens_decoder"]
    (model / "tokenizer_config.json").write_text(json.dumps(config))
    before = (model / "tokenizer_config.json").read_bytes()

    build(prepare(request_for(model, ("Q4_0",), "gemma3", tmp_path / "out"), tmp_path))

    values, _ = read_gguf(tmp_path / "out" / "gemma3-Q4_0.gguf", llama_cpp_source)
    expected, _ = read_gguf(gguf("gemma3"), llama_cpp_source)
    assert values == expected, "as if the model had been saved with transformers 4"
    assert (model / "tokenizer_config.json").read_bytes() == before


def rows_of(model: Path) -> int:
    from packager.model.checkpoint import FolderCheckpoint

    return FolderCheckpoint(model).tensors["model.embed_tokens.weight"].shape[0]


@pytest.mark.slow
def test_the_gguf_has_the_training_chat_template_after_a_comment(
    gguf: Callable[[str], Path], small_model: Callable[..., Path], llama_cpp_source: Path
) -> None:
    values, _ = read_gguf(gguf("llama"), llama_cpp_source)
    in_gguf = values["tokenizer.chat_template"]
    trained = (small_model("llama") / "chat_template.jinja").read_text(encoding="utf-8")

    comment, _, rest = in_gguf.partition("#}\n")
    assert comment.startswith("{#")
    # Ollama replaces a template by one that it knows if fewer than 100 characters differ.
    assert len(comment) >= 100
    # The text between the two sets variables, and renders as nothing.
    assert rest.endswith(trained)
    added = rest.removesuffix(trained)
    assert added.startswith("{% if tools %}")
    assert added.count("\n") == 1
    files = {"chat_template.jinja": ModelFile(small_model("llama") / "chat_template.jinja")}
    chat_template = load_chat_template(files, {}, None)
    assert chat_template is not None
    assert chat_template.source == trained
    packaged = replace(chat_template, source=in_gguf)
    for conversation in CORE:
        assert packaged.prompt(conversation) == chat_template.prompt(conversation)
