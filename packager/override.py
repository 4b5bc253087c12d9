"""`--force`: which refusals it overrides, and how.

| verb | refusals that `--force` turns into warnings |
|---|---|
| `gguf` | files of another model in the bundle's folder; a model that llama.cpp cannot load |
| `ollama` | the same, and prompts or token ids that differ from those of training |
| `register` | prompts that differ from the training prompts |
| `merge` | a model in the folder; missing weights, or weights of another shape |
| `merge --save adapter` | an adapter in the folder |
"""

from __future__ import annotations

from packager.errors import FtpackError
from packager.progress import Progress


def refuse_unless(force: bool, error: FtpackError, progress: Progress) -> None:
    """Raise `error`; with `force`, warn with its message and continue.

    The one policy of `--force`: it overrides the refusal of a result that can still be written,
    such as a model with a missing tensor or with a prompt that differs. It never reads an
    unreadable file, accepts an unsupported format, or changes a weight.

    Raises:
        FtpackError: `error` itself, unless `force` is true.
    """
    if not force:
        raise error
    progress.warn(error.message.removesuffix("."))
