"""Real tokenizers, rebuilt from the vocabulary files in llama.cpp's sources.

`models/ggml-vocab-*.gguf` hold the tokens, merges and scores of well-known models, without
weights. llama.cpp's converter recognises a vocabulary by its ids for a fixed text, so each
vocabulary is rebuilt in full.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["llama", "qwen3", "qwen3moe", "gemma3", "phi3", "gpt2"]

_TURN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.token_type (llama.h: llama_token_type)
_NORMAL, _UNKNOWN, _CONTROL, _UNUSED, _BYTE = 1, 2, 3, 5, 6


@dataclass(frozen=True)
class Family:
    """The file that a vocabulary comes from, and the roles of its tokens.

    Attributes:
        source: the file is `models/ggml-vocab-{source}.gguf`.
        chat_template: a file in `models/templates/`, or "" for a plain template of our own.
        eos_ids: the tokens that end generation; the first is the tokenizer's `eos_token`.
        added: tokens that the chat template needs and the vocabulary does not have.
    """

    source: str
    chat_template: str
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int
    added: tuple[str, ...] = ()


FAMILIES: dict[Kind, Family] = {
    "llama": Family(
        "llama-bpe",
        "meta-llama-Llama-3.2-3B-Instruct.jinja",
        128000,
        (128009, 128001, 128008),
        128001,
    ),
    "qwen3": Family("qwen2", "Qwen-Qwen3-0.6B.jinja", None, (151645, 151643), 151643),
    # Gemma's own 262144 tokens would make the file 80 times as large. Llama 2's pieces are of the
    # same kind (SentencePiece BPE with byte fallback); Gemma's two turn markers are added to them.
    "gemma3": Family(
        "llama-spm",
        "google-gemma-2-2b-it.jinja",
        1,
        (32001, 2),
        0,
        ("<start_of_turn>", "<end_of_turn>"),
    ),
    "phi3": Family(
        "phi-3", "microsoft-Phi-3.5-mini-instruct.jinja", 1, (32000, 32001, 32007), 32000
    ),
    "gpt2": Family("gpt-2", "", 50256, (50256,), 50256),
}
FAMILIES["qwen3moe"] = FAMILIES["qwen3"]


def import_gguf(llama_cpp: Path) -> Any:
    """Returns llama.cpp's own `gguf` package (`gguf-py/`), which is newer than the one on PyPI."""
    folder = str(llama_cpp / "gguf-py")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import gguf

    return gguf


def write_tokenizer(kind: Kind, folder: Path, llama_cpp: Path) -> int:
    """Writes the tokenizer files of `kind` as its authors publish them; returns the vocab size.

    The files are `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, and for the
    SentencePiece families `tokenizer.model`, without which the converter refuses Phi-3.
    """
    from transformers import PreTrainedTokenizerFast

    family = FAMILIES[kind]
    reader = import_gguf(llama_cpp).GGUFReader(
        llama_cpp / "models" / f"ggml-vocab-{family.source}.gguf"
    )
    tokens, types = (
        reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type")
    )
    is_sentencepiece = "tokenizer.ggml.scores" in reader.fields
    if is_sentencepiece:
        scores = reader.fields["tokenizer.ggml.scores"].contents()
        tokenizer = _sentencepiece_tokenizer(kind, tokens, scores, types)
        _write_sentencepiece_model(folder / "tokenizer.model", tokens, scores, types)
    else:
        merges = reader.fields["tokenizer.ggml.merges"].contents()
        tokenizer = _byte_level_tokenizer(kind, tokens, types, merges)
    all_tokens = [*tokens, *family.added]
    _add_special_tokens(kind, tokenizer, all_tokens, [*types, *[_CONTROL] * len(family.added)])
    has_bos = family.bos_id is not None and kind != "gpt2"
    if has_bos:
        _begin_with_bos(tokenizer, all_tokens[family.bos_id or 0])

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None if family.bos_id is None else all_tokens[family.bos_id],
        eos_token=all_tokens[family.eos_ids[0]],
        pad_token=all_tokens[family.pad_id],
        **({"unk_token": tokens[0]} if is_sentencepiece else {}),
    )
    fast.chat_template = (
        (llama_cpp / "models" / "templates" / family.chat_template).read_text("utf-8")
        if family.chat_template
        else _TURN_TEMPLATE
    )
    fast.save_pretrained(folder)
    _add_published_entries(folder, has_bos)
    return len(all_tokens)


def _byte_level_tokenizer(
    kind: Kind, tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]
) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab = {
        token: i for i, (token, type_) in enumerate(zip(tokens, types, strict=True)) if type_ == 1
    }
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=kind == "llama"))
    if kind == "gpt2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = Regex(_SPLIT.format(digits="{1,3}" if kind == "llama" else ""))
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(split, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    if kind == "qwen3":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_tokenizer(
    kind: Kind, tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    vocab = {
        token: i
        for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
        if type_ in (_NORMAL, _BYTE) or i < 3
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges_from_scores(vocab, scores),
            unk_token=tokens[0],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    # Phi-3 adds a space before the first word; Gemma does not.
    tokenizer.normalizer = (
        spaces if kind == "gemma3" else normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind != "gemma3":
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges_from_scores(vocab: dict[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns every split of a piece in two, in the order in which SentencePiece joins them."""
    ranked = [
        (-scores[token_id], vocab[piece[:cut]], vocab[piece[cut:]], (piece[:cut], piece[cut:]))
        for piece, token_id in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    return [pair for *_, pair in sorted(ranked)]


def _write_sentencepiece_model(
    path: Path, tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> None:
    from sentencepiece import sentencepiece_model_pb2 as proto

    model = proto.ModelProto()
    kinds = proto.ModelProto.SentencePiece.Type
    kind_of = {_NORMAL: kinds.NORMAL, _BYTE: kinds.BYTE, _CONTROL: kinds.CONTROL}
    for i, (token, score, type_) in enumerate(zip(tokens, scores, types, strict=True)):
        if i >= 32000:  # Phi-3's own additions are not in its tokenizer.model
            break
        special = kinds.UNKNOWN if i == 0 else kinds.CONTROL
        model.pieces.add(
            piece=token,
            score=0.0 if i < 3 else score,
            type=special if i < 3 else kind_of[type_],
        )
    trainer = model.trainer_spec
    trainer.model_type = proto.TrainerSpec.ModelType.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = True
    trainer.unk_id, trainer.bos_id, trainer.eos_id, trainer.pad_id = 0, 1, 2, -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    path.write_bytes(model.SerializeToString(deterministic=True))


def _add_special_tokens(
    kind: Kind, tokenizer: Any, tokens: Sequence[str], types: Sequence[int]
) -> None:
    from tokenizers import AddedToken

    special = [
        (i, token)
        for i, (token, type_) in enumerate(zip(tokens, types, strict=True))
        # Rows that only pad the embedding to a round number are not tokens.
        if type_ not in (_NORMAL, _BYTE, _UNUSED) and not token.startswith("[PAD")
    ]
    tokenizer.add_special_tokens(
        [
            # Phi-3's markers absorb the white space after them, except for <|endoftext|>.
            AddedToken(
                token,
                special=True,
                normalized=False,
                rstrip=kind == "phi3" and token.startswith("<|") and token != "<|endoftext|>",
            )
            for _, token in special
        ]
    )
    for i, token in special:
        if tokenizer.token_to_id(token) != i:
            raise ValueError(f"{token!r} became token {tokenizer.token_to_id(token)}, not {i}")


def _begin_with_bos(tokenizer: Any, bos_token: str) -> None:
    """Puts a BOS before each text, without which Llama 3's pre-tokenizer is not recognised."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing(
        single=[bos_token, "$A"],
        pair=[bos_token, "$A", bos_token, "$B:1"],
        special_tokens=[(bos_token, tokenizer.token_to_id(bos_token))],
    )


def _add_published_entries(folder: Path, has_bos: bool) -> None:
    """Adds the entries of a published `tokenizer_config.json` that transformers 5 omits."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text("utf-8"))
    config["add_bos_token"] = has_bos
    tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    config["added_tokens_decoder"] = {
        str(token.pop("id")): token for token in tokenizer["added_tokens"]
    }
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
