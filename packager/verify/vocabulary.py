"""What a fine-tune has changed in its vocabulary, where llama.cpp's converter cannot know it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from packager.errors import CorruptFileError, UnsupportedError
from packager.gguf.convert import Conversion
from packager.gguf.pre_tokenizer import PreTokenizer
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import write_skeleton
from packager.model.tokenize import load_tokenizer
from packager.package.prompt_choice import chat_templates
from packager.progress import Progress
from packager.prompt.comparison import Proof, TokenizedBy
from packager.prompt.decision import PromptDecision
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.source.inputs import Inputs
from packager.verify.corpus import CORPUS, prove_vocabulary


def content_tokens(inputs: Inputs, decision: PromptDecision) -> Callable[[str], bool]:
    """Whether a token is one of those that the fine-tune has added for its answers.

    It has added it to its base's as one that is not special, no chat template writes it, and it
    ends no answer.
    """

    @cache
    def found() -> frozenset[str]:
        if inputs.base is None:
            return frozenset()
        own, base = inputs.vocabulary, inputs.base_vocabulary
        ends = {own.token_of.get(number) for number in decision.end_token_ids}
        added = set(own.token_of.values()) - set(base.token_of.values()) - own.control_tokens
        sources = chat_templates(decision).values()
        return frozenset(
            token for token in added - ends if not any(token in source for source in sources)
        )

    return lambda token: token in found()


def prove_found_pre_tokenizer(
    conversion: Conversion,
    files: Mapping[str, Path],
    toolchain: Toolchain,
    progress: Progress,
) -> None:
    """Hold the ids of the GGUF's vocabulary, and of training, against each other on a corpus.

    Nothing is done where the converter knew the vocabulary itself.

    Args:
        conversion: the GGUF's key-values; no weight is read.
        files: the tokenizer's files, by name.
        toolchain: named in an error.
        progress: told what was found, and why.

    Raises:
        UnsupportedError: naming the texts that have other ids.
    """
    found = conversion.found_pre_tokenizer
    if found is None:
        return
    tokens = conversion.key_values["tokenizer.ggml.tokens"].value
    # llama.cpp would end this process, as it will every other one.
    if len(set(tokens)) < len(tokens):
        twice = next(token for token, count in Counter(tokens).items() if count > 1)
        raise _refusal(
            found, files, toolchain, f"cannot load a token that is there twice: {twice!r}"
        )
    try:
        proof, garbled = _prove(conversion, files)
    except CorruptFileError as error:
        raise _refusal(found, files, toolchain, f"does not load it: {error.message}") from error
    if proof.failed:
        names = _first([item.conversation.name for item in proof.failed])
        raise _refusal(found, files, toolchain, f"makes other token ids of {names}")
    if garbled:
        reason = f"does not give back the text of {_first(garbled)}"
        raise _refusal(found, files, toolchain, reason)
    progress.note(
        f"Pre-tokenizer: {found.name}. llama.cpp's converter does not know this vocabulary, but "
        f"tokenizer.json splits text as {found.name} does, and {proof.count('equal')} of "
        f"{len(proof.compared)} texts have the ids of training as they are"
    )


def _prove(conversion: Conversion, files: Mapping[str, Path]) -> tuple[Proof, list[str]]:
    """Compare ids; and name the texts that are not read again from their ids."""
    trained = load_tokenizer(files)
    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        gguf = Path(scratch) / "vocabulary.gguf"
        write_skeleton(gguf, conversion)
        with GgufVocabulary(gguf) as vocabulary:
            proof = prove_vocabulary(TokenizedBy(trained, vocabulary.tokenize_text))
            garbled = [
                name
                for name, text in CORPUS.items()
                if vocabulary.text(vocabulary.tokenize_text(text)) != text
            ]
            return proof, garbled


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _refusal(
    found: PreTokenizer, files: Mapping[str, Path], toolchain: Toolchain, reason: str
) -> UnsupportedError:
    path = files.get("tokenizer.json")
    return UnsupportedError(
        f"llama.cpp's converter (llama-cpp-python {toolchain.version}) does not know the "
        f"pre-tokenizer of {path} ({found.definition}); {found.name} is defined like it, but "
        f"llama.cpp {reason}.",
        next_step="Use the base's tokenizer if the fine-tune need not change it; else a newer "
        "llama-cpp-python may have it: pip install -U llama-cpp-python, then "
        "`ftpack doctor --install-toolchain`.",
    )
