"""What the user gave, and the base that it needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.checkpoint import FolderCheckpoint
from packager.plan import Request
from packager.progress import Progress
from packager.source.base import Base, find_base
from packager.source.open import Source, open_source

# Of the tokenizer, the files beside an adapter go before the base's: tokens may have been added.
_TOKENIZER_FILES = re.compile(
    r"(tokenizer|special_tokens_map|added_tokens|vocab|merges|chat_template|spiece)"
    r"[\w.-]*\.(json|txt|model|jinja)|.*\.tiktoken|additional_chat_templates/.*"
)


@dataclass(frozen=True)
class Inputs:
    """What was found, with no weight and no library looked at.

    Attributes:
        source: the fine-tune.
        base: the base that the adapter needs; None for a full model.
        files: config and tokenizer files, the fine-tune's own before the base's.
    """

    source: Source
    base: Base | None
    files: Mapping[str, Path]

    @property
    def model(self) -> FolderCheckpoint:
        """The folder that the weights come from: the base, or the full model."""
        model = self.base.checkpoint if self.base else self.source.model
        assert model is not None
        return model

    @property
    def base_files(self) -> Mapping[str, Path]:
        """The base's files; none where there is no base."""
        return self.base.checkpoint.files if self.base else {}


def find_inputs(request: Request, progress: Progress) -> Inputs:
    """Find the source, and the base that it needs."""
    source = open_source(request.source, request.checkpoint, request.revision, progress)
    progress.note(f"Source: {source.reason}")
    if source.adapter is None:
        return Inputs(source, None, source.files)
    revision = None if source.model_id else request.revision
    base = find_base(source.adapter, request.base, revision, progress, request.keep_base_quantized)
    progress.note(f"Base: {base.reason}")
    own = {name: path for name, path in source.files.items() if _TOKENIZER_FILES.fullmatch(name)}
    return Inputs(source, base, {**base.checkpoint.files, **own})
