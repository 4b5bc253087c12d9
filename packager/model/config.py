"""A model's configuration: `config.json`, parsed once, with its text part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.model.model_file import ModelFile

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class ModelConfig:
    """The contents of `config.json`, or what they would be for a derived checkpoint.

    Attributes:
        file: the file that it was read from, for messages.
        values: its keys and values, as in the file or changed (see `changed`).
    """

    file: ModelFile
    values: Mapping[str, object]

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self.file.path

    @property
    def is_changed(self) -> bool:
        """Whether its values differ from those in its file."""
        return self.values is not self.file.json

    @property
    def text(self) -> Mapping[str, object]:
        """The text part: `text_config` of a multimodal model, else the whole configuration."""
        text = self.values.get("text_config")
        return text if isinstance(text, dict) else self.values

    @property
    def parts(self) -> tuple[Mapping[str, object], ...]:
        """The whole configuration, followed by its `text_config` if it has one."""
        return (self.values,) if self.text is self.values else (self.values, self.text)

    @property
    def architectures(self) -> tuple[str, ...]:
        """`architectures`, such as `LlamaForCausalLM`; empty if there are none."""
        names = self.values.get("architectures")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def vocab_size(self) -> int | None:
        """`vocab_size` of the text part; None if it is not an integer."""
        size = self.text.get("vocab_size")
        return size if isinstance(size, int) else None

    def changed(self, changes: Mapping[str, object]) -> ModelConfig:
        """The configuration with other values, set in its text part where that has the key."""
        if not changes:
            return self
        changed = dict(self.values)
        text = changed.get("text_config")
        for key, value in changes.items():
            if isinstance(text, dict) and key in text:
                text = changed["text_config"] = {**text, key: value}
            if not isinstance(text, dict) or key in self.values or key not in text:
                changed[key] = value
        return ModelConfig(self.file, changed)

    def replaced(self, values: Mapping[str, object]) -> ModelConfig:
        """A configuration with these values and the same file."""
        return ModelConfig(self.file, values)


def read_config(path: Path) -> ModelConfig:
    """The configuration in a file.

    Raises:
        CorruptFileError: if the file cannot be read, or does not hold a JSON object.
    """
    return parse_config(ModelFile(path))


def parse_config(file: ModelFile) -> ModelConfig:
    """The configuration in a file, which is not read again if it was read already.

    Raises:
        CorruptFileError: if the file cannot be read, or does not hold a JSON object.
    """
    return ModelConfig(file, file.json)
