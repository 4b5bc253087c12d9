"""The converter's lazy tensors: what they are computed from, and computing them lean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def sources(lazies: Sequence[Any], load: Callable[[str], torch.Tensor]) -> frozenset[str]:
    """The names of the tensors that lazy tensors are computed from, where `load` reads them."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = list(lazies)
    while waiting:
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(value)
        elif hasattr(value, "_func") and id(value) not in seen:
            seen.add(id(value))
            if value._func == load:
                found.add(value._args[0])
            else:
                waiting.extend((*value._args, *value._kwargs.values()))
    return frozenset(found)


def evaluate(value: Any) -> Any:
    """What a lazy tensor stands for, computed without keeping anything.

    gguf's own `to_eager` stores every step in the lazy tensors, so that all of a model's computed
    tensors would stay in memory to the end.
    """
    if isinstance(value, list | tuple):
        return type(value)(evaluate(item) for item in value)
    if not hasattr(value, "_func"):
        return value
    if value._data is not None:
        return value._data
    return value._func(*evaluate(value._args), **value._kwargs)


def pieces(lazy: Any) -> Iterator[torch.Tensor]:
    """What a lazy tensor stands for, in pieces along its first dimension where that can be had.

    A stack of experts is the largest tensor of its model by far; each expert is a piece of it.
    """
    import torch

    dimension = lazy._kwargs.get("dim", 0) if hasattr(lazy, "_kwargs") else None
    if getattr(lazy, "_func", None) is torch.stack and len(lazy._args) == 1 and dimension == 0:
        for item in lazy._args[0]:
            yield evaluate(item)[None]
    else:
        yield evaluate(lazy)


def is_beginning(tensor: Any, whole: Any) -> bool:
    """Whether a lazy tensor is another one unaltered, or just its first rows.

    Gemma's converter cuts the embedding to the vocabulary; it is the largest tensor of all, and to
    compute it as a whole would take several times its size.
    """
    if tensor is whole:
        return True
    match getattr(tensor, "_args", ()):
        case (source, slice(start=None | 0, step=None | 1)):
            return source is whole
    return False
