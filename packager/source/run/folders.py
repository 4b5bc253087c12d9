"""The folders of a training run: files that describe an adapter may lie above it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from packager.model.checkpoint import describing_files
from packager.model.model_file import ModelFile
from packager.source.run.checkpoints import is_checkpoint_name

# An adapter's own tokenizer files replace the base's: training may have added tokens.
TOKENIZER_FILES = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|chat_template|spiece)"
    r"[\w.-]*\.(json|txt|model|jinja)|.*\.tiktoken|additional_chat_templates/.*"
)
_CHAT_TEMPLATES = re.compile(r"chat_template[\w.-]*|additional_chat_templates/.*")
# The Trainer writes it into every folder that it saves to, beside the tokenizer. Never opened.
_SAVED_BY_TRAINER = "training_args.bin"


def run_folders(folder: Path, given: Path | None = None) -> tuple[Path, ...]:
    """The folder of a save and those above it that belong to the same run, nearest first.

    A run's folder holds its training checkpoints. It also holds each adapter whose name is not
    `default`, in a folder of that name, while the tokenizer is saved above it.

    Args:
        folder: the folder of the adapter or model.
        given: the folder that the user named, if `folder` was chosen inside of it.
    """
    folders = [folder]
    here, top = folder.absolute(), given.absolute() if given is not None else None
    while here != here.parent:
        parent = here.parent
        is_named_adapter = (parent / _SAVED_BY_TRAINER).is_file() and not (
            here / _SAVED_BY_TRAINER
        ).is_file()
        if not (is_checkpoint_name(here.name) or is_named_adapter or top in here.parents):
            break
        folders.append(parent)
        here = parent
    return tuple(folders)


def find_describing_files(folders: Sequence[Path]) -> dict[str, ModelFile]:
    """The files beside the weights, by name, with the tokenizer or chat template of the run.

    Never mix two tokenizers: a folder above contributes no kind of file that was found already.

    Args:
        folders: the result of `run_folders`.
    """
    files = describing_files(folders[0])
    for folder in folders[1:]:
        own = [name for name in files if TOKENIZER_FILES.fullmatch(name)]
        has_chat_template = any(map(_CHAT_TEMPLATES.fullmatch, own))
        if not all(map(_CHAT_TEMPLATES.fullmatch, own)):
            break
        files |= {
            name: file
            for name, file in describing_files(folder).items()
            if TOKENIZER_FILES.fullmatch(name)
            and not (has_chat_template and _CHAT_TEMPLATES.fullmatch(name))
        }
    return files
