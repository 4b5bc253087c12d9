"""The text of the chat template among a model's files, and the special tokens that it can name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packager.errors import ChatTemplateError, CorruptFileError
from packager.files import read_text
from packager.model.model_file import ModelFile
from packager.model.tokenizer import TOKENIZER_CONFIG, token_text

_TEMPLATE_FILE = "chat_template.jinja"
# transformers 5 writes a template named `tool_use` here.
_TOOL_USE_FILE = "additional_chat_templates/tool_use.jinja"
_TOKENS_MAP = "special_tokens_map.json"
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class TemplateText:
    """A chat template's Jinja text.

    Attributes:
        source: the default template.
        tool_use: the separate template for conversations with tools, if there is one.
        file_name: the name of its file.
    """

    source: str
    tool_use: str | None
    file_name: str


def find_template(files: Mapping[str, ModelFile]) -> TemplateText | None:
    """The chat template among these files, or None.

    `chat_template.jinja` precedes `tokenizer_config.json`, as in transformers, and both precede a
    processor's `chat_template.json`.

    Raises:
        ChatTemplateError: if there are several templates and none is the default.
        CorruptFileError: if a file is not valid.
    """
    file = files.get(_TEMPLATE_FILE)
    if file and (source := read_template_file(file.path)).strip():
        other = files.get(_TOOL_USE_FILE)
        tool_use = read_template_file(other.path) if other else None
        return TemplateText(source, tool_use, _TEMPLATE_FILE)
    for name in (TOKENIZER_CONFIG, "chat_template.json"):
        if file := files.get(name):
            named = _named_templates(file.json.get("chat_template"), file.path)
            if (default := named.get("default")) and default.strip():
                return TemplateText(default, named.get("tool_use"), name)
    return None


def special_tokens(files: Mapping[str, ModelFile]) -> dict[str, str] | None:
    """The special tokens by their names in a chat template (`bos_token`).

    None if there is no file that could define them.
    """
    sources = [files[name] for name in (TOKENIZER_CONFIG, _TOKENS_MAP) if name in files]
    if not sources:
        return None
    tokens: dict[str, str] = {}
    for values in reversed([file.json for file in sources]):
        for name in (f"{stem}_token" for stem in _SPECIAL_TOKENS):
            if name in values:
                tokens.pop(name, None)
                if (text := token_text(values[name])) is not None:
                    tokens[name] = text
    return tokens


def read_template_file(path: Path) -> str:
    """The text of a Jinja file.

    Raises:
        CorruptFileError: if it is not UTF-8 text.
    """
    return read_text(path, "Save it as UTF-8 text, or name another file with --template FILE.")


def _named_templates(value: object, path: Path) -> Mapping[str, str]:
    """The chat templates by name; a single one is the default."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else [value]:
        match item:
            case {"name": str(name), "template": str(source)}:
                named[name] = source
            case _:
                raise CorruptFileError(
                    f"`chat_template` in {path} is neither a string nor a list of named templates.",
                    next_step="Restore the file, or name the Jinja file with --template FILE.",
                )
    if named and "default" not in named:
        raise ChatTemplateError(
            f"{path} has the chat templates {', '.join(sorted(named))}; none is named `default`.",
            next_step="Save the training chat template to a file and name it with --template FILE.",
        )
    return named
