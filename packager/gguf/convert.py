"""llama.cpp's own converter over a `Checkpoint`: GGUF names, layouts and key-values, no weights."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.errors import MissingWeightsError, UnsupportedError
from packager.files import read_json
from packager.gguf.context import stretched_config
from packager.gguf.converter import Seen, architecture, architectures, run_converter
from packager.gguf.lazy import pieces, sources
from packager.gguf.pre_tokenizer import PreTokenizer, find_pre_tokenizer
from packager.gguf.toolchain import Toolchain
from packager.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as llama.cpp wants it, before it is read.

    Attributes:
        name: its name in the GGUF.
        shape: its dimensions, outermost first.
        float_type: what the converter makes of it in a 16-bit GGUF: `F32`, `F16` or `BF16`.
            Weights are quantized from their own precision, not from this one.
        passes_from: the checkpoint's tensor whose first rows it is, unaltered (all of them, as a
            rule); None if it is computed.
        lazy: the converter's lazy tensor, which holds how it is computed.
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
    """Everything of a GGUF but the weights.

    Attributes:
        architecture: GGUF's name of it, such as `llama`.
        float_type: the 16-bit type that the converter would choose for this checkpoint.
        tensors: in the order of the file: llama.cpp's quantizer's, or its converter's own.
        key_values: the writer's metadata, ready to be written (`gguf.GGUFValue` by key).
        checkpoint: where the weights come from.
        reads: the checkpoint's tensors that it is made of, by name.
        found_pre_tokenizer: the vocabulary's, where the converter does not know it; ids have to
            prove it yet.
        packed: bytes of `key_values`' lists, by the list's identity: packed once, written often.
    """

    architecture: str
    float_type: str
    tensors: tuple[GgufTensor, ...]
    key_values: Mapping[str, Any]
    checkpoint: Checkpoint
    reads: frozenset[str]
    found_pre_tokenizer: PreTokenizer | None
    packed: dict[int, bytes] = field(default_factory=dict)

    def value(self, key: str) -> object:
        """The value of a key of the architecture's, such as `context_length`; None without it."""
        found = self.key_values.get(f"{self.architecture}.{key}")
        return None if found is None else found.value

    def blocks(self, tensor: GgufTensor, max_elements: int) -> Iterator[torch.Tensor]:
        """A tensor's weights, in their own dtype, as `[rows, columns]` of about `max_elements`."""
        columns = tensor.shape[-1]
        for block in self._blocks(tensor, max_elements):
            yield block.reshape(-1, columns).contiguous()

    def _blocks(self, tensor: GgufTensor, max_elements: int) -> Iterator[torch.Tensor]:
        import torch

        slice_elements = max(1, math.prod(tensor.shape[1:]))
        rows = max(1, max_elements // slice_elements)
        if tensor.passes_from is not None and len(tensor.shape) > 1:
            left = tensor.shape[0]
            for block in self.checkpoint.blocks(tensor.passes_from, rows):
                yield block[:left]
                left -= len(block)
                if left <= 0:
                    return
            return
        with torch.inference_mode():
            for piece in pieces(tensor.lazy):
                for start in range(0, piece.shape[0], rows):
                    yield piece[start : start + rows]


def convert(
    toolchain: Toolchain,
    checkpoint: Checkpoint,
    files: Mapping[str, Path],
    name: str,
    chat_templates: Mapping[str, str],
    end_token_ids: Sequence[int],
    *,
    begins_with_bos: bool,
    context_length: int | None = None,
    is_content: Callable[[str], bool] = lambda token: False,
) -> Conversion:
    """Let llama.cpp's converter name, lay out and describe a checkpoint's tensors.

    Args:
        toolchain: where the converter is.
        checkpoint: the tensors.
        files: config and tokenizer files, by name; they are linked into a scratch folder.
        name: `general.name`.
        chat_templates: what `tokenizer.chat_template` is to be, under `default`, and further ones
            by their names (`tool_use`).
        end_token_ids: the tokens that end an answer, first what ends a turn: for
            `tokenizer.ggml.eot_token_id` and `eom_token_id`, beside the converter's `eos_token_id`.
        begins_with_bos: whether a prompt of training begins with BOS. Runtimes add it where the
            GGUF says so, whatever the template renders: two of them, or none, are one step away.
        context_length: a context in tokens, beyond the model's own by YaRN; None for its own.
        is_content: whether an added token that is not special is there to be read, though it looks
            like a marker (`<|...|>`), which the converter would make it: it would not be seen.

    Raises:
        UnsupportedError: with the converter's reason, if it does not take the model; naming the
            pre-tokenizer, if llama.cpp has none like it.
    """
    config = stretched_config(files["config.json"], context_length) if context_length else None
    float_type = _float_type(checkpoint)
    find = partial(find_pre_tokenizer, files.get("tokenizer.json"), toolchain.version)
    seen = Seen(checkpoint, find, is_content)
    writer = run_converter(toolchain, files, config, name, float_type, seen, "TEXT")
    (infos,) = writer.tensors
    if not infos:
        raise MissingWeightsError(
            f"{files['config.json'].parent} holds no tensor of a text model.",
            next_step="Download or save the model again, with all of its weights.",
        )
    _set_chat_templates(writer, chat_templates)
    writer.add_add_bos_token(begins_with_bos)
    _set_end_tokens(writer, end_token_ids)
    return _conversion(writer, seen, float_type, sorted(infos, key=_quantizer_order))


def convert_projector(
    toolchain: Toolchain, checkpoint: Checkpoint, files: Mapping[str, Path], name: str
) -> Conversion:
    """Let llama.cpp's converter make the `mmproj` of a model that sees or hears.

    It holds the encoders of images or sounds, and what projects theirs onto the embeddings of the
    text model. Its tensors stay in the converter's order and types, as F16: what the field hands
    out, since every backend runs it; of bf16 weights it keeps every bit of precision.

    Args:
        toolchain: where the converter is.
        checkpoint: the tensors, those of the text model too.
        files: config and preprocessor files, by name.
        name: `general.name`.

    Raises:
        UnsupportedError: with the converter's reason, if it does not take the model.
    """
    find = partial(find_pre_tokenizer, files.get("tokenizer.json"), toolchain.version)
    seen = Seen(checkpoint, find, is_content=lambda token: False)
    writer = run_converter(toolchain, files, None, name, "F16", seen, "MMPROJ")
    (infos,) = writer.tensors
    return _conversion(writer, seen, "F16", list(infos))


def _conversion(writer: Any, seen: Seen, float_type: str, order: Sequence[str]) -> Conversion:
    (infos,) = writer.tensors
    tensors = tuple(
        GgufTensor(
            name, tuple(infos[name].shape), infos[name].dtype.name, *_source(seen.outputs, name)
        )
        for name in order
    )
    return Conversion(
        architecture=writer.arch,
        float_type=float_type,
        tensors=tensors,
        key_values=writer.kv_data[0],
        checkpoint=seen.checkpoint,
        reads=sources([tensor.lazy for tensor in tensors], seen.load) | seen.loaded,
        found_pre_tokenizer=seen.pre_tokenizer,
    )


def has_projector(toolchain: Toolchain, config_path: Path) -> bool:
    """Whether the converter makes an `mmproj` of a model of this configuration."""
    config = read_json(config_path)
    known = architectures(toolchain, "MMPROJ")
    return known is not None and architecture(config, "MMPROJ") in known


def require_architecture(toolchain: Toolchain, config_path: Path) -> None:
    """Refuse, before anything else is done, an architecture that the converter does not know.

    Raises:
        UnsupportedError: naming the architecture, and the toolchain's version.
    """
    config = read_json(config_path)
    known = architectures(toolchain, "TEXT")
    name = architecture(config, "TEXT")
    # What its config lacks, the converter itself tells better when it runs.
    if known is None or name is None or name in known:
        return
    raise UnsupportedError(
        f"{config_path} names the architecture {name!r}, which llama.cpp's converter "
        f"(llama-cpp-python {toolchain.version}, {len(known)} architectures) does not know.",
        next_step="A newer llama-cpp-python may: pip install -U llama-cpp-python, then "
        "`ftpack doctor --install-toolchain`.",
    )


def _quantizer_order(name: str) -> tuple[int, str]:
    """Where llama.cpp puts a tensor (`weight_name_comparer` in llama-model-loader.h)."""
    layer = re.match(r"blk\.(\d+)\.", name)
    return int(layer[1]) if layer else -1, name


def _source(outputs: Mapping[str, tuple[Any, str | None]], name: str) -> tuple[str | None, Any]:
    if name not in outputs:
        raise UnsupportedError(
            f"The converter writes {name} by a way of its own, which ftpack cannot follow.",
            next_step="Package a 16-bit model.",
        )
    lazy, passes_from = outputs[name]
    return passes_from, lazy


def _float_type(checkpoint: Checkpoint) -> str:
    """BF16 where the first matrix is, else F16: the converter's `--outtype auto`."""
    matrices = (info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1)
    return "BF16" if next(matrices, None) == "BF16" else "F16"


def _set_chat_templates(writer: Any, chat_templates: Mapping[str, str]) -> None:
    """Put these in the place of what the converter found in the folder."""
    for key in [key for key in writer.kv_data[0] if key.startswith("tokenizer.chat_template")]:
        writer.remove_key(key)
    writer.add_chat_template(
        [{"name": name, "template": source} for name, source in chat_templates.items()]
    )


def _set_end_tokens(writer: Any, token_ids: Sequence[int]) -> None:
    """Name the tokens that end an answer, besides the end of the text.

    A `stop` that names a control token does nothing on the server; an end-of-generation id does.
    """
    ids = list(token_ids)
    eos = writer.kv_data[0].get("tokenizer.ggml.eos_token_id")
    if eos is None and ids:
        writer.add_eos_token_id(ids.pop(0))
    others = [number for number in ids if eos is None or number != eos.value]
    adders = (writer.add_eot_token_id, writer.add_eom_token_id)
    for number, add in zip(others, adders, strict=False):
        add(number)
