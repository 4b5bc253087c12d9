"""The tokenizer of training: a prompt's ids, as `apply_chat_template(tokenize=True)` makes them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from packager.errors import CorruptFileError

_WHOLE = "tokenizer.json"


def load_tokenizer(files: Mapping[str, Path]) -> Callable[[str], list[int]]:
    """From a text, which may have special tokens in it as text, to ids.

    Args:
        files: file names and paths, the fine-tune's own before the base's.

    Raises:
        CorruptFileError: if no tokenizer can be made of the files.
    """
    try:
        if path := files.get(_WHOLE):
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(path))
            fast.no_truncation()
            fast.no_padding()
            return lambda prompt: list(fast.encode(prompt, add_special_tokens=False).ids)
        return _slow(files)
    # Both libraries raise whatever comes up in them, often a bare Exception.
    except Exception as error:
        raise CorruptFileError(
            f"The tokenizer cannot be read: {error}",
            next_step="Restore tokenizer.json from the training run or the base.",
        ) from error


def _slow(files: Mapping[str, Path]) -> Callable[[str], list[int]]:
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        for name, path in files.items():
            if "/" not in name:
                (Path(scratch) / name).symlink_to(path.absolute())
        tokenizer = AutoTokenizer.from_pretrained(scratch)
    return lambda prompt: list(tokenizer.encode(prompt, add_special_tokens=False))
