"""The GGUF's own chat template, made to render on a server what it rendered in training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2 import meta, nodes

from packager.errors import ChatTemplateError
from packager.prompt.chat_template import ChatTemplate, parse_chat_template
from packager.prompt.conversation import BATTERY, Conversation
from packager.prompt.server import as_native_server, claims_thinking, server_variables

# Ollama's `create` gives a model the TEMPLATE of the known chat template that is nearest to its
# own, if fewer than 100 characters have to be changed. A comment of 100 characters that occur in
# none of them keeps every one of them away, and renders as nothing.
PADDING = "{#" + "~" * 100 + "#}\n"

# What makes llama-server trim every message before it renders a template that says this
# (`common_chat_templates_apply_jinja`, for StepFun).
_TRIMMED_WHERE_SAID = "You have access to the following functions in JSONSchema format"
# What makes it write tool results anew, unless the template says the second
# (`convert_tool_responses_gemma4`, for the first templates of Gemma 4).
_REWRITTEN_WHERE_SAID = "'<|tool_call>call:'"
_LEFT_WHERE_SAID = "{#- OpenAI Chat Completions:"
_THINKING = "enable_thinking"
# A server writes `required` before `properties`; transformers' `get_json_schema`, and with it most
# training, the other way round. (One line: nothing of it is rendered.)
_TOOLS_IN_ORDER = """\
{% if tools %}{% set ordered = namespace(tools=[]) %}{% for tool in tools %}\
{% if tool.function is defined and tool.function.parameters is defined \
and tool.function.parameters.required is defined \
and tool.function.parameters.properties is defined \
and tool.function.parameters | length == 3 and tool.function.description is defined %}\
{% set ordered.tools = ordered.tools + [{"type": tool.type, "function": {\
"name": tool.function.name, "description": tool.function.description, \
"parameters": {"type": tool.function.parameters.type, \
"properties": tool.function.parameters.properties, \
"required": tool.function.parameters.required}}}] %}\
{% else %}{% set ordered.tools = ordered.tools + [tool] %}{% endif %}\
{% endfor %}{% set tools = ordered.tools %}{% endif %}
"""


@dataclass(frozen=True)
class NativeTemplate:
    """What goes into a GGUF so that a server renders as in training.

    Attributes:
        chat_template: with what is put before it.
        pins: each variable that is set beforehand, and its value as Jinja has it.
        notes: what else was changed, in words.
        differing: the names of core conversations that a server would still render otherwise.
    """

    chat_template: ChatTemplate
    pins: Mapping[str, str]
    notes: tuple[str, ...]
    differing: tuple[str, ...]

    @property
    def gguf_chat_template(self) -> str:
        """The text for `tokenizer.chat_template`, which Ollama takes for none that it knows."""
        return PADDING + self.chat_template.source


def make_native(
    chat_template: ChatTemplate, conversations: Sequence[Conversation] = BATTERY
) -> NativeTemplate:
    """Set the fewest variables before a chat template that make a server render as in training.

    Args:
        chat_template: the one of training.
        conversations: what is to be rendered alike. Of a choice whether to think, and of begun
            answers, nothing is asked: a variable that is set leaves no choice.
    """
    conversations = [conversation for conversation in conversations if _is_compared(conversation)]
    asked_for = _asked_for(chat_template)
    servers = [asked_for]
    if _THINKING in asked_for and not claims_thinking(chat_template.source):
        # Ollama says nothing of thinking then, and llama-server guesses what the model can do.
        servers.append(asked_for | {_THINKING: False})
    expected = [prompt_or_none(chat_template, conversation) for conversation in conversations]

    def differing(made_by: ChatTemplate) -> set[str]:
        return {
            conversation.name
            for variables in servers
            for conversation, prompt in zip(conversations, expected, strict=True)
            if prompt is not None and prompt != prompt_or_none(made_by, conversation, variables)
        }

    mattering = [
        name for name in sorted(asked_for) if _matters(chat_template, conversations, servers, name)
    ]
    pins, wrong = _fewest_pins(chat_template, mattering, differing)
    pinned = _pinned(chat_template, pins)
    undisturbed, notes = _undisturbed(pinned)
    ordered = _with_tools_in_order(chat_template, undisturbed, conversations)
    if ordered is not undisturbed:
        notes = (*notes, "tools are put back into the order of training")
    return NativeTemplate(
        chat_template=replace(ordered, variables={}),
        pins=pins,
        notes=notes,
        differing=tuple(
            conversation.name
            for conversation in conversations
            if conversation.name in wrong and conversation.kind == "core"
        ),
    )


def _is_compared(conversation: Conversation) -> bool:
    return conversation.thinking is None and conversation.kind != "prefill"


def _matters(
    chat_template: ChatTemplate,
    conversations: Sequence[Conversation],
    servers: Sequence[Mapping[str, object]],
    name: str,
) -> bool:
    """Whether a prompt depends on a variable: on its being defined, or on being true or false."""
    for variables in servers:
        others = {key: value for key, value in variables.items() if key != name}
        tellings = [variables, others, *({**others, name: value} for value in (True, False))]
        for conversation in conversations:
            if len({prompt_or_none(chat_template, conversation, told) for told in tellings}) > 1:
                return True
    return False


def _fewest_pins(
    chat_template: ChatTemplate,
    names: Sequence[str],
    differing: Callable[[ChatTemplate], set[str]],
) -> tuple[dict[str, str], set[str]]:
    """The pins that leave the fewest conversations differing, and those conversations."""
    best: tuple[dict[str, str], set[str]] | None = None
    for pins in _choices(chat_template, names):
        wrong = differing(_pinned(chat_template, pins))
        if best is None or len(wrong) < len(best[1]):
            best = pins, wrong
        if not wrong:
            break
    assert best is not None
    return best


def _asked_for(chat_template: ChatTemplate) -> dict[str, object]:
    """The server's variables that the template looks at."""
    names: set[str] = set()
    for source in filter(None, (chat_template.source, chat_template.tool_use)):
        tree = parse_chat_template(source, chat_template.origin)
        names |= meta.find_undeclared_variables(tree)
        # A template that sets a variable where it is missing looks at it, too.
        names |= {name.name for name in tree.find_all(nodes.Name)}
    return {name: value for name, value in server_variables().items() if name in names}


def _choices(chat_template: ChatTemplate, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Each set of pins that is worth trying, the smallest sets first."""
    values = {name: _values(chat_template, name) for name in names}
    for number in range(len(names) + 1):
        for chosen in itertools.combinations(names, number):
            for combination in itertools.product(*(values[name] for name in chosen)):
                yield dict(zip(chosen, combination, strict=True))


def _values(chat_template: ChatTemplate, name: str) -> tuple[str, ...]:
    """The values that a variable may be meant to have: what the template itself gives it first."""
    own: list[str] = []
    for source in filter(None, (chat_template.source, chat_template.tool_use)):
        for assignment in parse_chat_template(source, chat_template.origin).find_all(nodes.Assign):
            match assignment.target, assignment.node:
                case nodes.Name(name=target), nodes.Const(value=str(text)) if target == name:
                    own.append('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return (*dict.fromkeys(own), "false", "true", "none")


def _pinned(chat_template: ChatTemplate, pins: Mapping[str, str]) -> ChatTemplate:
    # The line end after a block is taken off by Jinja (`trim_blocks`): nothing else may be.
    lines = "".join(f"{{% set {name} = {value} %}}\n" for name, value in pins.items())
    return _preceded(chat_template, lines) if lines else chat_template


def _preceded(chat_template: ChatTemplate, lines: str) -> ChatTemplate:
    tool_use = chat_template.tool_use
    return replace(
        chat_template,
        source=lines + chat_template.source,
        tool_use=lines + tool_use if tool_use else tool_use,
    )


def _undisturbed(chat_template: ChatTemplate) -> tuple[ChatTemplate, tuple[str, ...]]:
    """The same template without what makes the server change messages, and what was done."""
    notes = []
    source = chat_template.source
    if _REWRITTEN_WHERE_SAID in source and _LEFT_WHERE_SAID not in source:
        chat_template = replace(chat_template, source=f"{_LEFT_WHERE_SAID} #}}\n{source}")
        notes.append("a comment keeps the server from writing tool results anew")
    if _TRIMMED_WHERE_SAID in source and (untrimmed := _untrimmed(chat_template)):
        chat_template = untrimmed
        notes.append("a phrase is split that makes the server trim messages")
    return chat_template, tuple(notes)


def _with_tools_in_order(
    trained: ChatTemplate, chat_template: ChatTemplate, conversations: Sequence[Conversation]
) -> ChatTemplate:
    """The template with tools' schemas put back in order, where that makes more prompts equal."""
    ordered = _preceded(chat_template, _TOOLS_IN_ORDER)

    def equal(made_by: ChatTemplate) -> list[str]:
        return [
            conversation.name
            for conversation in conversations
            if (prompt := prompt_or_none(trained, conversation)) is not None
            and prompt == prompt_or_none(made_by, as_native_server(conversation), {})
        ]

    before, after = equal(chat_template), equal(ordered)
    return ordered if set(before) < set(after) else chat_template


def _untrimmed(chat_template: ChatTemplate) -> ChatTemplate | None:
    middle = len(_TRIMMED_WHERE_SAID) // 2
    head, tail = _TRIMMED_WHERE_SAID[:middle], _TRIMMED_WHERE_SAID[middle:]
    before = [prompt_or_none(chat_template, conversation) for conversation in BATTERY]
    # As plain text, or inside a string of either kind.
    for split in (head + "{##}" + tail, f'{head}" ~ "{tail}', f"{head}' ~ '{tail}"):
        source = chat_template.source.replace(_TRIMMED_WHERE_SAID, split)
        other = replace(chat_template, source=source)
        if [prompt_or_none(other, conversation) for conversation in BATTERY] == before:
            return other
    return None


def prompt_or_none(
    chat_template: ChatTemplate,
    conversation: Conversation,
    variables: Mapping[str, object] | None = None,
) -> str | None:
    """The prompt of a conversation; None where the chat template refuses it."""
    try:
        return chat_template.prompt(conversation, variables)
    except ChatTemplateError:
        return None
