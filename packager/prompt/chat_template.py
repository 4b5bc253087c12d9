"""The chat template of training: found among the files, and rendered as transformers renders it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from packager.errors import ChatTemplateError, CorruptFileError
from packager.files import read_json, read_text
from packager.prompt.conversation import REASONING_FIELDS, Conversation

_TOKENIZER_CONFIG = "tokenizer_config.json"
# Where transformers 5 writes a template named `tool_use`.
_TOOL_USE_FILE = "additional_chat_templates/tool_use.jinja"
_SPECIAL_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# Of all loops over a `range` in one rendering; real templates have none, or as many as messages.
_MAX_STEPS = 1_000_000
# Put after the text that the model is to continue, to find its end in the prompt; white space that
# a template takes off at the end is known by the last one's absence.
_CONTINUED = "4f1c-continued-9d27 "


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, with the special tokens that it may name.

    Attributes:
        source: the Jinja text as trained.
        origin: where it was found, for the user.
        bos_token: the tokenizer's BOS, as text.
        eos_token: the tokenizer's EOS, as text.
        other_tokens: further tokens by the name that a template has for them (`pad_token`).
        tool_use: the Jinja text for conversations with tools, where there is one of its own.
        variables: what it was told in training besides (`enable_thinking`).
    """

    source: str
    origin: str
    bos_token: str | None
    eos_token: str | None
    other_tokens: Mapping[str, str] = field(default_factory=dict)
    tool_use: str | None = None
    variables: Mapping[str, object] = field(default_factory=dict)

    def prompt(
        self, conversation: Conversation, variables: Mapping[str, object] | None = None
    ) -> str:
        """The prompt of a conversation as text, as transformers' `apply_chat_template` makes it.

        It ends where the answer begins, or goes on where one is begun (`add_generation_prompt`,
        `continue_final_message`).

        Args:
            conversation: the turns, the tools, and whether to think.
            variables: what the template is told besides, in training's place.

        Raises:
            ChatTemplateError: if the template is not Jinja, fails, or refuses the conversation.
        """
        told = dict(self.variables if variables is None else variables)
        if conversation.thinking is not None:
            told["enable_thinking"] = conversation.thinking
        messages = conversation.messages
        if not conversation.is_begun:
            return self.render(
                messages, add_generation_prompt=True, tools=conversation.tools, variables=told
            )
        text = str(messages[-1].get("content") or "")
        tagged = (*messages[:-1], {**messages[-1], "content": text + _CONTINUED})
        whole = self.render(
            tagged, add_generation_prompt=False, tools=conversation.tools, variables=told
        )
        before, tag, after = whole.rpartition(_CONTINUED.rstrip())
        if not tag or text.strip() not in whole:
            raise self._failure("it leaves out parts of the answer that is to be continued")
        return before if after.startswith(" ") else before.rstrip()

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, object]] = (),
        variables: Mapping[str, object] | None = None,
    ) -> str:
        """The conversation as text: transformers' `apply_chat_template(..., tokenize=False)`.

        Raises:
            ChatTemplateError: if the template is not Jinja, fails, or refuses the conversation.
        """
        tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token, **self.other_tokens}
        source = self.tool_use if tools and self.tool_use else self.source
        try:
            return _compile(source).render(
                messages=[_with_reasoning(message) for message in copy.deepcopy(list(messages))],
                tools=copy.deepcopy(list(tools)) or None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                range=_Ranges(),
                **{name: token for name, token in tokens.items() if token is not None},
                **(self.variables if variables is None else variables),
            )
        # A template is a program: Jinja lets whatever Python raises in it pass.
        except Exception as error:
            raise self._failure(str(error)) from error

    def _failure(self, why: str) -> ChatTemplateError:
        return ChatTemplateError(
            f"The chat template ({self.origin}) does not render: {why}",
            next_step="Mend the template, or name another file with --template FILE.",
        )


class _Ranges:
    """Jinja's `range`, with an end: nested, a few lines of a stranger's template run for years."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        made = range(*bounds)
        self._left -= len(made)
        if self._left < 0:
            raise ValueError(f"its loops take more than {_MAX_STEPS:,} steps")
        return made


def _with_reasoning(message: Mapping[str, object]) -> dict[str, object]:
    """The message with its reasoning under the names that templates ask for (as transformers)."""
    found = [message[name] for name in REASONING_FIELDS if message.get(name) is not None]
    if not found:
        return dict(message)
    return {"thinking": found[0], **message, "reasoning_content": found[0]}


def load_chat_template(
    adapter_files: Mapping[str, Path], base_files: Mapping[str, Path], override: Path | None
) -> ChatTemplate | None:
    """Find the template of training: `override`, else the adapter's, else the base's.

    On each side `chat_template.jinja` goes before `tokenizer_config.json`, as in transformers,
    and both before a processor's `chat_template.json`.

    Args:
        adapter_files: file names and paths of the fine-tune (adapter or full model).
        base_files: the same of the base; empty for a full model.
        override: a Jinja file that the user named.

    Returns:
        None if there is none anywhere.

    Raises:
        ChatTemplateError: if there are several and none is the default.
        CorruptFileError: if a file cannot be read as what its name says.
    """
    found: tuple[str, str, str | None] | None = None
    if override:
        found = _read_template(override), str(override), None
    for files, owner in ((adapter_files, "the fine-tune"), (base_files, "the base")):
        found = found or _find(files, owner)
    if found is None:
        return None
    tokens = _special_tokens(adapter_files) or _special_tokens(base_files) or {}
    bos_token, eos_token = tokens.pop("bos_token", None), tokens.pop("eos_token", None)
    source, origin, tool_use = found
    return ChatTemplate(source, origin, bos_token, eos_token, tokens, tool_use)


def has_chat_template(files: Mapping[str, Path]) -> bool:
    """Whether there is a template among the files of a tokenizer."""
    return _find(files, "it") is not None


def _find(files: Mapping[str, Path], owner: str) -> tuple[str, str, str | None] | None:
    """The template, where it is from, and the one for tools beside it."""
    if (path := files.get("chat_template.jinja")) and (source := _read_template(path)).strip():
        other = files.get(_TOOL_USE_FILE)
        return source, f"chat_template.jinja of {owner}", _read_template(other) if other else None
    for name in (_TOKENIZER_CONFIG, "chat_template.json"):
        if path := files.get(name):
            chosen, tool_use = _chosen(read_json(path).get("chat_template"), path)
            if chosen and chosen.strip():
                return chosen, f"{name} of {owner}", tool_use
    return None


def _chosen(value: object, path: Path) -> tuple[str | None, str | None]:
    """The template itself, or of several named ones the default and that for tools."""
    if value is None or isinstance(value, str):
        return value, None
    named: dict[str, str] = {}
    for item in value if isinstance(value, list) else [value]:
        match item:
            case {"name": str(name), "template": str(source)}:
                named[name] = source
            case _:
                raise CorruptFileError(
                    f"chat_template in {path} is neither a text nor a list of names and templates.",
                    next_step="Restore the file, or name the Jinja file with --template FILE.",
                )
    if named and "default" not in named:
        raise ChatTemplateError(
            f"{path} has the chat templates {', '.join(sorted(named))}, and none is the default.",
            next_step="Write the one of training into a file and name it with --template FILE.",
        )
    return named.get("default"), named.get("tool_use")


def _special_tokens(files: Mapping[str, Path]) -> dict[str, str] | None:
    """The special tokens by name; None where no file tells of them."""
    paths = [
        files[name] for name in (_TOKENIZER_CONFIG, "special_tokens_map.json") if name in files
    ]
    if not paths:
        return None
    tokens: dict[str, str] = {}
    for values in reversed([read_json(path) for path in paths]):
        for name in (f"{stem}_token" for stem in _SPECIAL_TOKENS):
            if name in values:
                tokens.pop(name, None)
                if (text := token_text(values[name])) is not None:
                    tokens[name] = text
    return tokens


def token_text(value: object) -> str | None:
    """The text of a token that a configuration gives as a string or as an `AddedToken`."""
    match value:
        case str(text) | {"content": str(text)}:
            return text
    return None


def _read_template(path: Path) -> str:
    return read_text(path, "Save it as UTF-8 text, or name another file with --template FILE.")


def parse_chat_template(source: str, origin: str) -> nodes.Template:
    """The syntax tree of a chat template.

    Raises:
        ChatTemplateError: if it is not Jinja.
    """
    try:
        return _environment().parse(source)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(
            f"The chat template ({origin}) is not Jinja: {error}",
            next_step="Mend the template, or name another file with --template FILE.",
        ) from error


@cache
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@cache
def _environment() -> jinja2.Environment:
    """The environment that transformers gives to chat templates, sandboxed as there."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}`, which marks what the loss is computed on; rendering goes through it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_through"), [], [], body).set_lineno(line)

    def _through(self, caller: Callable[[], str]) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: unlike Jinja's own filter, it leaves `<`, `>` and `&` as they are."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
