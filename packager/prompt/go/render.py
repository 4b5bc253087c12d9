"""Render a conversation with an Ollama template (Go), as Ollama's `template.Execute` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from packager.errors import ChatTemplateError
from packager.prompt.go.syntax import (
    Action,
    Branch,
    Field,
    Function,
    Jump,
    Literal,
    Nested,
    Node,
    Operand,
    Pipe,
    Text,
    Variable,
    parse_go_template,
)
from packager.prompt.server import collate

# The fields that a conversation without tools, images and thinking does not set.
_EMPTY: Mapping[str, object] = {
    "Tools": None,
    "Suffix": "",
    "Response": "",
    "Think": False,
    "ThinkLevel": "",
    "IsThinkSet": False,
}
_EMPTY_MESSAGE: Mapping[str, object] = {
    "Thinking": "",
    "Images": (),
    "ToolCalls": (),
    "ToolName": "",
    "ToolCallID": "",
}


def render_go_template(source: str, messages: Sequence[Mapping[str, object]]) -> str:
    """The prompt that Ollama renders for a conversation (`role` and `content` of each message).

    Follows Ollama's `template.go`: messages of one role in a row become one, joined by a blank
    line; an Ollama template without `.Messages` is rendered once for each exchange.

    Raises:
        ChatTemplateError: if it uses something that ftpack does not evaluate.
    """
    nodes = _parse(source)
    used = {name.lower() for name in _field_names(nodes)}
    system, collated = _go_messages(messages)
    if "messages" in used:
        return _execute(nodes, {**_EMPTY, "System": system, "Messages": collated})
    if "response" not in used:
        nodes = (*nodes, Action(Pipe(((Field(("Response",)),),))))
    return _render_exchanges(nodes, collated)


@cache
def _parse(source: str) -> tuple[Node, ...]:
    nodes = parse_go_template(source)
    _check(nodes, {"$"}, is_in_range=False)
    return nodes


def _check(nodes: Sequence[Node], declared: set[str], *, is_in_range: bool) -> None:
    """Refuse what Go refuses before it runs: unknown variables, and jumps outside of a range."""
    for node in nodes:
        if isinstance(node, Action):
            _check_pipe(node.pipe, declared)
        elif isinstance(node, Jump) and not is_in_range:
            raise _error(f"a {node.keyword} outside of a range")
        elif isinstance(node, Branch):
            inner = set(declared)
            _check_pipe(node.pipe, inner)
            in_body = is_in_range or node.keyword == "range"
            _check(node.body, set(inner), is_in_range=in_body)
            _check(node.otherwise, set(inner), is_in_range=is_in_range)


def _check_pipe(pipe: Pipe, declared: set[str]) -> None:
    for operand in (operand for command in pipe.commands for operand in command):
        if isinstance(operand, Variable) and operand.name not in declared:
            raise _error(f"the variable {operand.name}, which is not declared")
        if isinstance(operand, Nested):
            _check_pipe(operand.pipe, declared)
    if pipe.is_declaration:
        declared.update(pipe.variables)
    elif unknown := set(pipe.variables) - declared:
        raise _error(f"the variable {min(unknown)}, which is not declared")


def _go_messages(
    messages: Sequence[Mapping[str, object]],
) -> tuple[str, tuple[Mapping[str, object], ...]]:
    """The system text, and the messages with those of one role in a row joined, with Go's names."""
    collated = collate(
        [
            {"role": str(message["role"]).lower(), "content": str(message["content"])}
            for message in messages
        ]
    )
    system = [str(message["content"]) for message in collated if message["role"] == "system"]
    return "\n\n".join(system), tuple(
        {**_EMPTY_MESSAGE, "Role": message["role"], "Content": message["content"]}
        for message in collated
    )


def _render_exchanges(nodes: tuple[Node, ...], messages: Sequence[Mapping[str, object]]) -> str:
    """Render each exchange of system text, prompt and answer; the last one ends at the answer."""
    written: list[str] = []
    exchange = {"System": "", "Prompt": "", "Response": ""}
    slots = {"system": "System", "user": "Prompt", "assistant": "Response"}
    starts_anew = {"system": ("Prompt", "Response"), "user": ("Response",), "assistant": ()}
    for message in messages:
        role, content = str(message["Role"]), str(message["Content"])
        if role not in slots:
            continue
        if any(exchange[slot] for slot in starts_anew[role]):
            written.append(_execute(nodes, {**_EMPTY, **exchange}))
            exchange = dict.fromkeys(exchange, "")
        exchange[slots[role]] = content
    opened, _ = _cut_after_response(nodes)
    written.append(_execute(opened, {**_EMPTY, **exchange}))
    return "".join(written)


def _cut_after_response(nodes: tuple[Node, ...]) -> tuple[tuple[Node, ...], bool]:
    """The nodes up to `.Response`, and whether there is one (Ollama's `deleteNode`)."""
    kept: list[Node] = []
    is_cut = False
    for node in nodes:
        if isinstance(node, Branch):
            body, is_cut = _cut_after_response(node.body)
            if is_cut and node.otherwise:
                raise _error("a .Response in a branch that has an else")
            otherwise = node.otherwise
            if not is_cut:
                otherwise, is_cut = _cut_after_response(node.otherwise)
            kept.append(replace(node, body=body, otherwise=otherwise))
        elif isinstance(node, Action):
            pipe, is_cut = _cut_pipe(node.pipe)
            if pipe is not None:
                kept.append(Action(pipe))
        else:
            kept.append(node)
        if is_cut:
            break
    return tuple(kept), is_cut


def _cut_pipe(pipe: Pipe) -> tuple[Pipe | None, bool]:
    """The pipe up to its `.Response`, and whether it has one; None if a command becomes empty."""
    commands: list[tuple[Operand, ...]] = []
    is_cut = False
    for command in pipe.commands:
        kept: list[Operand] = []
        for operand in command:
            if is_cut:
                break
            if isinstance(operand, Nested):
                inner, is_cut = _cut_pipe(operand.pipe)
                if inner is None:
                    continue
                operand = Nested(inner, operand.names)
            elif isinstance(operand, Field):
                is_cut = "Response" in operand.names
            kept.append(operand)
        if not kept:
            return None, is_cut
        commands.append(tuple(kept))
    return replace(pipe, commands=tuple(commands)), is_cut


def _field_names(nodes: Sequence[Node]) -> list[str]:
    names: list[str] = []
    for node in nodes:
        if isinstance(node, Action):
            names += _pipe_names(node.pipe)
        elif isinstance(node, Branch):
            names += _pipe_names(node.pipe)
            names += _field_names((*node.body, *node.otherwise))
    return names


def _pipe_names(pipe: Pipe) -> list[str]:
    names: list[str] = []
    for operand in (operand for command in pipe.commands for operand in command):
        if isinstance(operand, Field | Variable):
            names += operand.names
        elif isinstance(operand, Nested):
            names += _pipe_names(operand.pipe)
    return names


def _execute(nodes: Sequence[Node], data: Mapping[str, object]) -> str:
    run = _Run(data)
    run.walk(nodes, data)
    return "".join(run.written)


class _Jumped(Exception):  # noqa: N818 - a jump, not an error
    def __init__(self, keyword: str) -> None:
        self.keyword = keyword


class _Run:
    """One execution: the output, and the variables in scope, the innermost last."""

    def __init__(self, data: Mapping[str, object]) -> None:
        self.written: list[str] = []
        self._variables: list[tuple[str, object]] = [("$", data)]

    def walk(self, nodes: Sequence[Node], dot: object) -> None:
        for node in nodes:
            if isinstance(node, Text):
                self.written.append(node.text)
            elif isinstance(node, Action):
                value = self._pipe(node.pipe, dot)
                if not node.pipe.variables:
                    self.written.append(_printed(value))
            elif isinstance(node, Jump):
                raise _Jumped(node.keyword)
            else:
                depth = len(self._variables)
                self._branch(node, dot)
                del self._variables[depth:]

    def _branch(self, node: Branch, dot: object) -> None:
        if node.keyword == "range":
            self._range(node, dot)
            return
        value = self._pipe(node.pipe, dot)
        if _is_true(value):
            self.walk(node.body, value if node.keyword == "with" else dot)
        else:
            self.walk(node.otherwise, dot)

    def _range(self, node: Branch, dot: object) -> None:
        items = self._pipe(replace(node.pipe, variables=()), dot)
        items = () if items is None else items
        if not isinstance(items, tuple):
            raise _error("a range over something other than a list")
        for index, item in enumerate(items):
            depth = len(self._variables)
            values = (index, item) if len(node.pipe.variables) == 2 else (item,)
            for name, value in zip(node.pipe.variables, values, strict=False):
                self._set(name, value, is_declaration=node.pipe.is_declaration)
            try:
                self.walk(node.body, item)
            except _Jumped as jump:
                if jump.keyword == "break":
                    return
            finally:
                del self._variables[depth:]
        if not items:
            self.walk(node.otherwise, dot)

    def _set(self, name: str, value: object, *, is_declaration: bool) -> None:
        if is_declaration:
            self._variables.append((name, value))
            return
        for at in range(len(self._variables) - 1, -1, -1):
            if self._variables[at][0] == name:
                self._variables[at] = (name, value)
                return
        raise _error(f"the variable {name}, which is not declared")

    def _pipe(self, pipe: Pipe, dot: object) -> object:
        value: object = None
        for position, command in enumerate(pipe.commands):
            value = self._command(command, dot, (value,) if position else ())
        for name in pipe.variables:
            self._set(name, value, is_declaration=pipe.is_declaration)
        return value

    def _command(
        self, command: tuple[Operand, ...], dot: object, last: tuple[object, ...]
    ) -> object:
        head, *rest = command
        if not isinstance(head, Function):
            if rest or last:
                raise _error("a value as a function")
            if head == Literal(None):
                raise _error("nil as a command")
            return self._operand(head, dot)
        if head.name in ("and", "or"):
            return self._and_or(head.name, rest, dot, last)
        function = _FUNCTIONS.get(head.name)
        if function is None:
            raise _error(f"the function {head.name}")
        arguments = [*(self._operand(operand, dot) for operand in rest), *last]
        try:
            return function(*arguments)
        except (TypeError, IndexError, UnicodeDecodeError) as error:
            raise _error(f"{head.name} of {arguments!r} ({error})") from error

    def _and_or(
        self, name: str, operands: Sequence[Operand], dot: object, last: tuple[object, ...]
    ) -> object:
        """The first argument that decides, or else the last; later ones are not evaluated."""
        value: object = None
        for operand in operands:
            value = self._operand(operand, dot)
            if _is_true(value) == (name == "or"):
                return value
        return last[0] if last else value

    def _operand(self, operand: Operand, dot: object) -> object:
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Field):
            return _field(dot, operand.names)
        if isinstance(operand, Nested):
            return _field(self._pipe(operand.pipe, dot), operand.names)
        if isinstance(operand, Function):
            return self._command((operand,), dot, ())
        for name, value in reversed(self._variables):
            if name == operand.name:
                return _field(value, operand.names)
        raise _error(f"the variable {operand.name}, which is not declared")


def _field(value: object, names: Sequence[str]) -> object:
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            raise _error(f"the field .{name}")
        value = value[name]
    return value


def _is_true(value: object) -> bool:
    """Go's truth: neither zero, nor nil, nor empty."""
    return bool(value)


def _printed(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise _error(f"writing a {type(value).__name__}")


def _equal(first: object, *others: object) -> bool:
    if not others:
        raise TypeError("one argument")
    if any(type(other) is not type(first) for other in others):
        raise TypeError("values of different types")
    if isinstance(first, tuple | Mapping):
        raise TypeError("values that cannot be compared")
    return first in others


def _ordered(compare: Callable[[int, int], bool]) -> Callable[[int, int], bool]:
    def function(left: int, right: int) -> bool:
        if type(left) is not type(right) or isinstance(left, bool):
            raise TypeError("values without an order")
        return compare(left, right)

    return function


def _length(value: str | tuple[object, ...]) -> int:
    if isinstance(value, str):
        return len(value.encode())  # Go counts bytes
    if isinstance(value, tuple):
        return len(value)
    raise TypeError("neither a text nor a list")


def _slice(value: str | tuple[object, ...], *bounds: int) -> str | tuple[object, ...]:
    start, end = (*bounds, *(0, _length(value))[len(bounds) :])
    if not 0 <= start <= end <= _length(value):
        raise IndexError("out of range")
    if isinstance(value, str):
        return value.encode()[start:end].decode()
    return value[start:end]


def _index(value: tuple[object, ...], at: int) -> object:
    if not isinstance(value, tuple) or isinstance(at, bool):
        raise TypeError("an index of something other than a list")
    if not 0 <= at < len(value):
        raise IndexError("out of range")
    return value[at]


def _printf(form: str, *values: object) -> str:
    verbs = form.replace("%%", "").count("%")
    if verbs != len(values) or verbs != sum(form.count(verb) for verb in ("%s", "%d", "%v")):
        raise TypeError("verbs other than %s, %d and %v, one for each value")
    # For a value of another type, Go writes an error into the text.
    types = {"s": str, "d": int, "v": object}
    letters = [after[0] for after in form.replace("%%", "").split("%")[1:]]
    for letter, value in zip(letters, values, strict=True):
        if not isinstance(value, types[letter]) or (letter == "d" and isinstance(value, bool)):
            raise TypeError(f"%{letter} of a value of another type")
    return form.replace("%v", "%s").replace("%d", "%s") % tuple(map(_printed, values))


_FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "not": lambda value: not _is_true(value),
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _ordered(lambda left, right: left < right),
    "le": _ordered(lambda left, right: left <= right),
    "gt": _ordered(lambda left, right: left > right),
    "ge": _ordered(lambda left, right: left >= right),
    "len": _length,
    "slice": _slice,
    "index": _index,
    "printf": _printf,
}


def _error(what: str) -> ChatTemplateError:
    return ChatTemplateError(
        f"An Ollama (Go) template uses {what}, which ftpack does not evaluate.",
        next_step="Use the GGUF's own chat template: --template native.",
    )
