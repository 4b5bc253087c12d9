"""A PEFT adapter: `adapter_config.json`, parsed once, and its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.model.model_file import ModelFile
from packager.model.tensor_file import TensorFile

ADAPTER_CONFIG_NAME = "adapter_config.json"
WEIGHT_NAMES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class AdapterConfig:
    """The contents of `adapter_config.json`.

    Attributes:
        file: the file that it was read from, for messages.
        raw: all of its keys and values, for PEFT.
        method: the method's name for people, such as `LoRA` or `DoRA`.
        rank: `r`, if the method has one.
        alpha: `lora_alpha` or `alpha`, if the method has one.
        base_model_name_or_path: the base that the trainer recorded, if any.
        revision: the base's revision that the trainer recorded, if any.
    """

    file: ModelFile
    raw: Mapping[str, object]
    method: str
    rank: int | None
    alpha: float | None
    base_model_name_or_path: str | None
    revision: str | None

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self.file.path

    @property
    def peft_type(self) -> object:
        """PEFT's name of the method, such as `LORA`."""
        return self.raw.get("peft_type")

    @property
    def target_modules(self) -> str:
        """The kinds of the targeted modules, for people.

        Newer PEFT versions list every module by its full name.
        """
        targets = self.raw.get("target_modules")
        if not isinstance(targets, list):
            return str(targets)
        return ", ".join(sorted({str(target).rpartition(".")[2] for target in targets}))


@dataclass(frozen=True)
class Adapter:
    """An adapter that ftpack can merge.

    Attributes:
        folder: the folder with `adapter_config.json`.
        config: its contents.
        weights: the tensor file; only its header has been read.
    """

    folder: Path
    config: AdapterConfig
    weights: TensorFile
