"""The GGUF's own chat template, changed so that a server renders the training prompt with it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2 import meta, nodes

from packager.prompt.chat_template import ChatTemplate, parse_chat_template
from packager.prompt.conversation import BATTERY, Conversation
from packager.prompt.server import as_native_server, claims_thinking, server_variables

# Ollama's `create` gives a model the TEMPLATE of the most similar chat template that it knows, if
# fewer than 100 characters differ. A comment of 100 characters that occur in none of them prevents
# that, and renders nothing.
PADDING = "{#" + "~" * 100 + "#}\n"

# llama-server trims every message before it renders a chat template that contains this
# (`common_chat_templates_apply_jinja`, for StepFun).
_CAUSES_TRIMMING = "You have access to the following functions in JSONSchema format"
# llama-server rewrites tool results for a chat template that contains the first of these and not
# the second (`convert_tool_responses_gemma4`, for the first chat templates of Gemma 4).
_CAUSES_REWRITING = "'<|tool_call>call:'"
_PREVENTS_REWRITING = "{#- OpenAI Chat Completions:"
_THINKING = "enable_thinking"
# A server writes `required` before `properties`. transformers' `get_json_schema`, and so most
# training, writes it after. (One line, because nothing of it may be rendered.)
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
    """A chat template for a GGUF, with which a server renders the training prompts.

    Attributes:
        chat_template: the training chat template with the additions.
        pins: each variable that is set at its beginning, and the value in Jinja's notation.
        notes: what else was changed, in words.
        differences: the names of core conversations that a server would still render differently.
    """

    chat_template: ChatTemplate
    pins: Mapping[str, str]
    notes: tuple[str, ...]
    differences: tuple[str, ...]

    @property
    def gguf_chat_template(self) -> str:
        """The text for `tokenizer.chat_template`, which Ollama recognises as none of its own."""
        return PADDING + self.chat_template.source


def make_native(
    chat_template: ChatTemplate, conversations: Sequence[Conversation] = BATTERY
) -> NativeTemplate:
    """Set the fewest variables in a chat template that make a server render the training prompts.

    Args:
        chat_template: the training chat template.
        conversations: those whose prompts should be equal. Those that choose whether to think are
            left out, since a variable that is set leaves no choice; so are begun answers.
    """
    conversations = [conversation for conversation in conversations if _is_compared(conversation)]
    variables = _variables_used(chat_template)
    servers = [variables]
    if _THINKING in variables and not claims_thinking(chat_template.source):
        # Then Ollama does not set it, and llama-server guesses what the model can do.
        servers.append(variables | {_THINKING: False})
    expected = [chat_template.prompt_or_none(conversation) for conversation in conversations]

    def differences(candidate: ChatTemplate) -> set[str]:
        return {
            conversation.name
            for variables in servers
            for conversation, prompt in zip(conversations, expected, strict=True)
            if prompt is not None and prompt != candidate.prompt_or_none(conversation, variables)
        }

    names = [
        name for name in sorted(variables) if _matters(chat_template, conversations, servers, name)
    ]
    pinned = _fewest_pins(chat_template, names, differences)
    changed = _without_triggers(pinned.chat_template)
    ordered = _with_tools_in_order(chat_template, changed.chat_template, conversations)
    notes = changed.notes
    if ordered is not changed.chat_template:
        notes = (*notes, "the keys of tools are put back into their training order")
    return NativeTemplate(
        chat_template=replace(ordered, variables={}),
        pins=pinned.pins,
        notes=notes,
        differences=tuple(
            conversation.name
            for conversation in conversations
            if conversation.name in pinned.differences and conversation.kind == "core"
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
    """Whether a prompt depends on a variable: if it is defined, or if it is true or false."""
    for variables in servers:
        others = {key: value for key, value in variables.items() if key != name}
        settings = [variables, others, *({**others, name: value} for value in (True, False))]
        for conversation in conversations:
            if len({chat_template.prompt_or_none(conversation, each) for each in settings}) > 1:
                return True
    return False


@dataclass(frozen=True)
class _Pinned:
    """A chat template with pins, and the names of the conversations that still differ."""

    chat_template: ChatTemplate
    pins: Mapping[str, str]
    differences: set[str]


def _fewest_pins(
    chat_template: ChatTemplate,
    names: Sequence[str],
    differences: Callable[[ChatTemplate], set[str]],
) -> _Pinned:
    """The chat template with the pins that leave the fewest conversations different."""
    best: _Pinned | None = None
    for pins in _pin_choices(chat_template, names):
        candidate = _with_pins(chat_template, pins)
        pinned = _Pinned(candidate, pins, differences(candidate))
        if best is None or len(pinned.differences) < len(best.differences):
            best = pinned
        if not pinned.differences:
            break
    assert best is not None
    return best


def _variables_used(chat_template: ChatTemplate) -> dict[str, object]:
    """The server's variables that the chat template uses."""
    names: set[str] = set()
    for source in filter(None, (chat_template.source, chat_template.tool_use)):
        tree = parse_chat_template(source, chat_template.origin)
        names |= meta.find_undeclared_variables(tree)
        # A chat template that sets a missing variable itself uses it, too.
        names |= {name.name for name in tree.find_all(nodes.Name)}
    return {name: value for name, value in server_variables().items() if name in names}


def _pin_choices(chat_template: ChatTemplate, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Each possible set of pins, the smallest sets first."""
    values = {name: _pin_values(chat_template, name) for name in names}
    for number in range(len(names) + 1):
        for subset in itertools.combinations(names, number):
            for combination in itertools.product(*(values[name] for name in subset)):
                yield dict(zip(subset, combination, strict=True))


def _pin_values(chat_template: ChatTemplate, name: str) -> tuple[str, ...]:
    """The values that a variable can be pinned to; first those that the chat template sets."""
    own: list[str] = []
    for source in filter(None, (chat_template.source, chat_template.tool_use)):
        for assignment in parse_chat_template(source, chat_template.origin).find_all(nodes.Assign):
            match assignment.target, assignment.node:
                case nodes.Name(name=target), nodes.Const(value=str(text)) if target == name:
                    own.append('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')
    return (*dict.fromkeys(own), "false", "true", "none")


def _with_pins(chat_template: ChatTemplate, pins: Mapping[str, str]) -> ChatTemplate:
    # Jinja removes the line end after a block (`trim_blocks`), and must remove nothing else.
    lines = "".join(f"{{% set {name} = {value} %}}\n" for name, value in pins.items())
    return _preceded_by(lines, chat_template) if lines else chat_template


def _preceded_by(lines: str, chat_template: ChatTemplate) -> ChatTemplate:
    tool_use = chat_template.tool_use
    return replace(
        chat_template,
        source=lines + chat_template.source,
        tool_use=lines + tool_use if tool_use else tool_use,
    )


@dataclass(frozen=True)
class _Changed:
    """A chat template that renders as before, and what was changed in it."""

    chat_template: ChatTemplate
    notes: tuple[str, ...]


def _without_triggers(chat_template: ChatTemplate) -> _Changed:
    """The chat template without the phrases that make the server change messages."""
    notes = []
    source = chat_template.source
    if _CAUSES_REWRITING in source and _PREVENTS_REWRITING not in source:
        chat_template = replace(chat_template, source=f"{_PREVENTS_REWRITING} #}}\n{source}")
        notes.append("a comment keeps the server from rewriting tool results")
    if _CAUSES_TRIMMING in source and (untrimmed := _without_trimming(chat_template)):
        chat_template = untrimmed
        notes.append("a phrase that makes the server trim messages is split")
    return _Changed(chat_template, tuple(notes))


def _with_tools_in_order(
    trained: ChatTemplate, chat_template: ChatTemplate, conversations: Sequence[Conversation]
) -> ChatTemplate:
    """The chat template that reorders the keys of tools, if this makes more prompts equal."""
    ordered = _preceded_by(_TOOLS_IN_ORDER, chat_template)

    def equal(candidate: ChatTemplate) -> set[str]:
        return {
            conversation.name
            for conversation in conversations
            if (prompt := trained.prompt_or_none(conversation)) is not None
            and prompt == candidate.prompt_or_none(as_native_server(conversation), {})
        }

    return ordered if equal(chat_template) < equal(ordered) else chat_template


def _without_trimming(chat_template: ChatTemplate) -> ChatTemplate | None:
    """The chat template with that phrase split; None if it then renders other prompts."""
    middle = len(_CAUSES_TRIMMING) // 2
    head, tail = _CAUSES_TRIMMING[:middle], _CAUSES_TRIMMING[middle:]
    prompts = [chat_template.prompt_or_none(conversation) for conversation in BATTERY]
    # In plain text, or in a string of either kind.
    for split in (head + "{##}" + tail, f'{head}" ~ "{tail}', f"{head}' ~ '{tail}"):
        source = chat_template.source.replace(_CAUSES_TRIMMING, split)
        candidate = replace(chat_template, source=source)
        if [candidate.prompt_or_none(conversation) for conversation in BATTERY] == prompts:
            return candidate
    return None
