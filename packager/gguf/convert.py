"""llama.cpp's own converter over a `Checkpoint`: GGUF names, layouts and key-values, no weights."""

from __future__ import annotations

import importlib
import math
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.checkpoint import Checkpoint
from packager.errors import FtpackError, UnsupportedError
from packager.files import read_json
from packager.gguf.context import stretched_config
from packager.gguf.pre_tokenizer import PreTokenizer, find_pre_tokenizer
from packager.gguf.scratch import link_files
from packager.gguf.toolchain import Toolchain

if TYPE_CHECKING:
    import torch

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_FTYPE_OF = {"BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16"}


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


@dataclass(frozen=True)
class Conversion:
    """Everything of a GGUF but the weights.

    Attributes:
        architecture: GGUF's name of it, such as `llama`.
        float_type: the 16-bit type that the converter would choose for this checkpoint.
        tensors: in the order of llama.cpp's quantizer.
        key_values: the writer's metadata, ready to be written (`gguf.GGUFValue` by key).
        checkpoint: where the weights come from.
        found_pre_tokenizer: the vocabulary's, where the converter does not know it; ids have to
            prove it yet.
        packed: bytes of `key_values`' lists, by the list's identity: packed once, written often.
    """

    architecture: str
    float_type: str
    tensors: tuple[GgufTensor, ...]
    key_values: Mapping[str, Any]
    checkpoint: Checkpoint
    found_pre_tokenizer: PreTokenizer | None = None
    packed: dict[int, bytes] = field(default_factory=dict, compare=False)

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
            for piece in _pieces(tensor.lazy):
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
    toolchain.activate()
    float_type = _float_type(checkpoint)
    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        link_files(files, folder, config)
        find = partial(find_pre_tokenizer, files.get("tokenizer.json"), toolchain.version)
        seen = _Seen(find, is_content)
        model = _run_converter(folder, name, float_type, checkpoint, seen)
    writer = model.gguf_writer
    _set_chat_templates(writer, chat_templates)
    writer.add_add_bos_token(begins_with_bos)
    _set_end_tokens(writer, end_token_ids)
    (infos,) = writer.tensors
    tensors = tuple(
        GgufTensor(
            gguf_name, tuple(infos[gguf_name].shape), infos[gguf_name].dtype.name,
            *_source(seen.outputs, gguf_name),
        )
        for gguf_name in sorted(infos, key=_quantizer_order)
    )  # fmt: skip
    return Conversion(
        writer.arch, float_type, tensors, writer.kv_data[0], checkpoint, seen.pre_tokenizer
    )


def require_architecture(toolchain: Toolchain, config_path: Path) -> None:
    """Refuse, before anything else is done, an architecture that the converter does not know.

    Raises:
        UnsupportedError: naming the architecture, and the toolchain's version.
    """
    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    base: Any = importlib.import_module("conversion.base")
    config = read_json(config_path)
    known = getattr(conversion, "TEXT_MODEL_MAP", None)
    try:
        name = base.get_model_architecture(config, base.ModelType.TEXT)
    # What its config lacks, the converter itself tells better when it runs.
    except Exception:
        return
    if known is None or name in known:
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


def _source(outputs: dict[str, tuple[Any, str | None]], name: str) -> tuple[str | None, Any]:
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


@dataclass
class _Seen:
    """What is taken down while the converter runs.

    Attributes:
        find_pre_tokenizer: asked where the converter does not know the vocabulary.
        is_content: asked where the converter goes by a token's looks.
        pre_tokenizer: its answer.
        outputs: how each GGUF tensor comes about, and the tensor that it is unaltered, if any.
    """

    find_pre_tokenizer: Callable[[], PreTokenizer]
    is_content: Callable[[str], bool]
    pre_tokenizer: PreTokenizer | None = None
    outputs: dict[str, tuple[Any, str | None]] = field(default_factory=dict)


def _run_converter(
    folder: Path, name: str, float_type: str, checkpoint: Checkpoint, seen: _Seen
) -> Any:
    import torch

    conversion: Any = importlib.import_module("conversion")
    base: Any = importlib.import_module("conversion.base")
    gguf: Any = importlib.import_module("gguf")
    try:
        hparams = base.ModelBase.load_hparams(folder, False)
        architecture = base.get_model_architecture(hparams, base.ModelType.TEXT)
        model_class = conversion.get_model_class(architecture)
        with torch.inference_mode():
            model = _over_checkpoint(model_class, base.LazyTorchTensor, checkpoint, seen)(
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
            next_step="Check that config.json and the tokenizer's files belong to this model; "
            "a newer llama-cpp-python may know the architecture.",
        ) from error
    return model


def _over_checkpoint(
    model_class: Any, lazy_tensor: Any, checkpoint: Checkpoint, seen: _Seen
) -> Any:
    """The converter's class for this architecture, reading from a `Checkpoint`.

    It also takes down, for each GGUF tensor, how it comes about, and whether it is a tensor of the
    checkpoint unaltered: such a one can be read in blocks of rows. Where it knows a vocabulary's
    pre-tokenizer it keeps its own word; where not, tokens that stand for a byte are made such ones:
    it would leave them as text, and `<0x0A>` would be read in an answer.
    """
    byte_type = importlib.import_module("gguf").TokenType.BYTE
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

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:
                seen.pre_tokenizer = seen.find_pre_tokenizer()
                return seen.pre_tokenizer.name

        def get_vocab_base(self) -> tuple[list[str], list[int], str]:
            tokens, types, name = super().get_vocab_base()
            if seen.pre_tokenizer is not None and not seen.pre_tokenizer.is_byte_level:
                types = [
                    byte_type if _BYTE_TOKEN.fullmatch(token) else token_type
                    for token, token_type in zip(tokens, types, strict=True)
                ]
            return tokens, types, name

        def does_token_look_special(self, token: str | bytes) -> bool:
            text = token if isinstance(token, str) else bytes(token).decode()
            return super().does_token_look_special(token) and not seen.is_content(text)

        def modify_tensors(
            self, data_torch: Any, name: str, bid: int | None
        ) -> Iterator[tuple[str, Any]]:
            for gguf_name, tensor in super().modify_tensors(data_torch, name, bid):
                is_unaltered = name in checkpoint_names and _is_beginning(tensor, data_torch)
                seen.outputs[gguf_name] = (tensor, checkpoint_names[name] if is_unaltered else None)
                yield gguf_name, tensor

    def _generator(name: str) -> Any:
        info = checkpoint.tensors[name]
        meta = lazy_tensor.meta_with_dtype_and_shape(info.torch_dtype, info.shape)
        return lambda: lazy_tensor(meta=meta, args=(name,), func=checkpoint.load)

    return OverCheckpoint


def _evaluate(value: Any) -> Any:
    """What a lazy tensor stands for, computed without keeping anything.

    gguf's own `to_eager` stores every step in the lazy tensors, so that all of a model's computed
    tensors would stay in memory to the end.
    """
    if isinstance(value, list | tuple):
        return type(value)(_evaluate(item) for item in value)
    if not hasattr(value, "_func"):
        return value
    if value._data is not None:
        return value._data
    return value._func(*_evaluate(value._args), **value._kwargs)


def _pieces(lazy: Any) -> Iterator[torch.Tensor]:
    """What a lazy tensor stands for, in pieces along its first dimension where that can be had.

    A stack of experts is the largest tensor of its model by far; each expert is a piece of it.
    """
    import torch

    dimension = lazy._kwargs.get("dim", 0) if hasattr(lazy, "_kwargs") else None
    if getattr(lazy, "_func", None) is torch.stack and len(lazy._args) == 1 and dimension == 0:
        for item in lazy._args[0]:
            yield _evaluate(item)[None]
    else:
        yield _evaluate(lazy)


def _is_beginning(tensor: Any, whole: Any) -> bool:
    """Whether a lazy tensor is another one unaltered, or just its first rows.

    Gemma's converter cuts the embedding to the vocabulary; it is the largest tensor of all, and to
    compute it as a whole would take several times its size.
    """
    if tensor is whole:
        return True
    match getattr(tensor, "_args", ()):
        case (source, slice(start=None | 0, step=None | 1)):
            return source is whole
    return False


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
