"""The Modelfile alone: of a bundle as it stands, or of a source without reading its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from packager.bundle.bundle import read_bundle
from packager.files import read_text, require_inside
from packager.package.plan import Request
from packager.package.prompt_choice import decide_prompt, modelfile_spec
from packager.progress import Progress
from packager.prompt.modelfile_spec import render_modelfile
from packager.source.inputs import find_inputs


def modelfile_of(request: Request, ggufs: Sequence[str], progress: Progress) -> tuple[str, str]:
    """The Modelfile's text, and why it is so."""
    folder = Path(request.source)
    if (folder / "manifest.json").is_file() and (folder / "Modelfile").is_file():
        manifest = read_bundle(folder)
        path = require_inside(folder / "Modelfile", folder)
        return read_text(path, "Make the bundle again with `ftpack gguf`."), manifest.prompt.reason
    found = find_inputs(request, progress)
    _, decision = decide_prompt(found, request, progress)
    return render_modelfile(modelfile_spec(found, request, decision), *ggufs), decision.reason
