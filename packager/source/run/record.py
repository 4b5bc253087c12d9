"""What a training run tells about itself in the files beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import CorruptFileError
from packager.files import is_inside, read_json, require_inside
from packager.model.model_file import ModelFile
from packager.source.run.folders import run_folders

_TOKENIZER_CONFIG = "tokenizer_config.json"
_LLAMAFACTORY = "training_args.yaml"
# A run's configuration is some kilobytes; nothing larger is read for one.
_MAX_YAML_BYTES = 1 << 20


@dataclass(frozen=True)
class Training:
    """What a run has left about itself.

    Attributes:
        trainer: the trainer's name.
        known_by: the file that tells.
        base: the base that its configuration names, if any.
        template: LLaMA-Factory's name of the template, or axolotl's, if any.
        length: the sequence length in tokens, if any.
        problem: why that file tells no more, in words, if it cannot be read.
    """

    trainer: str
    known_by: Path
    base: str | None = None
    template: str | None = None
    length: int | None = None
    problem: str | None = None


def read_training(folder: Path) -> Training | None:
    """What is known of the run that has left a folder, or the folder that a checkpoint is in.

    `training_args.bin` would tell more, but is a pickle: it is not opened.
    Nothing needs it: what cannot be read is told, and stops nothing.
    """
    for place in run_folders(folder.absolute()):
        if found := _from_yaml(place) or _from_marks(place):
            return found
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


def _from_marks(folder: Path) -> Training | None:
    """The trainer by a file that only it writes."""
    if (log := folder / "trainer_log.jsonl").is_file():
        return Training("LLaMA-Factory", log)
    if folder.name.startswith("epoch_") and (native := sorted(folder.glob("adapter*.pt"))):
        return Training("torchtune", native[0])
    config = folder / "config.json"
    if config.is_file() and (version := _unsloth_version(config)):
        return Training(f"Unsloth {version}", config)
    card = folder / "README.md"
    if card.is_file() and is_inside(card, folder):
        head = card.read_text(encoding="utf-8", errors="replace")[:4096]
        for mark, name in (("llama-factory", "LLaMA-Factory"), ("axolotl", "axolotl"),
                           ("unsloth", "Unsloth"), ("trl", "TRL")):  # fmt: skip
            if f"- {mark}" in head.splitlines():
                return Training(name, card)
    state = folder / "trainer_state.json"
    return Training("a Trainer of transformers", state) if state.is_file() else None


def _unsloth_version(config: Path) -> object:
    try:
        return read_json(require_inside(config, config.parent)).get("unsloth_version")
    except CorruptFileError:
        return None


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
    """The sequence length of training in tokens, where it is known.

    Trainers that set one write it as the tokenizer's `model_max_length`; where that is the base's,
    or the "no limit" that transformers writes, it says nothing of the training.
    """
    own, base = _max_length(own_files), _max_length(base_files)
    return own if own is not None and own != base else None


def _max_length(files: Mapping[str, ModelFile]) -> int | None:
    if _TOKENIZER_CONFIG not in files:
        return None
    value = files[_TOKENIZER_CONFIG].json.get("model_max_length")
    return value if isinstance(value, int) and 0 < value < 10_000_000 else None
