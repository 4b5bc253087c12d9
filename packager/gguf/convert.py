"""From a `Checkpoint` to GGUF names, layouts and key-values, by llama.cpp's own converter."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import MissingWeightsError, UnsupportedError
from packager.gguf.context import stretched_config
from packager.gguf.converter import (
    Capture,
    CheckpointReader,
    architecture,
    architectures,
    run_converter,
)
from packager.gguf.lazy import pieces, sources
from packager.gguf.pre_tokenizer import PreTokenizer, find_pre_tokenizer
from packager.gguf.staging import converter_folder
from packager.gguf.toolchain import Toolchain
from packager.model.checkpoint import Checkpoint
from packager.model.config import ModelConfig
from packager.model.model_file import ModelFile
from packager.model.tokenizer import TOKENIZER

if TYPE_CHECKING:
    import torch


def _is_never_content(_: str) -> bool:
    return False


@dataclass(frozen=True)
class ModelSource:
    """The model that is converted.

    Attributes:
        checkpoint: its tensors, and its configuration.
        files: its tokenizer and other files except `config.json`, by name.
        name: `general.name`.
    """

    checkpoint: Checkpoint
    files: Mapping[str, ModelFile]
    name: str


@dataclass(frozen=True)
class GgufPrompt:
    """What a GGUF says about prompts.

    Attributes:
        chat_templates: `tokenizer.chat_template` under `default`, and further templates under
            their names (`tool_use`).
        end_token_ids: the tokens that end an answer, the one that ends a turn first. Besides
            `eos_token_id`, which the converter writes, they become `tokenizer.ggml.eot_token_id`
            and `eom_token_id`.
        begins_with_bos: whether a training prompt begins with BOS. If the GGUF says so, runtimes
            add it whatever the template renders: a wrong value gives two of them, or none.
        is_content: whether an added token that is not special is text to be read, although it looks
            like a marker (`<|...|>`). The converter would make it a marker, which is not shown.
    """

    chat_templates: Mapping[str, str]
    end_token_ids: Sequence[int]
    begins_with_bos: bool
    is_content: Callable[[str], bool] = _is_never_content


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a GGUF, not read yet.

    Attributes:
        name: its name in the GGUF.
        shape: its dimensions, outermost first.
        float_type: its type in a 16-bit GGUF, by the converter: `F32`, `F16` or `BF16`. Weights are
            quantized from their own precision, not from this one.
        passes_from: the checkpoint's tensor whose first rows it has unaltered (all rows, as a
            rule); None if it is computed.
        lazy: the converter's lazy tensor, which knows how it is computed.
    """

    name: str
    shape: tuple[int, ...]
    float_type: str
    passes_from: str | None
    lazy: Any

    @property
    def elements(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Conversion:
    """Everything in a GGUF except the weights.

    Attributes:
        architecture: GGUF's name for it, such as `llama`.
        float_type: the 16-bit type that the converter would choose for this checkpoint.
        tensors: in the file's order, which is that of llama.cpp's quantizer for a text model, and
            that of its converter for an `mmproj`.
        key_values: the metadata, ready to be written (`gguf.GGUFValue` by key).
        checkpoint: where the weights come from.
        reads: the names of the checkpoint's tensors that the GGUF is made from.
        found_pre_tokenizer: the vocabulary's pre-tokenizer, if the converter does not know it. It
            can be trusted only after token ids have been compared.
        packed: the bytes of `key_values`' lists, by the list's identity, so that each is packed
            once for all files.
    """

    architecture: str
    float_type: str
    tensors: tuple[GgufTensor, ...]
    key_values: Mapping[str, Any]
    checkpoint: Checkpoint
    reads: frozenset[str]
    found_pre_tokenizer: PreTokenizer | None
    packed: dict[int, bytes] = field(default_factory=dict)

    @property
    def metadata(self) -> dict[str, Any]:
        """The metadata's plain values, by key."""
        return {key: item.value for key, item in self.key_values.items()}

    def value(self, key: str) -> Any:
        """The value of one of the architecture's keys, such as `context_length`, or None."""
        item = self.key_values.get(f"{self.architecture}.{key}")
        return None if item is None else item.value

    def blocks(self, tensor: GgufTensor, max_elements: int) -> Iterator[torch.Tensor]:
        """A tensor's weights in their own dtype, in blocks `[rows, columns]` of about this size."""
        columns = tensor.shape[-1]
        for block in self._blocks(tensor, max_elements):
            yield block.reshape(-1, columns).contiguous()

    def _blocks(self, tensor: GgufTensor, max_elements: int) -> Iterator[torch.Tensor]:
        import torch

        slice_elements = max(1, math.prod(tensor.shape[1:]))
        rows = max(1, max_elements // slice_elements)
        if tensor.passes_from is not None and len(tensor.shape) > 1:
            remaining = tensor.shape[0]
            for block in self.checkpoint.blocks(tensor.passes_from, rows):
                yield block[:remaining]
                remaining -= len(block)
                if remaining <= 0:
                    return
            return
        with torch.inference_mode():
            for piece in pieces(tensor.lazy):
                for start in range(0, piece.shape[0], rows):
                    yield piece[start : start + rows]


def convert(
    toolchain: Toolchain,
    source: ModelSource,
    prompt: GgufPrompt,
    scratch: Path,
    context_length: int | None = None,
) -> Conversion:
    """The text model's GGUF without its weights, as llama.cpp's converter makes it.

    Args:
        toolchain: where the converter is.
        source: the model.
        prompt: what the GGUF says about prompts.
        scratch: a folder of the run.
        context_length: in tokens; beyond the model's own by YaRN. None for the model's own.

    Raises:
        UnsupportedError: with the converter's reason, if it refuses the model; naming the
            pre-tokenizer, if llama.cpp has no equal one.
        MissingWeightsError: if the checkpoint has no tensor of a text model.
    """
    config = source.checkpoint.config
    if context_length:
        config = stretched_config(config, context_length)
    float_type = _float_type(source.checkpoint)
    capture = _capture(toolchain, source, prompt.is_content)
    with converter_folder(source.files, config, scratch) as folder:
        writer = run_converter(toolchain, folder, source.name, float_type, "TEXT", capture)
    (infos,) = writer.tensors
    if not infos:
        raise MissingWeightsError(
            f"{config.path.parent} holds no tensor of a text model.",
            next_step="Download or save the model again, with all of its weights.",
        )
    _set_chat_templates(writer, prompt.chat_templates)
    writer.add_add_bos_token(prompt.begins_with_bos)
    _set_end_tokens(writer, prompt.end_token_ids)
    return _conversion(writer, capture, float_type, sorted(infos, key=_quantizer_order))


def convert_projector(toolchain: Toolchain, source: ModelSource, scratch: Path) -> Conversion:
    """A multimodal model's `mmproj` without its weights, as llama.cpp's converter makes it.

    It holds the encoders of images or audio, and the layers that project their output onto the
    embeddings of the text model. Its tensors keep the converter's order and types, as F16: the
    usual type of an `mmproj`, since every backend runs it, and it keeps the precision of bf16.

    Args:
        toolchain: where the converter is.
        source: the model: tensors and files of the text model, of the encoders, and of the
            preprocessor.
        scratch: a folder of the run.

    Raises:
        UnsupportedError: with the converter's reason, if it refuses the model.
    """
    capture = _capture(toolchain, source, is_content=_is_never_content)
    with converter_folder(source.files, source.checkpoint.config, scratch) as folder:
        writer = run_converter(toolchain, folder, source.name, "F16", "MMPROJ", capture)
    (infos,) = writer.tensors
    return _conversion(writer, capture, "F16", list(infos))


def _capture(
    toolchain: Toolchain, source: ModelSource, is_content: Callable[[str], bool]
) -> Capture:
    find = partial(find_pre_tokenizer, source.files.get(TOKENIZER), toolchain.version)
    return Capture(CheckpointReader(source.checkpoint), find, is_content)


def _conversion(writer: Any, capture: Capture, float_type: str, order: Sequence[str]) -> Conversion:
    (infos,) = writer.tensors
    tensors = tuple(_tensor(name, infos[name], capture) for name in order)
    reader = capture.reader
    return Conversion(
        architecture=writer.arch,
        float_type=float_type,
        tensors=tensors,
        key_values=writer.kv_data[0],
        checkpoint=reader.checkpoint,
        reads=sources([tensor.lazy for tensor in tensors], reader.load) | reader.loaded,
        found_pre_tokenizer=capture.pre_tokenizer,
    )


def has_projector(toolchain: Toolchain, config: ModelConfig) -> bool:
    """Whether the converter makes an `mmproj` of a model with this configuration."""
    known = architectures(toolchain, "MMPROJ")
    return known is not None and architecture(config.values, "MMPROJ") in known


def require_architecture(toolchain: Toolchain, config: ModelConfig) -> None:
    """Refuse an architecture that the converter does not know, before any other work.

    Raises:
        UnsupportedError: naming the architecture, and the toolchain's version.
    """
    known = architectures(toolchain, "TEXT")
    name = architecture(config.values, "TEXT")
    # If config.json names none, the converter gives the better message when it runs.
    if known is None or name is None or name in known:
        return
    raise UnsupportedError(
        f"{config.path} names the architecture {name!r}, which llama.cpp's converter "
        f"(llama-cpp-python {toolchain.version}, {len(known)} architectures) does not know.",
        next_step="A newer llama-cpp-python may know it: pip install -U llama-cpp-python, then "
        "`ftpack doctor --install-toolchain`.",
    )


def _quantizer_order(name: str) -> tuple[int, str]:
    """The key by which llama.cpp sorts tensors (`weight_name_comparer`, llama-model-loader.h)."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return int(layer[1]) if layer else -1, name


def _tensor(name: str, info: Any, capture: Capture) -> GgufTensor:
    output = capture.outputs.get(name)
    if output is None:
        raise UnsupportedError(
            f"The converter writes {name} in a way of its own, which ftpack cannot follow.",
            next_step="Package a 16-bit model.",
        )
    return GgufTensor(
        name, tuple(info.shape), info.dtype.name, output.passes_from, lazy=output.lazy
    )


def _float_type(checkpoint: Checkpoint) -> str:
    """BF16 if the first matrix is BF16, else F16: the converter's `--outtype auto`."""
    matrices = (info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1)
    return "BF16" if next(matrices, None) == "BF16" else "F16"


def _set_chat_templates(writer: Any, chat_templates: Mapping[str, str]) -> None:
    """Replace the templates that the converter found in the folder."""
    for key in [key for key in writer.kv_data[0] if key.startswith("tokenizer.chat_template")]:
        writer.remove_key(key)
    writer.add_chat_template(
        [{"name": name, "template": source} for name, source in chat_templates.items()]
    )


def _set_end_tokens(writer: Any, token_ids: Sequence[int]) -> None:
    """Name the tokens that end an answer, besides the end of the text.

    On the server, a `stop` that names a control token has no effect; these ids do end an answer.
    """
    ids = list(token_ids)
    eos = writer.kv_data[0].get("tokenizer.ggml.eos_token_id")
    if eos is None and ids:
        writer.add_eos_token_id(ids.pop(0))
    others = [number for number in ids if eos is None or number != eos.value]
    adders = (writer.add_eot_token_id, writer.add_eom_token_id)
    for number, add in zip(others, adders, strict=False):
        add(number)
