"""An Ollama template (Go), derived from what a chat template renders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import Conversation, Message

# Contents that no chat template writes by itself; the prompt is split at them.
_MARK = "9d27-{}-4f1c"
# The roles of conversations that together contain every pair of neighbouring roles. No role follows
# itself, because Ollama joins turns of one role in a row. Unusual ones come last.
_USUAL = ("u", "uauau", "su", "suauau")
_UNUSUAL = ("uasu", "usau", "au", "asu", "sau")
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
_START = ""

Pair = tuple[str, str]


def derive_ollama_templates(chat_template: ChatTemplate) -> Iterator[str]:
    """Ollama templates that write the text before each turn as `chat_template` does.

    They assume that the text between two contents depends only on the roles of both turns, so the
    caller must compare their prompts. They differ in system turns after the first turn: these stay
    in place, are omitted, or are joined at the beginning. There are no templates if a prompt does
    not consist of its turns in order.
    """
    pieces = _find_pieces(chat_template)
    if pieces is None:
        return
    before, end = pieces.before, pieces.end
    omits_empty = _omits_empty_systems(chat_template)
    first = {pair: text for pair, text in before.items() if pair[1] != "system" or not pair[0]}
    yield _with_systems_in_place(before, end, ".Content" if omits_empty else "")
    if (_START, "system") in before:
        yield _with_systems_in_place(
            first, end, 'and .Content (eq $before "")' if omits_empty else 'eq $before ""'
        )
        yield _with_systems_first(first, end)


@dataclass(frozen=True)
class _Pieces:
    """The parts of a chat template's prompts around the contents of turns.

    Attributes:
        before: the text before a turn's content, by the role of the previous turn and its own.
        end: the text after the last turn.
    """

    before: Mapping[Pair, str]
    end: str


def _find_pieces(chat_template: ChatTemplate) -> _Pieces | None:
    """The pieces of a chat template's prompts; None if they contradict one another."""
    before: dict[Pair, str] = {}
    ends: set[str] = set()
    for roles in (*_USUAL, *_UNUSUAL):
        pieces = _pieces_of(chat_template, roles)
        if pieces is None:
            if roles in ("u", "uauau"):
                return None
            continue
        names = [_ROLES[role] for role in roles]
        own = dict[Pair, str]()
        for pair, piece in zip(pairwise((_START, *names)), pieces, strict=False):
            if own.setdefault(pair, before.get(pair, piece)) != piece:
                break
        else:
            before |= own
            ends.add(pieces[-1])
            continue
        if roles in _USUAL:
            return None
    if len(ends) != 1:
        return None
    return _Pieces(before, ends.pop())


def _pieces_of(chat_template: ChatTemplate, roles: str) -> list[str] | None:
    """The pieces of a prompt whose turns have these roles; None if it cannot be split."""
    contents = [_MARK.format(number) for number in range(len(roles))]
    messages: list[Message] = [
        {"role": _ROLES[role], "content": content}
        for role, content in zip(roles, contents, strict=True)
    ]
    prompt = _prompt(chat_template, messages)
    return None if prompt is None else _pieces(prompt, contents)


def _prompt(chat_template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    prompt = chat_template.prompt_or_none(Conversation("", tuple(messages)))
    return None if prompt is None else prompt.removeprefix(chat_template.bos_token or "")


def _pieces(prompt: str, contents: Sequence[str]) -> list[str] | None:
    """The text before each content, and after the last one; None if a content is missing."""
    pieces = []
    for content in contents:
        piece, match, prompt = prompt.partition(content)
        if not match:
            return None
        pieces.append(piece)
    return None if any(content in prompt for content in contents) else [*pieces, prompt]


def _omits_empty_systems(chat_template: ChatTemplate) -> bool:
    user: Message = {"role": "user", "content": _MARK.format(0)}
    empty: Message = {"role": "system", "content": ""}
    with_empty = _prompt(chat_template, [empty, user])
    return with_empty is not None and with_empty == _prompt(chat_template, [user])


def _with_systems_in_place(before: Mapping[Pair, str], end: str, kept: str) -> str:
    """The Ollama template; it renders a system turn under the condition `kept` (Go)."""
    body = _turns(before, ("system", "user", "assistant"))
    if kept:
        condition = kept if " " not in kept else f"({kept})"
        body = [f'{{{{- if or (ne .Role "system") {condition} }}}}', *body, "{{- end }}"]
    return "\n".join(
        ['{{- $before := "" }}', "{{- range .Messages }}", *body, "{{- end }}", *_end(end)]
    )


def _with_systems_first(before: Mapping[Pair, str], end: str) -> str:
    opened = [f"{{{{- {quoted(text)} }}}}" if (text := before[_START, "system"]) else ""]
    first = ["{{- if .System }}", *filter(None, opened), "{{- .System }}"]
    first += ['{{- $before = "system" }}', "{{- end }}"]
    body = ['{{- if ne .Role "system" }}', *_turns(before, ("user", "assistant")), "{{- end }}"]
    return "\n".join(
        ['{{- $before := "" }}', *first, "{{- range .Messages }}", *body, "{{- end }}", *_end(end)]
    )


def _turns(before: Mapping[Pair, str], roles: Sequence[str]) -> list[str]:
    lines: list[str] = []
    keyword = "if"
    for role in roles:
        pieces = {previous: text for (previous, this), text in before.items() if this == role}
        if not pieces:
            continue
        lines += [f'{{{{- {keyword} eq .Role "{role}" }}}}', *_choice(pieces), "{{- .Content }}"]
        keyword = "else if"
    return [*lines, "{{- end }}", "{{- $before = .Role }}"]


def _end(end: str) -> list[str]:
    if not end:
        return []
    return ['{{- if ne $before "assistant" }}', f"{{{{- {quoted(end)} }}}}", "{{- end }}"]


def _choice(pieces: Mapping[str, str]) -> list[str]:
    """The text before a turn, by the role of the previous turn; the most frequent text last."""
    texts = list(pieces.values())
    usual = max(dict.fromkeys(texts), key=texts.count)
    lines: list[str] = []
    for previous, text in pieces.items():
        if text != usual:
            keyword = "else if" if lines else "if"
            lines.append(f'{{{{- {keyword} eq $before "{previous}" }}}}')
            lines += [f"{{{{- {quoted(text)} }}}}"] if text else []
    if not lines:
        return [f"{{{{- {quoted(usual)} }}}}"] if usual else []
    if usual:
        lines += ["{{- else }}", f"{{{{- {quoted(usual)} }}}}"]
    return [*lines, "{{- end }}"]


def quoted(text: str) -> str:
    """A text as a Go string literal, in characters that a Modelfile keeps."""
    written = "".join(_ESCAPED.get(c) or (c if c.isprintable() else _escape(c)) for c in text)
    return f'"{written}"'


_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
