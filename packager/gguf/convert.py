"""llama.cpp's own converter over a `Checkpoint`: GGUF names, layouts and key-values, no weights."""

from __future__ import annotations

import importlib
import math
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packager.checkpoint import Checkpoint
from packager.errors import FtpackError, MissingWeightsError, UnsupportedError
from packager.files import read_json
from packager.gguf.context import stretched_config
from packager.gguf.lazy import is_beginning, pieces, sources
from packager.gguf.scratch import link_files
from packager.gguf.toolchain import Toolchain

if TYPE_CHECKING:
    import torch

_FTYPE_OF = {"BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16"}

# Of a model that sees or hears, the converter makes two files; these are its names for them.
Part = Literal["TEXT", "MMPROJ"]
_NEXT_STEP: dict[Part, str] = {
    "TEXT": "Check that config.json and the tokenizer's files belong to this model; a newer "
    "llama-cpp-python may know the architecture.",
    "MMPROJ": "It is what sees or hears that it does not take: for the text model alone, add "
    "--text-only. Check that config.json and the preprocessor's files belong to this model.",
}


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
        packed: bytes of `key_values`' lists, by the list's identity: packed once, written often.
    """

    architecture: str
    float_type: str
    tensors: tuple[GgufTensor, ...]
    key_values: Mapping[str, Any]
    checkpoint: Checkpoint
    reads: frozenset[str]
    packed: dict[int, bytes] = field(default_factory=dict)

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

    Raises:
        UnsupportedError: with the converter's reason, if it does not take the model.
    """
    config = stretched_config(files["config.json"], context_length) if context_length else None
    float_type = _float_type(checkpoint)
    converted = _run_converter(toolchain, files, config, name, float_type, checkpoint, "TEXT")
    if not converted.infos:
        raise MissingWeightsError(
            f"{files['config.json'].parent} holds no tensor of a text model.",
            next_step="Download or save the model again, with all of its weights.",
        )
    writer = converted.writer
    _set_chat_templates(writer, chat_templates)
    writer.add_add_bos_token(begins_with_bos)
    _set_end_tokens(writer, end_token_ids)
    return converted.conversion(sorted(converted.infos, key=_quantizer_order))


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
    converted = _run_converter(toolchain, files, None, name, "F16", checkpoint, "MMPROJ")
    return converted.conversion(list(converted.infos))


def has_projector(toolchain: Toolchain, config_path: Path) -> bool:
    """Whether the converter makes an `mmproj` of a model of this configuration."""
    config = read_json(config_path)
    known = _architectures(toolchain, "MMPROJ")
    return known is not None and _architecture(config, "MMPROJ") in known


def require_architecture(toolchain: Toolchain, config_path: Path) -> None:
    """Refuse, before anything else is done, an architecture that the converter does not know.

    Raises:
        UnsupportedError: naming the architecture, and the toolchain's version.
    """
    config = read_json(config_path)
    known = _architectures(toolchain, "TEXT")
    name = _architecture(config, "TEXT")
    # What its config lacks, the converter itself tells better when it runs.
    if known is None or name is None or name in known:
        return
    raise UnsupportedError(
        f"{config_path} names the architecture {name!r}, which llama.cpp's converter "
        f"(llama-cpp-python {toolchain.version}, {len(known)} architectures) does not know.",
        next_step="A newer llama-cpp-python may: pip install -U llama-cpp-python, then "
        "`ftpack doctor --install-toolchain`.",
    )


def _architectures(toolchain: Toolchain, part: Part) -> Mapping[str, str] | None:
    """The architectures that the converter knows; None where it keeps no list of them."""
    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    known: Mapping[str, str] | None = getattr(conversion, f"{part}_MODEL_MAP", None)
    return known


def _architecture(config: Mapping[str, Any], part: Part) -> str | None:
    """What the converter takes for a model's architecture, if it finds any."""
    base: Any = importlib.import_module("conversion.base")
    try:
        return str(base.get_model_architecture(config, base.ModelType[part]))
    # It indexes and compares whatever a config.json holds.
    except Exception:
        return None


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


@dataclass(frozen=True)
class _Converted:
    """What the converter has made: its writer, and how each tensor comes about.

    Attributes:
        outputs: by name, the lazy tensor, and what it is unaltered.
        load: how it reads a tensor of the checkpoint.
        loaded: what it has read by then; as a rule nothing.
    """

    checkpoint: Checkpoint
    float_type: str
    writer: Any
    outputs: Mapping[str, tuple[Any, str | None]]
    load: Callable[[str], torch.Tensor]
    loaded: Collection[str]

    @property
    def infos(self) -> Mapping[str, Any]:
        """What the writer knows of each tensor, by name, in the order of conversion."""
        (infos,) = self.writer.tensors
        found: Mapping[str, Any] = infos
        return found

    def conversion(self, order: Sequence[str]) -> Conversion:
        """All of it, in an order of tensors."""
        infos = self.infos
        tensors = tuple(
            GgufTensor(
                name, tuple(infos[name].shape), infos[name].dtype.name, *_source(self.outputs, name)
            )
            for name in order
        )
        reads = sources([tensor.lazy for tensor in tensors], self.load) | set(self.loaded)
        key_values = self.writer.kv_data[0]
        return Conversion(
            self.writer.arch, self.float_type, tensors, key_values, self.checkpoint, reads
        )


def _run_converter(
    toolchain: Toolchain,
    files: Mapping[str, Path],
    config: Mapping[str, object] | None,
    name: str,
    float_type: str,
    checkpoint: Checkpoint,
    part: Part,
) -> _Converted:
    import torch

    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    base: Any = importlib.import_module("conversion.base")
    gguf: Any = importlib.import_module("gguf")
    outputs: dict[str, tuple[Any, str | None]] = {}
    loaded: set[str] = set()

    def load(name: str) -> torch.Tensor:
        loaded.add(name)
        return checkpoint.load(name)

    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        link_files(files, folder, config)
        try:
            hparams = base.ModelBase.load_hparams(folder, False)
            architecture = base.get_model_architecture(hparams, base.ModelType[part])
            model_class = conversion.get_model_class(architecture, mmproj=part == "MMPROJ")
            with torch.inference_mode():
                model = _over_checkpoint(
                    model_class, base.LazyTorchTensor, checkpoint, load, outputs
                )(
                    folder,
                    gguf.LlamaFileType[_FTYPE_OF[float_type]],
                    folder.parent / "model.gguf",
                    model_name=name,
                )
                model.prepare_tensors()
                model.prepare_metadata(vocab_only=False)
        except FtpackError:
            raise
        # The converter raises whatever comes up in its 135 architectures, often a bare assert.
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or "an assertion of it failed"
            raise UnsupportedError(
                f"llama.cpp's converter does not take this model: {type(error).__name__}: {reason}",
                next_step=_NEXT_STEP[part],
            ) from error
    return _Converted(checkpoint, float_type, model.gguf_writer, outputs, load, frozenset(loaded))


def _over_checkpoint(
    model_class: Any,
    lazy_tensor: Any,
    checkpoint: Checkpoint,
    load: Callable[[str], torch.Tensor],
    outputs: dict[str, tuple[Any, str | None]],
) -> Any:
    """The converter's class for this architecture, reading from a `Checkpoint`.

    It also takes down, for each GGUF tensor, how it comes about, and whether it is a tensor of the
    checkpoint unaltered: such a one can be read in blocks of rows.
    """
    checkpoint_names: dict[str, str] = {}

    class OverCheckpoint(model_class):  # type: ignore[misc]
        model_arch = model_class.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Any]:
            found = {}
            for name, info in checkpoint.tensors.items():
                item = self.filter_tensors((name, _generator(info.name)))
                if item is not None:
                    checkpoint_names[item[0]] = name
                    found[item[0]] = item[1]
            return found

        def modify_tensors(
            self, data_torch: Any, name: str, bid: int | None
        ) -> Iterator[tuple[str, Any]]:
            for gguf_name, tensor in super().modify_tensors(data_torch, name, bid):
                is_unaltered = name in checkpoint_names and is_beginning(tensor, data_torch)
                outputs[gguf_name] = (tensor, checkpoint_names[name] if is_unaltered else None)
                yield gguf_name, tensor

    def _generator(name: str) -> Any:
        info = checkpoint.tensors[name]
        meta = lazy_tensor.meta_with_dtype_and_shape(info.torch_dtype, info.shape)
        return lambda: lazy_tensor(meta=meta, args=(name,), func=load)

    return OverCheckpoint


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
