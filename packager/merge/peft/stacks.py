"""PEFT's merge of one layer; of stacked experts a few at a time, in the stacks themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packager.merge.peft.peft_config import ADAPTER_NAME

if TYPE_CHECKING:
    import torch

# What a piece's update takes in fp32; of it there are some copies at one time.
PIECE_BYTES = 32 << 20


def is_on_stack(layer: Any) -> bool:
    """Whether a layer is on a parameter, as on stacked experts; it has no init that reads it."""
    return hasattr(layer, "parameter_name")


def merge_layer(layer: Any) -> Any:
    """`BaseTuner._unload_and_optionally_merge` for one module."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        return layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
    layer.merge(safe_merge=False, adapter_names=None)
    return layer.get_base_layer()


def merge_stacks(layer: Any, real: Mapping[int, torch.Tensor]) -> Any:
    """The module of stacked experts that PEFT's layers on it make of its real weights.

    PEFT computes the update of a whole stack, [experts, ., .], in fp32, which takes several times
    the stack. An expert's update depends on no other's, so that here its layers see some experts at
    a time, as views, and add to them in place.

    Args:
        layer: the outermost of PEFT's layers, one in the other, each on a parameter of the module.
        real: what stands for their parameters and the module's, by the identity of those; the
            stacks are changed.
    """
    layers = _chain(layer)
    pieces = _pieces(layers, real)
    for piece in pieces:
        part = copy.deepcopy(layer, _values(layers, real, piece))
        for item in _chain(part):
            item.num_experts = len(piece)
        merge_layer(part)
    if pieces:
        return copy.deepcopy(layer.get_base_layer(), dict(real))
    return merge_layer(copy.deepcopy(layer, dict(real)))


def _chain(layer: Any) -> list[Any]:
    layers = []
    while is_on_stack(layer):
        layers.append(layer)
        layer = layer.base_layer
    return layers


def _pieces(layers: list[Any], real: Mapping[int, torch.Tensor]) -> list[range]:
    """Ranges of experts, about equally many; none where all have to be merged at once.

    Never one of several, whose update PEFT would compute as that of a plain matrix. All on a GPU,
    whose library picks its kernel by the number of products; on the CPU bytes were the same for
    any number of experts and threads.
    """
    counts = {layer.num_experts for layer in layers}
    on_cpu = all(real[id(layer.get_param())].device.type == "cpu" for layer in layers)
    if len(counts) > 1 or not on_cpu:
        return []
    (count,) = counts
    expert_bytes = max(4 * layer.in_features * layer.out_features for layer in layers)
    number = count // max(2, PIECE_BYTES // expert_bytes)
    if number < 2:
        return []
    return [range(i * count // number, (i + 1) * count // number) for i in range(number)]


def _values(layers: list[Any], real: Mapping[int, torch.Tensor], piece: range) -> dict[int, Any]:
    """`real` with some experts' weights, as views, and their part of the adapter."""
    import torch

    values: dict[int, Any] = dict(real)
    for layer in layers:
        stack, a, b = (
            layer.get_param(),
            layer.lora_A[ADAPTER_NAME].weight,
            layer.lora_B[ADAPTER_NAME].weight,
        )
        rank = a.shape[0] // layer.num_experts
        own_a = real[id(a)][piece.start * rank : piece.stop * rank]
        of_each = real[id(b)].reshape(b.shape[0], rank, layer.num_experts)
        own_b = of_each[:, :, piece.start : piece.stop].reshape(b.shape[0], rank * len(piece))
        own_stack = real[id(stack)][piece.start : piece.stop]
        for whole, own in ((stack, own_stack), (a, own_a), (b, own_b)):
            values[id(whole)] = torch.nn.Parameter(own, requires_grad=False)
    return values
