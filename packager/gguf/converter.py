"""Running llama.cpp's own converter over a `Checkpoint`, and what is taken down meanwhile."""

from __future__ import annotations

import importlib
import re
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from packager.errors import FtpackError, UnsupportedError
from packager.gguf.lazy import is_beginning
from packager.gguf.pre_tokenizer import PreTokenizer
from packager.gguf.staging import link_files
from packager.gguf.toolchain import Toolchain
from packager.model.checkpoint import Checkpoint

if TYPE_CHECKING:
    import torch

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_FTYPE_OF = {"BF16": "MOSTLY_BF16", "F16": "MOSTLY_F16"}

# Of a model that sees or hears, the converter makes two files; these are its names for them.
Part = Literal["TEXT", "MMPROJ"]
_NEXT_STEP: dict[Part, str] = {
    "TEXT": "Check that config.json and the tokenizer's files belong to this model; a newer "
    "llama-cpp-python may know the architecture.",
    "MMPROJ": "It is what sees or hears that it does not take: for the text model alone, add "
    "--text-only. Check that config.json and the preprocessor's files belong to this model.",
}


def architectures(toolchain: Toolchain, part: Part) -> Mapping[str, str] | None:
    """The architectures that the converter knows; None where it keeps no list of them."""
    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    known: Mapping[str, str] | None = getattr(conversion, f"{part}_MODEL_MAP", None)
    return known


def architecture(config: Mapping[str, Any], part: Part) -> str | None:
    """What the converter takes for a model's architecture, if it finds any."""
    base: Any = importlib.import_module("conversion.base")
    try:
        return str(base.get_model_architecture(config, base.ModelType[part]))
    # It indexes and compares whatever a config.json holds.
    except Exception:
        return None


@dataclass
class Seen:
    """What the converter reads, what it is told, and what is taken down while it runs.

    Attributes:
        checkpoint: the tensors.
        find_pre_tokenizer: asked where the converter does not know the vocabulary.
        is_content: asked where the converter goes by a token's looks.
        pre_tokenizer: what was found, where it was asked.
        outputs: how each GGUF tensor comes about, and the tensor that it is unaltered, if any.
        loaded: the tensors that were read; by the converter itself as a rule none.
    """

    checkpoint: Checkpoint
    find_pre_tokenizer: Callable[[], PreTokenizer]
    is_content: Callable[[str], bool]
    pre_tokenizer: PreTokenizer | None = None
    outputs: dict[str, tuple[Any, str | None]] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)

    def load(self, name: str) -> torch.Tensor:
        """A tensor of the checkpoint."""
        self.loaded.add(name)
        return self.checkpoint.load(name)


def run_converter(
    toolchain: Toolchain,
    files: Mapping[str, Path],
    config: Mapping[str, object] | None,
    name: str,
    float_type: str,
    seen: Seen,
    part: Part,
) -> Any:
    """Let the converter read a model's folder, all but the weights; gives its `GGUFWriter`.

    Raises:
        UnsupportedError: with the converter's reason, if it does not take the model.
    """
    import torch

    toolchain.activate()
    conversion: Any = importlib.import_module("conversion")
    base: Any = importlib.import_module("conversion.base")
    gguf: Any = importlib.import_module("gguf")
    with tempfile.TemporaryDirectory(prefix="ftpack-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        link_files(files, folder, config)
        try:
            hparams = base.ModelBase.load_hparams(folder, False)
            architecture = base.get_model_architecture(hparams, base.ModelType[part])
            model_class = conversion.get_model_class(architecture, mmproj=part == "MMPROJ")
            with torch.inference_mode():
                ftype, path = (
                    gguf.LlamaFileType[_FTYPE_OF[float_type]],
                    folder.parent / "model.gguf",
                )

                def over_checkpoint(model_class: Any) -> Any:
                    reading = _over_checkpoint(model_class, base.LazyTorchTensor, seen)
                    return reading(folder, ftype, path, model_name=name)

                model = over_checkpoint(model_class)
                # Mistral 3's only chooses another class, by the configuration, which does it all.
                if (chosen := getattr(model, "impl", None)) is not None:
                    model = over_checkpoint(type(chosen))
                model.prepare_tensors()
                model.prepare_metadata(vocab_only=False)
        except FtpackError:
            raise
        # The converter raises whatever comes up in its 135 architectures, often a bare assert.
        except Exception as error:
            failed = traceback.extract_tb(error.__traceback__)[-1].line
            reason = " ".join(str(error).split())[:300] or f"this failed: {failed}"
            raise UnsupportedError(
                f"llama.cpp's converter does not take this model: {type(error).__name__}: {reason}",
                next_step=_NEXT_STEP[part],
            ) from error
    return model.gguf_writer


def _over_checkpoint(model_class: Any, lazy_tensor: Any, seen: Seen) -> Any:
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
            for name, info in seen.checkpoint.tensors.items():
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
                is_unaltered = name in checkpoint_names and is_beginning(tensor, data_torch)
                seen.outputs[gguf_name] = (tensor, checkpoint_names[name] if is_unaltered else None)
                yield gguf_name, tensor

    def _generator(name: str) -> Any:
        info = seen.checkpoint.tensors[name]
        meta = lazy_tensor.meta_with_dtype_and_shape(info.torch_dtype, info.shape)
        return lambda: lazy_tensor(meta=meta, args=(name,), func=seen.load)

    return OverCheckpoint
