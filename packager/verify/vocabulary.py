"""Changes of a fine-tune to its vocabulary that llama.cpp's converter does not recognise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from packager.errors import CorruptFileError, UnsupportedError, listed
from packager.gguf.convert import Conversion
from packager.gguf.pre_tokenizer import PreTokenizer
from packager.gguf.toolchain import Toolchain
from packager.gguf.types import write_skeleton
from packager.model.model_file import ModelFile
from packager.model.tokenizer import TOKENIZER, Vocabulary, load_tokenizer
from packager.progress import Progress
from packager.prompt.comparison import Comparison, TokenizerPair
from packager.prompt.prompt_plan import PromptPlan
from packager.runtime.gguf_vocabulary import GgufVocabulary
from packager.verify.corpus import CORPUS, compare_vocabulary


def content_tokens(
    own: Vocabulary, base: Vocabulary | None, prompt: PromptPlan
) -> Callable[[str], bool]:
    """A function that says whether the fine-tune added a token as readable text of its answers.

    Such a token is not special, no chat template writes it, and it ends no answer.

    Args:
        own: the fine-tune's vocabulary.
        base: the base's vocabulary; None if there is no base, and so nothing was added.
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

    This is only needed if the converter did not recognise the vocabulary itself.

    Args:
        conversion: the GGUF's key-values; no weight is read.
        files: the tokenizer's files, by name.
        toolchain: named in an error.
        scratch: the run's temporary folder.
        progress: told the pre-tokenizer, and why it is used.

    Raises:
        UnsupportedError: with the texts whose ids or characters differ.
    """
    pre_tokenizer = conversion.found_pre_tokenizer
    if pre_tokenizer is None:
        return

    def refusal(reason: str) -> UnsupportedError:
        return _refusal(pre_tokenizer, files, toolchain, reason)

    tokens = conversion.key_values["tokenizer.ggml.tokens"].value
    # llama.cpp would abort this process, and later every other one.
    if len(set(tokens)) < len(tokens):
        duplicate = next(token for token, count in Counter(tokens).items() if count > 1)
        raise refusal(f"cannot load a token that occurs twice: {duplicate!r}")
    try:
        check = _compare_ids(conversion, files, scratch)
    except CorruptFileError as error:
        raise refusal(f"cannot load it: {error.message}") from error
    comparison = check.comparison
    if comparison.failed:
        names = [item.conversation.name for item in comparison.failed]
        raise refusal(f"makes different token ids from {listed(names, limit=5)}")
    if check.garbled:
        raise refusal(f"does not restore the text of {listed(check.garbled, limit=5)}")
    name = pre_tokenizer.name
    progress.note(
        f"Pre-tokenizer: {name}. llama.cpp's converter does not recognise this vocabulary, but "
        f"tokenizer.json splits text as {name} does, and {comparison.count('equal')} of "
        f"{len(comparison.compared)} texts have the same token ids as in training"
    )


@dataclass(frozen=True)
class _VocabularyCheck:
    """The comparison of the ids, and the names of texts that their ids do not restore."""

    comparison: Comparison
    garbled: Sequence[str]


def _compare_ids(
    conversion: Conversion, files: Mapping[str, ModelFile], scratch: Path
) -> _VocabularyCheck:
    tokenize = load_tokenizer(files, scratch)
    gguf = scratch / "vocabulary.gguf"
    write_skeleton(gguf, conversion)
    with GgufVocabulary(gguf) as vocabulary:
        comparison = compare_vocabulary(TokenizerPair(tokenize, vocabulary.tokenize_text))
        garbled = [
            name
            for name, text in CORPUS.items()
            if vocabulary.text(vocabulary.tokenize_text(text)) != text
        ]
        return _VocabularyCheck(comparison, garbled)


def _refusal(
    pre_tokenizer: PreTokenizer, files: Mapping[str, ModelFile], toolchain: Toolchain, reason: str
) -> UnsupportedError:
    file = files.get(TOKENIZER)
    return UnsupportedError(
        f"llama.cpp's converter (llama-cpp-python {toolchain.version}) does not recognise the "
        f"pre-tokenizer of {file and file.path} ({pre_tokenizer.definition}). "
        f"{pre_tokenizer.name} has the same definition, but llama.cpp {reason}.",
        next_step="Use the base's tokenizer if the fine-tune does not need its own. Otherwise a "
        "newer llama-cpp-python may support it: pip install -U llama-cpp-python, then "
        "`ftpack doctor --install-toolchain`.",
    )
