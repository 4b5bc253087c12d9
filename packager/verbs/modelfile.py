"""`ftpack modelfile`: the Modelfile of a bundle as it stands, or of a source before it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packager.bundle.bundle import MODELFILE, is_bundle, read_bundle
from packager.files import read_text, require_inside
from packager.package.prepare import open_inputs
from packager.package.prompt_choice import decide_prompt
from packager.package.request import Request
from packager.progress import Progress, Silent
from packager.prompt.modelfile_text import render_modelfile


@dataclass(frozen=True)
class ModelfileText:
    """A Modelfile.

    Attributes:
        text: its text.
        reason: who renders prompts, and why.
    """

    text: str
    reason: str


def modelfile(
    request: Request,
    ggufs: Sequence[str] = ("./model.gguf",),
    progress: Progress | None = None,
) -> ModelfileText:
    """The Modelfile of a bundle or a source; no weight is read.

    Args:
        request: its `source` is a bundle's folder, or anything that can be packaged.
        ggufs: what FROM names for a source that is not a bundle: the GGUF, and an `mmproj`.
        progress: told what was chosen.

    Raises:
        InputRefusedError: whatever is wrong with the source, or with its chat template.
    """
    folder = Path(request.source.source)
    if is_bundle(folder) and (folder / MODELFILE).is_file():
        bundle = read_bundle(folder)
        path = require_inside(folder / MODELFILE, folder)
        text = read_text(path, "Make the bundle again with `ftpack gguf`.")
        return ModelfileText(text, bundle.manifest.prompt.reason)
    progress = progress or Silent()
    prompt = decide_prompt(open_inputs(request, progress), request, progress)
    return ModelfileText(render_modelfile(prompt.modelfile, *ggufs), prompt.decision.reason)
