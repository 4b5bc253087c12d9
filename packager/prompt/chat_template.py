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

from packager.errors import ChatTemplateError
from packager.model.model_file import ModelFile
from packager.model.template_files import (
    TemplateText,
    find_template,
    read_template_file,
    special_tokens,
)
from packager.prompt.conversation import REASONING_FIELDS, Conversation

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
    adapter_files: Mapping[str, ModelFile],
    base_files: Mapping[str, ModelFile],
    override: Path | None,
) -> ChatTemplate | None:
    """The training chat template: `override`, else the adapter's, else the base's.

    Args:
        adapter_files: the files of the fine-tune (adapter or full model), by name.
        base_files: those of the base; empty for a full model.
        override: a Jinja file that the user named.

    Returns:
        None if there is none anywhere.

    Raises:
        ChatTemplateError: if there are several and none is the default.
        CorruptFileError: if a file cannot be read as what its name says.
    """
    text, origin = None, str(override)
    if override:
        text = TemplateText(read_template_file(override), None, str(override))
    for files, owner in ((adapter_files, "the fine-tune"), (base_files, "the base")):
        if text is None and (text := find_template(files)):
            origin = f"{text.file_name} of {owner}"
    if text is None:
        return None
    tokens = special_tokens(adapter_files) or special_tokens(base_files) or {}
    bos_token, eos_token = tokens.pop("bos_token", None), tokens.pop("eos_token", None)
    return ChatTemplate(text.source, origin, bos_token, eos_token, tokens, text.tool_use)


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
