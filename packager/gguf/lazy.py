"""The converter's lazy tensors: which tensors they need, and computing them in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def sources(lazies: Sequence[Any], load: Callable[[str], torch.Tensor]) -> frozenset[str]:
    """The names of the checkpoint's tensors that lazy tensors are computed from.

    Args:
        lazies: the lazy tensors.
        load: the function by which the converter's lazy tensors read a tensor, given its name.
    """
    names: set[str] = set()
    visited: set[int] = set()
    queue = list(lazies)
    while queue:
        value = queue.pop()
        if isinstance(value, list | tuple):
            queue.extend(value)
        elif hasattr(value, "_func") and id(value) not in visited:
            visited.add(id(value))
            if value._func == load:
                names.add(value._args[0])
            else:
                queue.extend((*value._args, *value._kwargs.values()))
    return frozenset(names)


def evaluate(value: Any) -> Any:
    """The value of a lazy tensor, computed without keeping intermediate results.

    gguf's own `to_eager` stores every step in the lazy tensors, so that all computed tensors of a
    model would stay in memory until the end.
    """
    if isinstance(value, list | tuple):
        return type(value)(evaluate(item) for item in value)
    if not hasattr(value, "_func"):
        return value
    if value._data is not None:
        return value._data
    return value._func(*evaluate(value._args), **value._kwargs)


def pieces(lazy: Any) -> Iterator[torch.Tensor]:
    """The value of a lazy tensor: a stack in pieces along its first dimension, others whole.

    A stack of experts is by far the largest tensor of its model; each expert is a piece of it.
    """
    import torch

    dimension = lazy._kwargs.get("dim", 0) if hasattr(lazy, "_kwargs") else None
    if getattr(lazy, "_func", None) is torch.stack and len(lazy._args) == 1 and dimension == 0:
        for item in lazy._args[0]:
            yield evaluate(item)[None]
    else:
        yield evaluate(lazy)


def is_beginning(tensor: Any, whole: Any) -> bool:
    """Whether a lazy tensor is another one unaltered, or its first rows.

    Gemma's converter cuts the embeddings to the size of the vocabulary. They are the largest tensor
    of all, and computing them whole would take several times their size in memory.
    """
    if tensor is whole:
        return True
    match getattr(tensor, "_args", ()):
        case (source, slice(start=None | 0, step=None | 1)):
            return source is whole
    return False
