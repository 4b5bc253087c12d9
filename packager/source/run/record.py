"""The record of a training run in the files beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import CorruptFileError
from packager.files import is_inside, require_inside
from packager.model.config import CONFIG_NAME, ModelConfig, read_config
from packager.model.model_file import ModelFile
from packager.source.run.folders import run_folders

_TOKENIZER_CONFIG = "tokenizer_config.json"
_LLAMAFACTORY = "training_args.yaml"
# A run's configuration has a few kilobytes; a larger file is not read.
_MAX_YAML_BYTES = 1 << 20


@dataclass(frozen=True)
class Training:
    """The record of a training run.

    Attributes:
        trainer: the trainer's name.
        known_by: the file that shows it.
        base: the base in the trainer's configuration, if any.
        template_name: LLaMA-Factory's or axolotl's name of the chat template, if any.
        length: the sequence length in tokens, if any.
        problem: why the file cannot be read, if it cannot.
    """

    trainer: str
    known_by: Path
    base: str | None = None
    template_name: str | None = None
    length: int | None = None
    problem: str | None = None


def read_training(folder: Path, config: ModelConfig | None = None) -> Training | None:
    """The record of the run that wrote a folder, or of the run that a training checkpoint is from.

    Nothing depends on it: an unreadable file is reported in `problem` and does not raise.
    `training_args.bin` would show more, but is a pickle, which is never opened.

    Args:
        folder: the folder of the adapter or model.
        config: the folder's `config.json`, if it was read already.
    """
    for place in run_folders(folder.absolute()):
        training = _from_yaml(place) or _from_marks(place, config)
        if training is not None:
            return training
        config = None
    return None


def _from_yaml(folder: Path) -> Training | None:
    own = folder / _LLAMAFACTORY
    if own.is_file():
        try:
            config = _read_yaml(own, folder)
        except CorruptFileError as error:
            return Training("LLaMA-Factory", own, problem=error.message)
        return Training(
            "LLaMA-Factory", own, _text(config.get("model_name_or_path")),
            _text(config.get("template")), _count(config.get("cutoff_len")),
        )  # fmt: skip
    for path in sorted((*folder.glob("*.yml"), *folder.glob("*.yaml"))):
        try:
            config = _read_yaml(path, folder)
        except CorruptFileError:
            continue
        if "base_model" in config and {"datasets", "sequence_len", "adapter"} & set(config):
            return Training(
                "axolotl", path, _text(config.get("base_model")),
                _text(config.get("chat_template")), _count(config.get("sequence_len")),
            )  # fmt: skip
    return None


def _from_marks(folder: Path, config: ModelConfig | None) -> Training | None:
    """The trainer, recognised by a file that only it writes."""
    if (log := folder / "trainer_log.jsonl").is_file():
        return Training("LLaMA-Factory", log)
    if folder.name.startswith("epoch_") and (native := sorted(folder.glob("adapter*.pt"))):
        return Training("torchtune", native[0])
    path = folder / CONFIG_NAME
    if path.is_file() and (version := _unsloth_version(path, config)):
        return Training(f"Unsloth {version}", path)
    card = folder / "README.md"
    if card.is_file() and is_inside(card, folder):
        head = card.read_text(encoding="utf-8", errors="replace")[:4096]
        for mark, name in (("llama-factory", "LLaMA-Factory"), ("axolotl", "axolotl"),
                           ("unsloth", "Unsloth"), ("trl", "TRL")):  # fmt: skip
            if f"- {mark}" in head.splitlines():
                return Training(name, card)
    state = folder / "trainer_state.json"
    return Training("transformers' Trainer", state) if state.is_file() else None


def _unsloth_version(path: Path, config: ModelConfig | None) -> object:
    try:
        known = config or read_config(require_inside(path, path.parent))
    except CorruptFileError:
        return None
    return known.values.get("unsloth_version")


def _read_yaml(path: Path, folder: Path) -> dict[str, object]:
    import yaml

    if require_inside(path, folder).stat().st_size > _MAX_YAML_BYTES:
        return {}
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CorruptFileError(
            f"{path} cannot be read as YAML: {reason}",
            next_step="Restore the file from the training run, or remove it: it is not needed.",
        ) from error
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def training_length(
    own_files: Mapping[str, ModelFile], base_files: Mapping[str, ModelFile]
) -> int | None:
    """The training sequence length in tokens, if it is known.

    Trainers that set one write it as the tokenizer's `model_max_length`. The base's own value, and
    the "no limit" that transformers writes, do not describe the training.
    """
    own, base = _max_length(own_files), _max_length(base_files)
    return own if own is not None and own != base else None


def _max_length(files: Mapping[str, ModelFile]) -> int | None:
    if _TOKENIZER_CONFIG not in files:
        return None
    value = files[_TOKENIZER_CONFIG].json.get("model_max_length")
    return value if isinstance(value, int) and 0 < value < 10_000_000 else None
