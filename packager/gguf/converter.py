"""Running llama.cpp's own converter over a `Checkpoint`, and recording how it makes each tensor."""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packager.errors import FtpackError, UnsupportedError
from packager.gguf.lazy import is_beginning
from packager.gguf.pre_tokenizer import PreTokenizer
from packager.gguf.toolchain import Toolchain
from packager.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_FTYPE_OF = {"BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16"}

# The converter makes two files of a multimodal model; these are its names for them.
Part = Literal["TEXT", "MMPROJ"]
_NEXT_STEP: dict[Part, str] = {
    "TEXT": "Check that config.json and the tokenizer's files belong to this model; a newer "
    "llama-cpp-python may know the architecture.",
    "MMPROJ": "The converter refuses the encoders of images or audio: for the text model alone, "
    "add --text-only. Check that config.json and the preprocessor's files belong to this model.",
}


def architectures(toolchain: Toolchain, part: Part) -> Mapping[str, str] | None:
    """The architectures that the converter knows, or None if it has no list of them."""
    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    known: Mapping[str, str] | None = getattr(conversion, f"{part}_MODEL_MAP", None)
    return known


def architecture(config: Mapping[str, Any], part: Part) -> str | None:
    """A model's architecture, as the converter reads it from `config.json`; None if it cannot."""
    base: Any = importlib.import_module("conversion.base")
    try:
        return str(base.get_model_architecture(config, base.ModelType[part]))
    # It indexes and compares whatever a config.json holds.
    except Exception:
        return None


class CheckpointReader:
    """Loads tensors for the converter's lazy tensors, and records their names in `loaded`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.loaded: set[str] = set()

    def load(self, name: str) -> torch.Tensor:
        """A tensor of the checkpoint."""
        self.loaded.add(name)
        return self.checkpoint.load(name)


@dataclass(frozen=True)
class Output:
    """How the converter makes a GGUF tensor.

    Attributes:
        lazy: its lazy tensor.
        passes_from: the checkpoint's tensor whose first rows it has unaltered; None if it is
            computed.
    """

    lazy: Any
    passes_from: str | None


@dataclass
class Capture:
    """What the converter asks for while it runs, and a record of what it makes.

    Lazy tensors refer to `reader`, never to this: a cycle would keep the checkpoint in memory.

    Attributes:
        reader: reads the tensors. While the converter runs it reads none, as a rule.
        find_pre_tokenizer: called if the converter does not know the vocabulary.
        is_content: whether a token that looks like a marker is text to be read all the same.
        pre_tokenizer: the result of `find_pre_tokenizer`; None if it was not called.
        outputs: how each GGUF tensor is made, by name.
    """

    reader: CheckpointReader
    find_pre_tokenizer: Callable[[], PreTokenizer]
    is_content: Callable[[str], bool]
    pre_tokenizer: PreTokenizer | None = None
    outputs: dict[str, Output] = field(default_factory=dict)


def run_converter(
    toolchain: Toolchain, folder: Path, name: str, float_type: str, part: Part, capture: Capture
) -> Any:
    """The `GGUFWriter` of a conversion, with every key-value and tensor but no weights.

    Args:
        toolchain: where the converter is.
        folder: a model's files without its weights (`staging.converter_folder`).
        name: `general.name`.
        float_type: the converter's `--outtype`: `BF16` or `F16`.
        part: which of a multimodal model's two files to make.
        capture: what the converter reads; what it makes is recorded in it.

    Raises:
        UnsupportedError: with the converter's reason, if it refuses the model.
    """
    import torch

    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    base: Any = importlib.import_module("conversion.base")
    gguf: Any = importlib.import_module("gguf")
    try:
        hparams = base.ModelBase.load_hparams(folder, False)
        architecture = base.get_model_architecture(hparams, base.ModelType[part])
        model_class = conversion.get_model_class(architecture, mmproj=part == "MMPROJ")
        ftype = gguf.LlamaFileType[_FTYPE_OF[float_type]]

        def open_model(model_class: Any) -> Any:
            over_checkpoint = _over_checkpoint(model_class)
            path = folder.parent / "model.gguf"  # never written
            return over_checkpoint(capture, folder, ftype, path, model_name=name)

        with torch.inference_mode():
            model = open_model(model_class)
            # Mistral 3's class only chooses another one by the configuration, which does the work.
            if (implementation := getattr(model, "impl", None)) is not None:
                model = open_model(type(implementation))
            model.prepare_tensors()
            model.prepare_metadata(vocab_only=False)
    except FtpackError:
        raise
    # The converter raises anything in its 135 architectures, often a bare assert.
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line
        reason = " ".join(str(error).split())[:300] or f"this failed: {line}"
        raise UnsupportedError(
            f"llama.cpp's converter refuses this model: {type(error).__name__}: {reason}",
            next_step=_NEXT_STEP[part],
        ) from error
    return model.gguf_writer


def _over_checkpoint(model_class: Any) -> Any:
    """The converter's class for an architecture, reading from a `Checkpoint`."""
    # The converter requires `model_arch` in every subclass itself.
    return type(
        "OverCheckpoint", (_OverCheckpoint, model_class), {"model_arch": model_class.model_arch}
    )


# The methods below override those of the class that this one is combined with.
_ModelBase: Any = object


class _OverCheckpoint(_ModelBase):  # type: ignore[misc]
    """Reads from a `Checkpoint`, and records how each GGUF tensor is made.

    A tensor of the checkpoint that is only renamed can be read in blocks of rows.
    """

    def __init__(self, capture: Capture, *args: Any, **kwargs: Any) -> None:
        self._capture = capture
        self._checkpoint_names: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Any]:
        reader = self._capture.reader
        tensors = {}
        for name in reader.checkpoint.tensors:
            item = self.filter_tensors((name, _lazy_tensor(reader, name)))
            if item is not None:
                self._checkpoint_names[item[0]] = name
                tensors[item[0]] = item[1]
        return tensors

    def get_vocab_base_pre(self, tokenizer: Any) -> str:
        """The pre-tokenizer's name: the converter's own where it knows the vocabulary."""
        try:
            return str(super().get_vocab_base_pre(tokenizer))
        except NotImplementedError:
            self._capture.pre_tokenizer = self._capture.find_pre_tokenizer()
            return self._capture.pre_tokenizer.name

    def get_vocab_base(self) -> tuple[list[str], list[int], str]:
        """Tokens, types and pre-tokenizer; tokens that stand for a byte get the type of bytes.

        The converter would leave them as text in a vocabulary that it does not know, and an answer
        would have `<0x0A>` in it.
        """
        tokens, types, name = super().get_vocab_base()
        pre_tokenizer = self._capture.pre_tokenizer
        if pre_tokenizer is not None and not pre_tokenizer.is_byte_level:
            byte_type = importlib.import_module("gguf").TokenType.BYTE
            types = [
                byte_type if _BYTE_TOKEN.fullmatch(token) else token_type
                for token, token_type in zip(tokens, types, strict=True)
            ]
        return tokens, types, name

    def does_token_look_special(self, token: str | bytes) -> bool:
        text = token if isinstance(token, str) else bytes(token).decode()
        return super().does_token_look_special(token) and not self._capture.is_content(text)

    def modify_tensors(
        self, data_torch: Any, name: str, bid: int | None
    ) -> Iterator[tuple[str, Any]]:
        for gguf_name, tensor in super().modify_tensors(data_torch, name, bid):
            is_unaltered = name in self._checkpoint_names and is_beginning(tensor, data_torch)
            source = self._checkpoint_names[name] if is_unaltered else None
            self._capture.outputs[gguf_name] = Output(tensor, source)
            yield gguf_name, tensor


def _lazy_tensor(reader: CheckpointReader, name: str) -> Callable[[], Any]:
    """What makes the converter's lazy tensor of a checkpoint's tensor."""
    lazy_tensor: Any = importlib.import_module("conversion.base").LazyTorchTensor
    info = reader.checkpoint.tensors[name]
    meta = lazy_tensor.meta_with_dtype_and_shape(info.torch_dtype, info.shape)
    return lambda: lazy_tensor(meta=meta, args=(name,), func=reader.load)
