"""A training run's folders: what describes an adapter may lie above it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from packager.model.checkpoint import describing_files
from packager.model.model_file import ModelFile
from packager.source.run.checkpoints import is_checkpoint_name

# Of the tokenizer, the files beside an adapter go before the base's: tokens may have been added.
TOKENIZER_FILES = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|chat_template|spiece)"
    r"[\w.-]*\.(json|txt|model|jinja)|.*\.tiktoken|additional_chat_templates/.*"
)
_CHAT_TEMPLATES = re.compile(r"chat_template[\w.-]*|additional_chat_templates/.*")
# The Trainer writes it into every folder that it saves to, beside the tokenizer. Never opened.
_SAVED_BY_TRAINER = "training_args.bin"


def run_folders(folder: Path, given: Path | None = None) -> tuple[Path, ...]:
    """A save's folder and those above it that belong to its run, the nearest first.

    A run's folder holds its checkpoints, and every adapter that is not called `default` in a folder
    of its name, while the tokenizer is saved above them.

    Args:
        folder: where the adapter or model is.
        given: the folder that it was found in, if it was not named itself.
    """
    found = [folder]
    here, top = folder.absolute(), given.absolute() if given is not None else None
    while here != here.parent:
        parent = here.parent
        is_named_adapter = (parent / _SAVED_BY_TRAINER).is_file() and not (
            here / _SAVED_BY_TRAINER
        ).is_file()
        if not (is_checkpoint_name(here.name) or is_named_adapter or top in here.parents):
            break
        found.append(parent)
        here = parent
    return tuple(found)


def find_describing_files(folders: Sequence[Path]) -> dict[str, ModelFile]:
    """The files beside the weights, by name; a tokenizer or chat template from above if need be.

    Never of two tokenizers: from above nothing is taken of what the folder itself has.

    Args:
        folders: as `run_folders` gives them.
    """
    found = describing_files(folders[0])
    for folder in folders[1:]:
        own = [name for name in found if TOKENIZER_FILES.fullmatch(name)]
        has_chat_template = any(map(_CHAT_TEMPLATES.fullmatch, own))
        if not all(map(_CHAT_TEMPLATES.fullmatch, own)):
            break
        found |= {
            name: file
            for name, file in describing_files(folder).items()
            if TOKENIZER_FILES.fullmatch(name)
            and not (has_chat_template and _CHAT_TEMPLATES.fullmatch(name))
        }
    return found
