"""Model names: Ollama's rules for them, checked before any work starts."""

from __future__ import annotations

import re

from packager.errors import InvalidNameError

# Ollama's types/model/name.go (isValidPart, isValidLen), one pattern for each kind of part.
_PATTERNS = {
    "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
    "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
    "model": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
    "tag": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"),
}
_RULES = {
    "host": "letters, digits, `_`, `-`, `.` and `:`, at most 350",
    "namespace": "letters, digits, `_` and `-`, at most 80",
    "model": "letters, digits, `_`, `-` and `.`, at most 80",
    "tag": "letters, digits, `_`, `-` and `.`, at most 80",
}
# `create` accepts such a tag, but to every later request it names a place to look for the model
# (internal/modelref), so the model is never found under its name.
_SOURCE_TAG = re.compile(r"cloud|local|.*-cloud", re.IGNORECASE)


def validate_name(name: str) -> str:
    """The name itself, if Ollama accepts it: `[[HOST/]NAMESPACE/]MODEL[:TAG]`.

    Raises:
        InvalidNameError: with the part that Ollama would refuse.
    """
    for kind, part in _parts(name).items():
        if not _PATTERNS[kind].fullmatch(part):
            raise InvalidNameError(
                f"Ollama refuses the model name {name!r}: its {kind} is {part!r}.",
                next_step=f"Choose another --name; a {kind} consists of {_RULES[kind]}, "
                "and begins with a letter, a digit or `_`.",
            )
    tag = split_tag(name)[1]
    if tag is not None and _SOURCE_TAG.fullmatch(tag):
        raise InvalidNameError(
            f"Ollama could not find a model named {name!r} again: "
            f"the tag {tag!r} names a place to look for models.",
            next_step="Choose a --name whose tag is neither `cloud` nor `local` "
            "and does not end in `-cloud`.",
        )
    return name


def split_tag(name: str) -> tuple[str, str | None]:
    """The name without its tag, and the tag or None: `a/b:c` gives `a/b` and `c`."""
    # A colon before the last slash separates a host from its port.
    if name.rfind(":") > name.rfind("/"):
        bare, _, tag = name.rpartition(":")
        return bare, tag
    return name, None


def with_suffix(name: str, suffix: str) -> str:
    """The name with a suffix before its tag: `a/b:c` and `-x` give `a/b-x:c`."""
    bare, tag = split_tag(name)
    return f"{bare}{suffix}" + (f":{tag}" if tag else "")


def qualified_name(name: str) -> str:
    """The name in the form that a daemon compares: all parts, in lower case, without a scheme."""
    defaults = {"host": "registry.ollama.ai", "namespace": "library", "model": "", "tag": "latest"}
    host, namespace, model, tag = (defaults | _parts(name)).values()
    return f"{host}/{namespace}/{model}:{tag}".lower()


def _parts(name: str) -> dict[str, str]:
    """The parts that the name has, by kind, split as Ollama's `ParseNameBare` does."""
    bare, tag = split_tag(name)
    parts = {} if tag is None else {"tag": tag}
    location, slash, parts["model"] = bare.rpartition("/")
    if not slash:
        return parts
    host, slash, parts["namespace"] = location.rpartition("/")
    if slash:
        parts["host"] = host.partition("://")[2] if "://" in host else host
    return parts
