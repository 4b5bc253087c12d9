"""A model's configuration: `config.json`, parsed once, with its part on text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.model.model_file import ModelFile

CONFIG_NAME = "config.json"


@dataclass(frozen=True)
class ModelConfig:
    """What `config.json` says, or would say of a checkpoint that is derived from another.

    Attributes:
        file: the file that it was read from; messages name it.
        values: its keys, as in the file, or changed (see `changed`).
    """

    file: ModelFile
    values: Mapping[str, object]

    @property
    def path(self) -> Path:
        """The file that it was read from."""
        return self.file.path

    @property
    def is_changed(self) -> bool:
        """Whether it says something else than its file does."""
        return self.values is not self.file.json

    @property
    def text(self) -> Mapping[str, object]:
        """The part on text: `text_config` of a multimodal model, else all of it."""
        text = self.values.get("text_config")
        return text if isinstance(text, dict) else self.values

    @property
    def parts(self) -> tuple[Mapping[str, object], ...]:
        """All of it, and after it the part on text, where it has one of its own."""
        return (self.values,) if self.text is self.values else (self.values, self.text)

    @property
    def architectures(self) -> tuple[str, ...]:
        """`architectures`, such as `LlamaForCausalLM`; empty if it names none."""
        names = self.values.get("architectures")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def vocab_size(self) -> int | None:
        """`vocab_size` of the part on text; None if that is not a whole number."""
        size = self.text.get("vocab_size")
        return size if isinstance(size, int) else None

    def changed(self, changes: Mapping[str, object]) -> ModelConfig:
        """The configuration with other values, in its part on text where that has the key."""
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
        """A configuration with these values, of the same file."""
        return ModelConfig(self.file, values)


def read_config(path: Path) -> ModelConfig:
    """The configuration in a file.

    Raises:
        CorruptFileError: if the file cannot be read, or does not hold a JSON object.
    """
    file = ModelFile(path)
    return ModelConfig(file, file.json)
