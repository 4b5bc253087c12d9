"""Parse Go's template language: the part of `text/template` that Ollama templates use."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from packager.errors import ChatTemplateError


@dataclass(frozen=True)
class Literal:
    """A literal string, number, boolean or nil."""

    value: str | int | bool | None


@dataclass(frozen=True)
class Function:
    """A function's name; the rest of its command are the arguments."""

    name: str


@dataclass(frozen=True)
class Field:
    """`.A.B` of the current value; the value itself (`.`) without names."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Variable:
    """`$x.A.B`; the name includes the dollar sign."""

    name: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Pipe:
    """Commands; each gets the previous one's result as its last argument."""

    commands: tuple[tuple[Operand, ...], ...]
    variables: tuple[str, ...] = ()
    is_declaration: bool = False


@dataclass(frozen=True)
class Nested:
    """A pipe in parentheses, and the fields that are read from its result."""

    pipe: Pipe
    names: tuple[str, ...]


Operand = Literal | Function | Field | Variable | Nested


@dataclass(frozen=True)
class Text:
    """Text that is written unchanged."""

    text: str


@dataclass(frozen=True)
class Action:
    """A pipe whose result is written, unless variables get it."""

    pipe: Pipe


@dataclass(frozen=True)
class Jump:
    """`break` or `continue`."""

    keyword: str


@dataclass(frozen=True)
class Branch:
    """`if`, `with` or `range`, with its `else`."""

    keyword: str
    pipe: Pipe
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


Node = Text | Action | Jump | Branch

_WHITE_SPACE = " \t\r\n"
_TRIM_MARK = re.compile(r"-[ \t\r\n]")
_COMMENT = re.compile(r"/\*.*?\*/(\s+-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
  | (?P<end>\}\})
  | (?P<string>"(?:[^"\\\n]|\\[nrt"\\]|\\u[0-9a-fA-F]{4})*")
  | (?P<raw>`[^`]*`)
  | (?P<number>[+-]?[0-9]+(?![\w.]))
  | (?P<variable>\$\w*(?:\.[A-Za-z_]\w*)*)
  | (?P<field>(?:\.[A-Za-z_]\w*)+|\.)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<sign>:=|[=|(),])
    """,
    re.VERBOSE,
)
_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "nil": None}
_CLOSING = frozenset({"end", "else"})
_BRANCHES = frozenset({"if", "with", "range"})


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    is_spaced: bool


def parse_go_template(source: str) -> tuple[Node, ...]:
    """The nodes of a Go template.

    Raises:
        ChatTemplateError: if the text is not a valid template, or uses something that ftpack does
            not evaluate (`define`, `template`, `block`, method calls).
    """
    parser = _Parser(_split(source))
    nodes, closing = parser.nodes()
    if closing is not None:
        raise _error(f"unexpected {{{{ {closing} }}}}")
    return nodes


def _split(source: str) -> list[str | list[_Token]]:
    """Alternating texts (`str`) and actions (tokens), with white space trimmed as marked."""
    parts: list[str | list[_Token]] = []
    position, trims = 0, False
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        text = text.lstrip(_WHITE_SPACE) if trims else text
        if start < 0:
            parts.append(text)
            return parts
        position = start + 2
        if _TRIM_MARK.match(source, position):
            text = text.rstrip(_WHITE_SPACE)
            position += 2
        parts.append(text)
        if comment := _COMMENT.match(source, position):
            position, trims = comment.end(), comment.group(1) is not None
        else:
            tokens, position, trims = _scan(source, position)
            parts.append(tokens)


def _scan(source: str, position: int) -> tuple[list[_Token], int, bool]:
    """The tokens of one action, the position after it, and whether it trims the next text."""
    tokens: list[_Token] = []
    is_spaced = False
    while True:
        if is_spaced and source.startswith("-}}", position):
            return tokens, position + 3, True
        match = _TOKEN.match(source, position)
        if match is None or match.lastgroup is None:
            raise _error(f"cannot read {source[position : position + 20]!r}")
        position = match.end()
        if match.lastgroup == "end":
            return tokens, position, False
        if match.lastgroup != "space":
            tokens.append(_Token(match.lastgroup, match.group(), is_spaced))
        is_spaced = match.lastgroup == "space"


class _Parser:
    def __init__(self, parts: list[str | list[_Token]]) -> None:
        self._parts = parts
        self._at = 0
        self._tokens: list[_Token] = []

    def nodes(self) -> tuple[tuple[Node, ...], str | None]:
        """The nodes up to the end (`None`) or to a closing keyword, whose other tokens are kept."""
        nodes: list[Node] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            if isinstance(part, str):
                if part:
                    nodes.append(Text(part))
                continue
            self._tokens = list(part)
            keyword = self._peek("word")
            if keyword in _CLOSING:
                self._tokens.pop(0)
                return tuple(nodes), keyword
            nodes.append(self._node(keyword))
        return tuple(nodes), None

    def _node(self, keyword: str | None) -> Node:
        if keyword in _BRANCHES:
            self._tokens.pop(0)
            return self._branch(keyword)
        if keyword in ("break", "continue"):
            self._tokens.pop(0)
            self._finish()
            return Jump(keyword)
        pipe = self._pipe()
        self._finish()
        return Action(pipe)

    def _branch(self, keyword: str) -> Branch:
        pipe = self._pipe()
        self._finish()
        body, closing = self.nodes()
        otherwise: tuple[Node, ...] = ()
        if closing == "else":
            if keyword == "if" and self._peek("word") == "if":
                # `else if` shares the `end` of the first `if`.
                self._tokens.pop(0)
                return Branch(keyword, pipe, body, (self._branch(keyword),))
            self._finish()
            otherwise, closing = self.nodes()
        if closing != "end":
            raise _error(f"{{{{ {keyword} }}}} without an end")
        self._finish()
        return Branch(keyword, pipe, body, otherwise)

    def _pipe(self) -> Pipe:
        variables, is_declaration = self._variables()
        commands: list[tuple[Operand, ...]] = []
        while True:
            operands: list[Operand] = []
            while (operand := self._operand()) is not None:
                operands.append(operand)
            if not operands:
                raise _error("an empty command")
            commands.append(tuple(operands))
            if not self._take_sign("|"):
                return Pipe(tuple(commands), variables, is_declaration)

    def _variables(self) -> tuple[tuple[str, ...], bool]:
        """The variables of `$x :=`, `$x =` or `$i, $x :=` at the beginning of a pipe, if any."""
        for count in (1, 2):
            names, signs = self._tokens[: 2 * count : 2], self._tokens[1 : 2 * count : 2]
            spelled = [sign.text for sign in signs]
            if all(name.kind == "variable" for name in names) and (
                spelled in (["="], [":="]) if count == 1 else spelled in ([",", "="], [",", ":="])
            ):
                del self._tokens[: 2 * count]
                return tuple(name.text for name in names), spelled[-1] == ":="
        return (), False

    def _operand(self) -> Operand | None:  # noqa: C901 - one case for each kind of token
        if not self._tokens or self._tokens[0].text in ("|", ")"):
            return None
        token = self._tokens.pop(0)
        if token.kind == "string":
            return Literal(json.loads(token.text.replace("\t", "\\t")))
        if token.kind == "raw":
            return Literal(token.text[1:-1].replace("\r", ""))
        if token.kind == "number":
            return Literal(int(token.text))
        if token.kind == "field":
            return Field(_names(token.text))
        if token.kind == "variable":
            name, _, names = token.text.partition(".")
            return Variable(name, _names(names))
        if token.kind == "word":
            if token.text in _CONSTANTS:
                return Literal(_CONSTANTS[token.text])
            return Function(token.text)
        if token.text != "(":
            raise _error(f"unexpected {token.text!r}")
        pipe = self._pipe()
        if not self._take_sign(")"):
            raise _error("an unclosed parenthesis")
        if self._tokens and self._tokens[0].kind == "field" and not self._tokens[0].is_spaced:
            return Nested(pipe, _names(self._tokens.pop(0).text))
        return Nested(pipe, ())

    def _peek(self, kind: str) -> str | None:
        if self._tokens and self._tokens[0].kind == kind:
            return self._tokens[0].text
        return None

    def _take_sign(self, text: str) -> bool:
        if self._peek("sign") != text:
            return False
        self._tokens.pop(0)
        return True

    def _finish(self) -> None:
        if self._tokens:
            raise _error(f"unexpected {self._tokens[0].text!r}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(".")))


def _error(what: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"An Ollama (Go) template is not valid: {what}.",
        next_step="Use the GGUF's own chat template: --template native.",
    )
