"""What llama.cpp's converter makes of the merged model: the text model, and the `mmproj`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.gguf.context import warn_of_context
from packager.gguf.convert import Conversion, GgufPrompt, ModelSource, convert
from packager.gguf.projector import Projector, find_projector
from packager.gguf.toolchain import Toolchain
from packager.package.request import Request
from packager.progress import Progress
from packager.verify.vocabulary import check_pre_tokenizer


@dataclass(frozen=True)
class Converted:
    """The GGUFs of a model before their weights are quantized.

    Attributes:
        text: the text model.
        projector: the `mmproj` of a multimodal model.
    """

    text: Conversion
    projector: Projector | None


def convert_model(
    toolchain: Toolchain,
    source: ModelSource,
    prompt: GgufPrompt,
    request: Request,
    scratch: Path,
    progress: Progress,
) -> Converted:
    """Let llama.cpp's converter name, lay out and describe the tensors; no weight is read.

    Args:
        toolchain: where the converter is.
        source: the merged model.
        prompt: what the GGUF says about prompts.
        request: whether the text model is made alone, and its context.
        scratch: the run's temporary folder.
        progress: told what is left out, and what a longer context costs.

    Raises:
        UnsupportedError: with the converter's reason if it does not accept the model; or if
            llama.cpp would split text otherwise than the training tokenizer.
        MissingWeightsError: if files that say how images are prepared are missing.
    """
    context_length = request.prompt.context_length
    text = convert(toolchain, source, prompt, scratch, context_length)
    projector = find_projector(
        toolchain, text, source, scratch, progress, is_text_only=request.build.text_only
    )
    check_pre_tokenizer(text, source.files, toolchain, scratch, progress)
    warn_of_context(context_length, text, progress)
    return Converted(text, projector)
