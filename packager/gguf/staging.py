"""The folder that llama.cpp's converter reads: links to the model's files, corrected for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from packager.files import write_json
from packager.model.config import CONFIG_NAME, ModelConfig
from packager.model.model_file import ModelFile
from packager.model.tokenizer import TOKENIZER, TOKENIZER_CONFIG, added_tokens

# The names and sizes in a model card would be another model's. save_pretrained leaves no card
# in its folder either.
_NOT_FOR_CONVERTER = (".md",)
_SENTENCEPIECE = "tokenizer.model"
_CAN_NAME_CODE = (TOKENIZER_CONFIG, "processor_config.json", "preprocessor_config.json")
_CODE_KEY = "auto_map"
_ADDED = "added_tokens_decoder"


@contextmanager
def converter_folder(
    files: Mapping[str, ModelFile], config: ModelConfig, scratch: Path
) -> Iterator[Path]:
    """A folder in `scratch` with everything but the weights, removed when the block ends.

    Args:
        files: tokenizer and other files, by name.
        config: what `config.json` says in it.
        scratch: a folder of the run.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="converter-") as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        link_files(files, config, folder)
        yield folder


def link_files(files: Mapping[str, ModelFile], config: ModelConfig, folder: Path) -> None:
    """Fill `folder` with `config.json` and links to `files`; a corrected file is written anew.

    The user's files are never changed. Two things are corrected:

    - `auto_map` is left out. It names code, here or in another repository. The converter trusts
      every model, so that transformers would fetch the code and run it.
    - With a `tokenizer.model`, the converter takes added tokens only from the tokenizer's
      configuration, where transformers 5 no longer writes them. They would become unused entries,
      and the markers of a turn plain text. They are put back there, from `tokenizer.json`.
    """
    if config.is_changed or _CODE_KEY in config.values:
        write_json(folder / CONFIG_NAME, _without_code(config.values))
    else:
        (folder / CONFIG_NAME).symlink_to(config.path.absolute())
    corrected = _corrected(files)
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        if (content := corrected.get(name)) is not None:
            write_json(folder / name, content)
        elif file.path.suffix not in _NOT_FOR_CONVERTER:
            (folder / name).symlink_to(file.path.absolute())


def _corrected(files: Mapping[str, ModelFile]) -> dict[str, Mapping[str, object]]:
    """The contents that differ from the files', by name."""
    contents: dict[str, Mapping[str, object]] = {}
    if (config := _with_added_tokens(files)) is not None:
        contents[TOKENIZER_CONFIG] = config
    for name in _CAN_NAME_CODE:
        if name in files:
            content = contents.get(name, files[name].json)
            if _CODE_KEY in content:
                contents[name] = _without_code(content)
    return contents


def _without_code(content: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in content.items() if key != _CODE_KEY}


def _with_added_tokens(files: Mapping[str, ModelFile]) -> dict[str, object] | None:
    """The tokenizer's configuration with its added tokens, or None if nothing has to be added."""
    if not {TOKENIZER_CONFIG, TOKENIZER, _SENTENCEPIECE} <= set(files):
        return None
    config = files[TOKENIZER_CONFIG].json
    added = added_tokens(files[TOKENIZER])
    if _ADDED in config or not isinstance(added, list):
        return None
    tokens = {str(token["id"]): token for token in added if isinstance(token, dict)}
    return {
        **config,
        _ADDED: {
            number: {key: value for key, value in token.items() if key != "id"}
            for number, token in tokens.items()
        },
    }
