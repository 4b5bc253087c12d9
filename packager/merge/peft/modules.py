"""One tuned module at a time: PEFT's layer is put on its real weights, merged, and let go."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packager.errors import AdapterMismatchError, UnsupportedError, first_line
from packager.merge.next_steps import MERGE_WITH_PEFT
from packager.merge.peft.layout import Layout
from packager.merge.peft.lazy_tensor import loaded
from packager.merge.peft.peft_config import ADAPTER_NAME
from packager.merge.peft.skeleton import Skeleton
from packager.merge.peft.stacks import is_on_stack, merge_layer, merge_stacks

if TYPE_CHECKING:
    import torch

# The cosine of two singular vectors that are the same but for the rounding to 16 bits.
_SAME_VECTOR = 0.999
# Of a tensor, at a time: what stays in a core's cache.
_DIGESTED_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Unit:
    """A module of the base that the adapter changes as a whole, or parameters that it replaces.

    Attributes:
        key: the module's name in the model; of a replaced parameter, the parameter's.
        layer: PEFT's outermost layer there, never altered; None for a replaced parameter.
        results: the parameters of the merged module, by the names that they have in the model.
        values: what stands for a result's values, by name: two that stand for the same are tied.
        is_additive: whether it is a tuner's layer, which must change its weight, and not a module
            that was trained as a whole.
    """

    key: str
    layer: Any
    results: tuple[str, ...]
    values: tuple[object, ...]
    is_additive: bool


@dataclass(frozen=True)
class MergedUnit:
    """What became of a unit.

    Attributes:
        results: its parameters by name, on the CPU.
        has_changed: whether any of them is not as the base has it.
    """

    results: dict[str, torch.Tensor]
    has_changed: bool


def find_units(skeleton: Skeleton) -> list[Unit]:
    """The outermost layers that PEFT has put into a model, in its order, then the replacements."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    units: list[Unit] = []
    for key, module in skeleton.root.named_modules():
        is_layer = isinstance(module, BaseTunerLayer)
        if not is_layer and not isinstance(module, AuxiliaryTrainingWrapper):
            continue
        if any(key.startswith(f"{unit.key}.") for unit in units):
            continue
        units.append(_unit(key, module, is_layer))
    done = {name for unit in units for name in unit.results}
    for name, value in skeleton.overrides.items():
        if name not in done:
            units.append(Unit(name, None, (name,), (id(value),), is_additive=False))
    return units


def _unit(key: str, layer: Any, is_layer: bool) -> Unit:
    state = _trained(layer).state_dict(keep_vars=True)
    results = tuple(f"{key}.{name}" for name in state)
    tokens = getattr(layer, "token_adapter", layer)
    if hasattr(tokens, "trainable_tokens_delta"):
        # PEFT ties the head's rows to the embedding's: the same values, of the same adapter.
        owner = id(tokens.tied_adapter or tokens)
        return Unit(key, layer, results, tuple(owner for _ in results), is_additive=False)
    if is_layer:
        return Unit(key, layer, results, tuple((name,) for name in results), is_additive=True)
    return Unit(key, layer, results, tuple(map(id, state.values())), is_additive=False)


def _trained(layer: Any) -> Any:
    """The plain module that comes out of a layer; before merging, what has its names and shapes."""
    saved = getattr(layer, "modules_to_save", None)
    if saved is not None and ADAPTER_NAME in saved:
        module = saved[ADAPTER_NAME]
        return module.get_base_layer() if hasattr(module, "base_layer") else module
    token = getattr(layer, "token_adapter", None)
    return (token or layer).get_base_layer()


def has_zero_part(skeleton: Skeleton, unit: Unit) -> bool:
    """Whether a tensor of a unit's adapter is all zero, as most are before training."""
    return any(not bool(value.any()) for _, value in skeleton.values_of(unit.key))


def merge_unit(
    skeleton: Skeleton,
    unit: Unit,
    layout: Layout,
    load: Callable[[str], torch.Tensor],
    device: str,
) -> MergedUnit:
    """What PEFT's `merge_and_unload` makes of one module.

    Args:
        skeleton: stays as it is.
        unit: one of `find_units`.
        layout: of the base.
        load: gives a tensor of the base's checkpoint.
        device: where to merge.

    Raises:
        UnsupportedError: with PEFT's reason, where it does not merge after all.
    """
    import torch

    if unit.layer is None:
        value = skeleton.overrides[unit.key]
        return MergedUnit({unit.key: value.to(layout.dtype(unit.key), copy=True)}, True)
    memo, digests = _real_weights(skeleton, unit, layout, load, device)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if is_on_stack(unit.layer):
                module = merge_stacks(unit.layer, memo)
            elif skeleton.again and unit.is_additive:
                module = merge_layer(_make_again(skeleton, unit, memo, device))
            else:
                module = merge_layer(copy.deepcopy(unit.layer, memo).to(device))
            results = _results(unit, module)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnsupportedError(
            f"PEFT cannot merge what the adapter has for {unit.key}: {first_line(error)}",
            next_step="Report it with PEFT's version: ftpack takes this method for mergeable.",
        ) from error
    has_changed = any(digests.get(name) != _digest(value) for name, value in results.items())
    return MergedUnit(results, has_changed)


def _real_weights(
    skeleton: Skeleton,
    unit: Unit,
    layout: Layout,
    load: Callable[[str], torch.Tensor],
    device: str,
) -> tuple[dict[int, Any], dict[str, bytes]]:
    """What the empties of a layer stand for, by their identity; the base's digests by name.

    Digests, since the largest modules (a layer's experts) are as large as several others together.
    """
    import torch

    empties = {
        id(tensor): tensor
        for tensor in [*unit.layer.parameters(), *unit.layer.buffers()]
        if id(tensor) in skeleton.empties
    }
    names = {key: _own_name(unit, skeleton.empties[key]) for key in empties}
    found = layout.read(names.values(), load)
    digests = {name: _digest(value) for name, value in found.items()}
    memo: dict[int, Any] = {}
    for key, name in names.items():
        value = found[name].to(device)
        if name in skeleton.overrides:
            value = skeleton.overrides[name].to(device, empties[key].dtype, copy=True)
        is_parameter = isinstance(empties[key], torch.nn.Parameter)
        memo[key] = torch.nn.Parameter(value, requires_grad=False) if is_parameter else value
    for parameter in unit.layer.parameters():
        if id(parameter) in skeleton.key_of:
            kept = skeleton.adapter[skeleton.key_of[id(parameter)]]
            own = loaded(kept).to(device, parameter.dtype, copy=isinstance(kept, torch.Tensor))
            memo[id(parameter)] = torch.nn.Parameter(own, requires_grad=False)
    return memo, digests


def _digest(tensor: torch.Tensor) -> bytes:
    """Equal for equal values; zero has a sign in its bytes that is none of its value's."""
    import torch

    digest = hashlib.sha256()
    for piece in torch.split(tensor.reshape(-1), _DIGESTED_ELEMENTS):
        digest.update((piece + 0).view(torch.uint8).numpy().data)
    return digest.digest()


def _own_name(unit: Unit, names: tuple[str, ...]) -> str:
    """Of a tied parameter's names the one that it has in this module."""
    return next((name for name in names if name.startswith(f"{unit.key}.")), names[0])


def _make_again(skeleton: Skeleton, unit: Unit, memo: dict[int, Any], device: str) -> Any:
    """PEFT's layer made anew on the real weight, with the adapter's values in it."""
    import torch
    from peft.tuners.tuners_utils import cast_adapter_dtype

    base = copy.deepcopy(unit.layer.get_base_layer(), memo).to(device)
    child = unit.key.rpartition(".")[2]
    parent = torch.nn.Module()
    parent.add_module(child, base)
    skeleton.tuner._create_and_replace(
        copy.copy(skeleton.config), ADAPTER_NAME, base, child, parent, current_key=unit.key
    )
    cast_adapter_dtype(parent, ADAPTER_NAME)
    layer = getattr(parent, child)
    own = dict(skeleton.values_of(unit.key))
    _require_same_making(unit, own, layer.state_dict())
    unexpected = layer.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise AdapterMismatchError(
            f"PEFT makes no {', '.join(unexpected)} for {unit.key} a second time.",
            next_step=MERGE_WITH_PEFT,
        )
    return layer.eval()


def _require_same_making(
    unit: Unit, found: Mapping[str, torch.Tensor], made: Mapping[str, torch.Tensor]
) -> None:
    """What PEFT has made here must be what the file's values belong to.

    AdaMSS clusters a weight's rows by their singular vectors, takes whatever sizes the file has for
    the clusters, and keeps no other trace of them than those and the vectors of the other side.
    """
    import torch

    apart = [n for n, value in found.items() if n in made and value.shape != made[n].shape]
    vectors = f"adamss_newB.{ADAPTER_NAME}"  # [r, in_features], each row of either sign
    if vectors in found and not apart:
        ours, theirs = made[vectors].float(), found[vectors].to(made[vectors].device).float()
        cosines = torch.nn.functional.cosine_similarity(ours, theirs, dim=1).abs()
        apart = [] if torch.all(cosines > _SAME_VECTOR) else [vectors]
    if apart:
        raise AdapterMismatchError(
            f"The adapter's {apart[0]} for {unit.key} is not what PEFT makes of this base on this "
            "machine, where it clusters the weight's rows in another way.",
            next_step="Check --base. If it is right, merge with PEFT on the machine that trained "
            "(merge_and_unload, save_pretrained) and package the merged folder.",
        )


def _results(unit: Unit, module: Any) -> dict[str, torch.Tensor]:
    state: Mapping[str, torch.Tensor] = module.state_dict()
    found = {f"{unit.key}.{name}": value.detach().to("cpu") for name, value in state.items()}
    if tuple(found) != unit.results:
        raise AdapterMismatchError(
            f"PEFT made {sorted(found)} of {unit.key}, where {sorted(unit.results)} was expected.",
            next_step=MERGE_WITH_PEFT,
        )
    return found
