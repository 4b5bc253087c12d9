"""A vocabulary unknown to llama.cpp's converter is recognised by its definition, or refused."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from packager.errors import UnsupportedError
from packager.gguf.toolchain import Toolchain, find_toolchain
from packager.gguf.types import write_skeleton
from packager.package.package import Package
from packager.package.prepare import prepare
from packager.progress import Silent
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.corpus import CORPUS
from packager.verify.vocabulary import check_pre_tokenizer
from testing.vocabularies import import_gguf
from tests.command import ftpack
from tests.published_tokenizers import (
    MISTRAL_NEMO,
    PUBLISHED,
    QWEN_2,
    Published,
    sequence,
    split,
)
from tests.reports import Reports
from tests.requests import request_for

BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4


def added_token(number: int, text: str, *, special: bool) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    return {"id": number, "content": text, "special": special, "normalized": not special, **flags}


def own_tokenizer(published: Published, llama_cpp: Path) -> dict[str, Any]:
    """A published tokenizer: its own vocabulary, and its way of splitting text."""
    path = llama_cpp / "models" / f"ggml-vocab-{published.vocabulary}.gguf"
    fields = import_gguf(llama_cpp).GGUFReader(path).fields
    tokens, types, merges = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")
    )
    kinds = list(enumerate(zip(tokens, types, strict=True)))
    tokenizer = {
        "version": "1.0",
        "added_tokens": [
            added_token(number, token, special=kind == _CONTROL)
            for number, (token, kind) in kinds
            if kind in (_CONTROL, _USER_DEFINED) and not token.startswith("[PAD")
        ],
        "normalizer": published.normalizer,
        "pre_tokenizer": published.pre_tokenizer,
        "decoder": {**BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, (token, kind) in kinds if kind == _NORMAL},
            "merges": merges,
            "ignore_merges": published.ignore_merges,
        },
    }
    if published.name in ("llama-bpe", "deepseek-llm", "deepseek-coder"):
        bos = fields["tokenizer.ggml.bos_token_id"].contents()
        tokenizer["post_processor"] = begin_with(tokens[bos], bos)
    return tokenizer


def begin_with(token: str, number: int) -> dict[str, Any]:
    pieces = [
        {"SpecialToken": {"id": token, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    return {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": pieces,
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def with_other_ids(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer with the ids of its tokens in another order."""
    vocabulary = tokenizer["model"]["vocab"]
    numbers = list(vocabulary.values())
    moved = dict(zip(vocabulary, numbers[1:] + numbers[:1], strict=True))
    return {**tokenizer, "model": {**tokenizer["model"], "vocab": moved}}


def revealing_tokenizer(published: Published) -> dict[str, Any]:
    """A tokenizer whose ids show every position at which text is split.

    Its merges can join each text of the corpus into one token: only splitting prevents that.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    is_byte_level = "ByteLevel" in json.dumps(published.pre_tokenizer)
    tokenizer = Tokenizer(models.BPE(byte_fallback=not is_byte_level))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if is_byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        special = []
    else:
        # There llama.cpp never merges across the end of a line; real models have no such merges.
        tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
        special, alphabet = [f"<0x{number:02X}>" for number in range(256)], []
    trainer = trainers.BpeTrainer(
        vocab_size=20000, min_frequency=0, initial_alphabet=alphabet, special_tokens=special,
        show_progress=False,
    )  # fmt: skip
    texts = list(CORPUS.values())
    if not is_byte_level:
        texts = [text.replace(" ", "\u2581") for text in texts if "\0" not in text]
    tokenizer.train_from_iterator(texts, trainer)
    content = json.loads(tokenizer.to_str())
    return {
        **content,
        "added_tokens": [],
        "normalizer": published.normalizer,
        "pre_tokenizer": published.pre_tokenizer,
        "model": {**content["model"], "ignore_merges": published.ignore_merges},
    }


def make_model(folder: Path, tokenizer: dict[str, Any]) -> Path:
    """The smallest model with this tokenizer and one more token, for the end of a turn."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    added = [token["id"] for token in tokenizer["added_tokens"]]
    end = 1 + max([*tokenizer["model"]["vocab"].values(), *added])
    tokens = [*tokenizer["added_tokens"], added_token(end, "<|end-of-turn|>", special=True)]
    config = Qwen3Config(
        vocab_size=end + 1, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, head_dim=64, eos_token_id=end,
    )  # fmt: skip
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": tokens}))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end-of-turn|>"})
    )
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|end-of-turn|>{% endfor %}"
    )
    return folder


def key_value(package: Package, key: str) -> Any:
    return package.text.key_values[f"tokenizer.ggml.{key}"].value


def name_in_llama_cpp(tokenizer: dict[str, Any], llama_cpp: Path) -> str:
    """The name by which llama.cpp's converter recognises a tokenizer, from a digest of its ids."""
    from tokenizers import Tokenizer

    Toolchain(llama_cpp, "").activate()
    base: Any = importlib.import_module("conversion.base")
    whole = Tokenizer.from_str(json.dumps(tokenizer))
    encoder = SimpleNamespace(encode=lambda text: whole.encode(text).ids)
    return str(base.TextModel.get_vocab_base_pre(None, encoder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [model for model, published in PUBLISHED.items() if published.vocabulary]
)
def test_a_published_vocabulary_with_other_ids_is_recognised(
    model: str, llama_cpp_source: Path, tmp_path: Path
) -> None:
    """Its name is the one by which llama.cpp's converter knows the unchanged vocabulary."""
    from tokenizers import Tokenizer

    tokenizer = own_tokenizer(PUBLISHED[model], llama_cpp_source)
    expected = name_in_llama_cpp(tokenizer, llama_cpp_source)
    folder = make_model(tmp_path / "model", with_other_ids(tokenizer))
    progress = Reports()

    package = prepare(request_for(folder, ("Q8_0",)), tmp_path, progress)

    assert key_value(package, "pre") == expected
    (note,) = [note for note in progress.notes if "tokenizer.json" in note]
    assert expected in note
    texts = llama_cpp_source / "models" / f"ggml-vocab-{PUBLISHED[model].vocabulary}.gguf.inp"
    trained = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_skeleton(tmp_path / "v.gguf", package.text)
    ids = ids_by_llama_cpp(tmp_path / "v.gguf")
    for text in texts.read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n"):
        assert ids(text) == trained.encode(text, add_special_tokens=False).ids, repr(text)


def ids_by_llama_cpp(gguf: Path) -> Any:
    import llama_cpp

    llama = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
    return lambda text: llama.tokenize(text.encode(), add_bos=False, special=False)


# llama.cpp splits these slightly differently from their definition: at digits, and for Falcon at
# some bytes of letters. In the vocabularies that were trained with the definition, ids are equal.
NOT_TO_THE_LETTER = ("DeepSeek LLM", "Falcon")


@pytest.mark.parametrize("model", [model for model in PUBLISHED if model not in NOT_TO_THE_LETTER])
def test_every_published_way_to_split_text_is_recognised(model: str, tmp_path: Path) -> None:
    """The vocabularies have the same tokens, so that only the definitions differ."""
    tokenizer = revealing_tokenizer(PUBLISHED[model])

    package = prepare(request_for(make_model(tmp_path / "model", tokenizer), ("Q8_0",)), tmp_path)

    assert key_value(package, "pre") == PUBLISHED[model].name


@pytest.mark.parametrize("model", NOT_TO_THE_LETTER)
def test_a_vocabulary_that_shows_a_difference_in_splitting_is_refused(
    model: str, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model", revealing_tokenizer(PUBLISHED[model]))

    with pytest.raises(UnsupportedError, match="token ids") as refused:
        prepare(request_for(folder, ("Q8_0",)), tmp_path)

    assert str(folder / "tokenizer.json") in refused.value.message
    assert PUBLISHED[model].name in refused.value.message
    assert texts_named_in(refused.value.message)
    assert refused.value.next_step


def texts_named_in(message: str) -> list[str]:
    """The texts of the corpus that an error names: those whose token ids differ."""
    return [name for name in CORPUS if re.search(rf"\b{name}\b", message)]


@pytest.mark.parametrize("wrong", ["gpt-2", "starcoder", "qwen35", "llama-bpe", "deepseek-v3"])
def test_a_wrong_name_does_not_pass(wrong: str, tmp_path: Path) -> None:
    """HAZARD: a pre-tokenizer that is almost the right one, chosen without a warning."""
    folder = make_model(tmp_path / "model", revealing_tokenizer(PUBLISHED["Qwen 2"]))
    package = prepare(request_for(folder, ("Q8_0",)), tmp_path)
    assert key_value(package, "pre") == "qwen2"
    package.text.key_values["tokenizer.ggml.pre"].value = wrong

    with pytest.raises(UnsupportedError, match="token ids") as refused:
        check_pre_tokenizer(
            package.text, package.inputs.files, find_toolchain(), tmp_path, Silent()
        )

    assert texts_named_in(refused.value.message)


@pytest.mark.parametrize(
    ("part", "value", "fact"),
    [
        ("pre_tokenizer", sequence(split(QWEN_2.replace(r"\p{N}", r"\p{N}{1,2}")), BYTES), "{1,2}"),
        ("pre_tokenizer", sequence(split(r"[aeiou]|[^aeiou]+"), BYTES), "[aeiou]|[^aeiou]+"),
        ("pre_tokenizer", MISTRAL_NEMO, "ByteLevel"),
        ("pre_tokenizer", {"type": "Whitespace"}, "Whitespace"),
        ("pre_tokenizer", sequence(split(QWEN_2), {**BYTES, "add_prefix_space": True}),
         "add_prefix_space"),
        ("normalizer", {"type": "Lowercase"}, "Lowercase"),
    ],
    ids=["two digits", "vowels", "Mistral Nemo", "white space", "prefix space", "lower case"],
)  # fmt: skip
def test_a_definition_that_llama_cpp_does_not_implement_is_refused(
    part: str, value: dict[str, Any], fact: str, tmp_path: Path
) -> None:
    tokenizer = revealing_tokenizer(PUBLISHED["Qwen 2"]) | {part: value}
    folder = make_model(tmp_path / "model", tokenizer)

    result = ftpack(
        "gguf", folder, "--quant", "q8_0", "--out", tmp_path / "out", host="127.0.0.1:1",
        folder=tmp_path,
    )  # fmt: skip

    assert result.returncode == 3, result.stderr
    output = "".join(result.stderr.split())
    for text in (str(folder / "tokenizer.json"), fact, version("llama-cpp-python"), "Next:"):
        assert "".join(text.split()) in output
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_ignore_merges_has_to_agree_if_merges_do_not_make_every_token(tmp_path: Path) -> None:
    """Llama 3 keeps a piece that is a token; llama.cpp cannot if it splits text as for Qwen."""
    tokenizer = revealing_tokenizer(PUBLISHED["Qwen 2"])
    model = tokenizer["model"]
    model["ignore_merges"] = True
    fine = make_model(tmp_path / "fine", tokenizer)
    assert key_value(prepare(request_for(fine, ("Q8_0",)), tmp_path), "pre") == "qwen2"
    model["vocab"]["unmade"] = len(model["vocab"])

    refused = make_model(tmp_path / "refused", tokenizer)
    with pytest.raises(UnsupportedError, match="ignore_merges true"):
        prepare(request_for(refused, ("Q8_0",)), tmp_path)


def test_byte_tokens_of_a_vocabulary_of_pieces_stand_for_bytes(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers 5 saves Gemma without tokenizer.model; the converter makes `<0x0A>` text."""
    model = tmp_path / "model"
    shutil.copytree(small_model("gemma3"), model)
    (model / "tokenizer.model").unlink()

    package = prepare(request_for(model, ("Q8_0",)), tmp_path)

    write_skeleton(tmp_path / "v.gguf", package.text)
    with GgufVocabulary(tmp_path / "v.gguf") as vocabulary:
        ids = vocabulary.tokenize_text("a\n\U00010348")
        assert len(ids) == 6, "a character without a token becomes its four bytes"
        assert vocabulary.text(ids) == "a\n\U00010348"


def test_a_duplicate_token_is_refused_before_llama_cpp_ends_the_process(
    tmp_path: Path,
) -> None:
    tokenizer = revealing_tokenizer(PUBLISHED["Qwen 2"])
    number = len(tokenizer["model"]["vocab"])
    # llama.cpp's converter encodes and decodes it, which gives the text of another token.
    tokenizer["decoder"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    tokenizer["added_tokens"] = [added_token(number, "a~", special=True)]

    folder = make_model(tmp_path / "model", tokenizer)
    with pytest.raises(UnsupportedError, match="'a'"):
        prepare(request_for(folder, ("Q8_0",)), tmp_path)


def test_a_vocabulary_that_the_converter_knows_keeps_its_name(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    progress = Reports()

    package = prepare(request_for(small_model("qwen3"), ("Q8_0",)), tmp_path, progress)

    assert key_value(package, "pre") == "qwen2"
    assert package.text.found_pre_tokenizer is None
    assert not [note for note in progress.notes if "tokenizer.json" in note]
