"""Which quantization a `config.json` describes, and whether ftpack dequantizes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from packager.errors import USE_16_BIT_ORIGINAL, CorruptFileError, UnsupportedError
from packager.model.checkpoint import Checkpoint
from packager.model.config import ModelConfig
from packager.model.dequantize.bnb import find_bitsandbytes
from packager.model.dequantize.compressed import find_compressed_tensors
from packager.model.dequantize.fp8 import find_fp8
from packager.model.dequantize.integers import find_awq, find_gptq
from packager.model.dequantize.mxfp4 import find_mxfp4
from packager.model.dequantize.packed import Quantization, QuantizedModel

_KEY = "quantization_config"
_PLAIN = ("BF16", "F16", "F32", "F64")
# `quant_method` as transformers writes it, and the function that finds its weights.
FORMATS: dict[str, Callable[[QuantizedModel], Quantization]] = {
    "awq": find_awq,
    "bitsandbytes": find_bitsandbytes,
    "compressed-tensors": find_compressed_tensors,
    "fbgemm_fp8": find_fp8,
    "fp8": find_fp8,
    "gptq": find_gptq,
    "mxfp4": find_mxfp4,
}
# The libraries that dequantize some of them; ftpack's own code dequantizes the others.
_LIBRARIES = {"bitsandbytes": "bitsandbytes", "compressed-tensors": "compressed-tensors"}


def quantization_settings(config: ModelConfig) -> Mapping[str, object] | None:
    """The `quantization_config` of a configuration, or None for plain weights."""
    for part in config.parts:
        settings = part.get(_KEY)
        if isinstance(settings, dict):
            return settings
    return None


def quant_method(settings: Mapping[str, object]) -> str:
    """The name of the method; older bitsandbytes checkpoints record only its switches."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        return "bitsandbytes"
    return str(settings.get("quant_method"))


def dequantizing_library(config: ModelConfig) -> str | None:
    """The distribution that dequantizes a model's weights; None if there is no need for one."""
    settings = quantization_settings(config)
    return None if settings is None else _LIBRARIES.get(quant_method(settings))


def plain_config(config: ModelConfig) -> ModelConfig:
    """The configuration of the same model with plain weights."""
    plain = {key: value for key, value in config.values.items() if key != _KEY}
    text = plain.get("text_config")
    if isinstance(text, dict):
        plain["text_config"] = {key: value for key, value in text.items() if key != _KEY}
    return config.replaced(plain)


def require_known(config: ModelConfig) -> None:
    """Check that a model's weights are plain, or in a format that ftpack can dequantize.

    Raises:
        UnsupportedError: with the name of the format.
    """
    settings = quantization_settings(config)
    if settings is None or quant_method(settings) in FORMATS:
        return
    raise UnsupportedError(
        f"{config.path} describes quantized weights (`quant_method` {quant_method(settings)!r}), "
        f"which ftpack does not dequantize; it reads {', '.join(sorted(FORMATS))}.",
        next_step=USE_16_BIT_ORIGINAL,
    )


def require_plain(checkpoint: Checkpoint) -> None:
    """Check that no weight is packed: packed ones need a configuration that describes them.

    Buffers of older transformers versions (masks, positions) may have any type.

    Raises:
        CorruptFileError: with the number of weights that have another type.
    """
    packed = [
        f"{name} ({info.dtype})"
        for name, info in checkpoint.tensors.items()
        if "weight" in name.rpartition(".")[2] and info.dtype not in _PLAIN
    ]
    if packed:
        raise CorruptFileError(
            f"{checkpoint.config.path} does not describe how {len(packed)} weights are quantized "
            f"or packed, such as {packed[0]}.",
            next_step=f"Restore the `{_KEY}` of these weights, or use the 16-bit model.",
        )
