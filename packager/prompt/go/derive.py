"""An Ollama (Go) template, derived from what a chat template renders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from packager.prompt.chat_template import ChatTemplate
from packager.prompt.conversation import Conversation, Message
from packager.prompt.native import prompt_or_none

# Contents that no template writes by itself; a prompt is cut at them.
_MARK = "9d27-{}-4f1c"
# Which turns follow which, in conversations that between them show every pair. Ollama joins turns
# of one role in a row, so that no role follows itself. The odd ones are looked at last.
_USUAL = ("u", "uauau", "su", "suauau")
_ODD = ("uasu", "usau", "au", "asu", "sau")
_ROLES = {"s": "system", "u": "user", "a": "assistant"}
_START = ""

Pair = tuple[str, str]


def derive_ollama_templates(chat_template: ChatTemplate) -> Iterator[str]:
    """Templates that write what stands before each turn in the prompts of `chat_template`.

    What stands between two contents is taken to depend on the roles of both turns alone: whoever
    calls this has to prove the results. They differ in what becomes of system turns after the
    first turn: kept where they are, left out, or put together before everything else. There is
    none where a prompt does not consist of its turns in their order.
    """
    found = _find_pieces(chat_template)
    if found is None:
        return
    before, end = found
    leaves_out = _leaves_empty_systems_out(chat_template)
    first = {pair: text for pair, text in before.items() if pair[1] != "system" or not pair[0]}
    yield _written(before, end, ".Content" if leaves_out else "")
    if (_START, "system") in before:
        yield _written(
            first, end, 'and .Content (eq $before "")' if leaves_out else 'eq $before ""'
        )
        yield _written_system_first(first, end)


def _find_pieces(chat_template: ChatTemplate) -> tuple[dict[Pair, str], str] | None:
    """What stands before a turn, by the roles of the turn before and its own; and the end."""
    before: dict[Pair, str] = {}
    ends: set[str] = set()
    for roles in (*_USUAL, *_ODD):
        pieces = _pieces_of(chat_template, roles)
        if pieces is None:
            if roles in ("u", "uauau"):
                return None
            continue
        names = [_ROLES[role] for role in roles]
        found = dict[Pair, str]()
        for pair, piece in zip(pairwise((_START, *names)), pieces, strict=False):
            if found.setdefault(pair, before.get(pair, piece)) != piece:
                break
        else:
            before |= found
            ends.add(pieces[-1])
            continue
        if roles in _USUAL:
            return None
    if len(ends) != 1:
        return None
    return before, ends.pop()


def _pieces_of(chat_template: ChatTemplate, roles: str) -> list[str] | None:
    """The pieces of the prompt of turns of these roles."""
    contents = [_MARK.format(number) for number in range(len(roles))]
    messages: list[Message] = [
        {"role": _ROLES[role], "content": content}
        for role, content in zip(roles, contents, strict=True)
    ]
    prompt = _prompt(chat_template, messages)
    return None if prompt is None else _pieces(prompt, contents)


def _prompt(chat_template: ChatTemplate, messages: Sequence[Message]) -> str | None:
    prompt = prompt_or_none(chat_template, Conversation("", tuple(messages)))
    return None if prompt is None else prompt.removeprefix(chat_template.bos_token or "")


def _pieces(prompt: str, contents: Sequence[str]) -> list[str] | None:
    """What stands before each content, and what after the last; None where one is missing."""
    pieces = []
    for content in contents:
        piece, found, prompt = prompt.partition(content)
        if not found:
            return None
        pieces.append(piece)
    return None if any(content in prompt for content in contents) else [*pieces, prompt]


def _leaves_empty_systems_out(chat_template: ChatTemplate) -> bool:
    user: Message = {"role": "user", "content": _MARK.format(0)}
    empty: Message = {"role": "system", "content": ""}
    with_empty = _prompt(chat_template, [empty, user])
    return with_empty is not None and with_empty == _prompt(chat_template, [user])


def _written(before: Mapping[Pair, str], end: str, kept: str) -> str:
    """The template; `kept` is a condition (Go) under which a system turn is rendered."""
    body = _turns(before, ("system", "user", "assistant"))
    if kept:
        condition = kept if " " not in kept else f"({kept})"
        body = [f'{{{{- if or (ne .Role "system") {condition} }}}}', *body, "{{- end }}"]
    return "\n".join(
        ['{{- $before := "" }}', "{{- range .Messages }}", *body, "{{- end }}", *_end(end)]
    )


def _written_system_first(before: Mapping[Pair, str], end: str) -> str:
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
    """The text before a turn, by the role of the turn before it; the most frequent one last."""
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
    """A text as a string of Go, in characters that a Modelfile keeps."""
    written = "".join(_ESCAPED.get(c) or (c if c.isprintable() else _escape(c)) for c in text)
    return f'"{written}"'


_ESCAPED = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
