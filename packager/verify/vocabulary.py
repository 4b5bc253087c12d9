"""What a fine-tune has changed in its vocabulary, where llama.cpp's converter cannot know it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from packager.errors import CorruptFileError, UnsupportedError
from packager.gguf.convert import Conversion
from packager.gguf.pre_tokenizer import PreTokenizer
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import write_skeleton
from packager.model.model_file import ModelFile
from packager.model.tokenizer import TOKENIZER, Vocabulary, load_tokenizer
from packager.progress import Progress
from packager.prompt.comparison import Comparison, TokenizedBy
from packager.prompt.prompt_plan import PromptPlan
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.corpus import CORPUS, compare_vocabulary


def content_tokens(
    own: Vocabulary, base: Vocabulary | None, prompt: PromptPlan
) -> Callable[[str], bool]:
    """Whether a token is one that the fine-tune added for its answers to be read.

    Such a token is not special, no chat template writes it, and it ends no answer.

    Args:
        own: the fine-tune's vocabulary.
        base: the base's; None if there is no base, and so nothing was added to it.
        prompt: what was decided about the prompt.
    """

    @cache
    def content() -> frozenset[str]:
        if base is None:
            return frozenset()
        ends = {own.token_of.get(number) for number in prompt.decision.end_token_ids}
        added = set(own.token_of.values()) - set(base.token_of.values()) - own.control_tokens
        sources = prompt.gguf_chat_templates.values()
        return frozenset(
            token for token in added - ends if not any(token in source for source in sources)
        )

    return lambda token: token in content()


def check_pre_tokenizer(
    conversion: Conversion,
    files: Mapping[str, ModelFile],
    toolchain: Toolchain,
    scratch: Path,
    progress: Progress,
) -> None:
    """Compare the token ids of the GGUF's vocabulary with those of training, on a corpus.

    Nothing is done if the converter knew the vocabulary itself.

    Args:
        conversion: the GGUF's key-values; no weight is read.
        files: the tokenizer's files, by name.
        toolchain: named in an error.
        scratch: the run's temporary folder.
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
        comparison, garbled = _compare(conversion, files, scratch)
    except CorruptFileError as error:
        raise _refusal(found, files, toolchain, f"does not load it: {error.message}") from error
    if comparison.failed:
        names = _first([item.conversation.name for item in comparison.failed])
        raise _refusal(found, files, toolchain, f"makes other token ids of {names}")
    if garbled:
        reason = f"does not give back the text of {_first(garbled)}"
        raise _refusal(found, files, toolchain, reason)
    progress.note(
        f"Pre-tokenizer: {found.name}. llama.cpp's converter does not know this vocabulary, but "
        f"tokenizer.json splits text as {found.name} does, and {comparison.count('equal')} of "
        f"{len(comparison.compared)} texts have the ids of training as they are"
    )


def _compare(
    conversion: Conversion, files: Mapping[str, ModelFile], scratch: Path
) -> tuple[Comparison, list[str]]:
    """Compare ids; and name the texts that are not read again from their ids."""
    tokenize = load_tokenizer(files, scratch)
    gguf = scratch / "vocabulary.gguf"
    write_skeleton(gguf, conversion)
    with GgufVocabulary(gguf) as vocabulary:
        comparison = compare_vocabulary(TokenizedBy(tokenize, vocabulary.tokenize_text))
        garbled = [
            name
            for name, text in CORPUS.items()
            if vocabulary.text(vocabulary.tokenize_text(text)) != text
        ]
        return comparison, garbled


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _refusal(
    found: PreTokenizer, files: Mapping[str, ModelFile], toolchain: Toolchain, reason: str
) -> UnsupportedError:
    file = files.get(TOKENIZER)
    return UnsupportedError(
        f"llama.cpp's converter (llama-cpp-python {toolchain.version}) does not know the "
        f"pre-tokenizer of {file and file.path} ({found.definition}); {found.name} is defined like "
        f"it, but llama.cpp {reason}.",
        next_step="Use the base's tokenizer if the fine-tune need not change it; else a newer "
        "llama-cpp-python may have it: pip install -U llama-cpp-python, then "
        "`ftpack doctor --install-toolchain`.",
    )
