"""The training chat template, rendered as transformers renders it."""

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
from packager.prompt.conversation import Conversation
from packager.runtime.api_message import REASONING_FIELDS

# The most steps of all loops over a `range` in one rendering; real chat templates take at most one
# for each message.
_FIX_TEMPLATE = "Fix the chat template, or name another file with --template FILE."
_MAX_STEPS = 1_000_000
# Added to the text that the model should continue, to find its end in the prompt. If the chat
# template strips white space at its end, the last space is missing there.
_CONTINUED = "4f1c-continued-9d27 "


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template, with the special tokens that it can name.

    Attributes:
        source: the Jinja text.
        origin: the file that it comes from, for messages.
        bos_token: the tokenizer's BOS, as text.
        eos_token: the tokenizer's EOS, as text.
        other_tokens: further tokens by their names in a chat template (`pad_token`).
        tool_use: the separate Jinja text for conversations with tools, if there is one.
        variables: further variables that training set (`enable_thinking`).
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
        """The prompt of a conversation as text: the result of transformers' `apply_chat_template`.

        It ends where the answer begins (`add_generation_prompt`), or with the text of a begun
        answer (`continue_final_message`).

        Args:
            conversation: the turns, the tools, and whether to think.
            variables: further variables, instead of those that training set.

        Raises:
            ChatTemplateError: if the chat template is not valid Jinja, fails, or refuses the
                conversation.
        """
        variables = dict(self.variables if variables is None else variables)
        if conversation.thinking is not None:
            variables["enable_thinking"] = conversation.thinking
        messages = conversation.messages
        if not conversation.is_begun:
            return self.render(
                messages, add_generation_prompt=True, tools=conversation.tools, variables=variables
            )
        text = conversation.begun_answer
        tagged = (*messages[:-1], {**messages[-1], "content": text + _CONTINUED})
        rendered = self.render(
            tagged, add_generation_prompt=False, tools=conversation.tools, variables=variables
        )
        before, tag, after = rendered.rpartition(_CONTINUED.rstrip())
        if not tag or text.strip() not in rendered:
            raise self._failure("it omits parts of the answer that the model should continue")
        return before if after.startswith(" ") else before.rstrip()

    def prompt_or_none(
        self, conversation: Conversation, variables: Mapping[str, object] | None = None
    ) -> str | None:
        """The prompt of a conversation; None if the chat template refuses it."""
        try:
            return self.prompt(conversation, variables)
        except ChatTemplateError:
            return None

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
            ChatTemplateError: if the chat template is not valid Jinja, fails, or refuses the
                conversation.
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
        # A chat template is a program, and Jinja passes on whatever Python raises in it.
        except Exception as error:
            raise self._failure(str(error)) from error

    def _failure(self, why: str) -> ChatTemplateError:
        return ChatTemplateError(
            f"The chat template ({self.origin}) does not render: {why}", next_step=_FIX_TEMPLATE
        )


class _Ranges:
    """Jinja's `range` with a limit: a few nested loops of a stranger's could run for years."""

    def __init__(self) -> None:
        self._left = _MAX_STEPS

    def __call__(self, *bounds: int) -> range:
        numbers = range(*bounds)
        self._left -= len(numbers)
        if self._left < 0:
            raise ValueError(f"its loops take more than {_MAX_STEPS:,} steps")
        return numbers


def _with_reasoning(message: Mapping[str, object]) -> dict[str, object]:
    """The message with its reasoning under the names of chat templates, as in transformers."""
    values = (message[name] for name in REASONING_FIELDS if message.get(name) is not None)
    reasoning = next(values, None)
    if reasoning is None:
        return dict(message)
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


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
        None if no file contains one.

    Raises:
        ChatTemplateError: if a file has several and none is the default.
        CorruptFileError: if a file is not valid.
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
        ChatTemplateError: if it is not valid Jinja.
    """
    try:
        return _environment().parse(source)
    except jinja2.TemplateError as error:
        raise ChatTemplateError(
            f"The chat template ({origin}) is not valid Jinja: {error}", next_step=_FIX_TEMPLATE
        ) from error


@cache
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@cache
def _environment() -> jinja2.Environment:
    """The sandboxed environment in which transformers renders chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """`{% generation %}`: it marks what the loss is computed on, and renders its body."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render_body"), [], [], body).set_lineno(line)

    def _render_body(self, caller: Callable[[], str]) -> str:
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
    """The `tojson` of transformers: unlike Jinja's own, it does not escape `<`, `>` and `&`."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )
