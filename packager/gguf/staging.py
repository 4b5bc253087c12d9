"""The folder that llama.cpp's converter reads: links to the model's files, mended where it errs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from packager.files import read_json, write_json

# A model card is left out, as in a folder that save_pretrained has written: the names and sizes
# in it would be another model's.
_NOT_FOR_CONVERTER = (".md",)
_CONFIG, _TOKENIZER, _SENTENCEPIECE = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
_MODEL_CONFIG = "config.json"
_MAY_NAME_CODE = {_MODEL_CONFIG, _CONFIG, "processor_config.json", "preprocessor_config.json"}
_ADDED = "added_tokens_decoder"


def link_files(
    files: Mapping[str, Path], folder: Path, config: Mapping[str, object] | None = None
) -> None:
    """Fill `folder` with links to `files`; the user's own are never written to.

    A `config` takes the place of `config.json`.

    With a `tokenizer.model`, the converter learns of added tokens only from the tokenizer's
    configuration, where transformers 5 no longer writes them: they would become unused entries,
    and a turn's markers plain text. They are put back there, from `tokenizer.json`.
    """
    mended: dict[str, Mapping[str, object] | None] = {
        _MODEL_CONFIG: config,
        _CONFIG: _with_added_tokens(files),
    }
    for name in _MAY_NAME_CODE & set(files):
        mended[name] = _without_code(mended.get(name) or read_json(files[name])) or mended.get(name)
    for name, path in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if (content := mended.get(name)) is not None:
            write_json(folder / name, content)
        elif path.suffix not in _NOT_FOR_CONVERTER:
            (folder / name).symlink_to(path.absolute())


def _without_code(config: Mapping[str, object]) -> dict[str, object] | None:
    """A configuration without `auto_map`, or None where it has none.

    It names code, here or in another repository, that transformers would fetch and run for the
    converter, which trusts every model.
    """
    if "auto_map" not in config:
        return None
    return {key: value for key, value in config.items() if key != "auto_map"}


def _with_added_tokens(files: Mapping[str, Path]) -> dict[str, object] | None:
    """The tokenizer's configuration with its added tokens, or None where it is well as it is."""
    if not {_CONFIG, _TOKENIZER, _SENTENCEPIECE} <= set(files):
        return None
    config = read_json(files[_CONFIG])
    added = read_json(files[_TOKENIZER]).get("added_tokens")
    if _ADDED in config or not isinstance(added, list):
        return None
    tokens = {str(token["id"]): token for token in added if isinstance(token, dict)}
    return config | {
        _ADDED: {
            number: {key: value for key, value in token.items() if key != "id"}
            for number, token in tokens.items()
        }
    }
