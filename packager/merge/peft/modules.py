"""One tuned module at a time: PEFT's layer gets its real weights, is merged, and is released."""

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
from packager.merge.peft.lazy_tensor import as_tensor
from packager.merge.peft.peft_config import ADAPTER_NAME
from packager.merge.peft.skeleton import Skeleton

if TYPE_CHECKING:
    import torch

# The cosine of two singular vectors that differ only by the rounding to 16 bits.
_SAME_VECTOR = 0.999
# How much of a tensor is digested at a time: it stays in a core's cache.
_DIGESTED_ELEMENTS = 1 << 18
# The size in fp32 of the update that PEFT computes of some experts; a few copies exist at a time.
PIECE_BYTES = 32 << 20


@dataclass(frozen=True)
class TunedModule:
    """A module of the base that the adapter changes as a whole, or a parameter that it replaces.

    Attributes:
        name: the module's in the model; of a replaced parameter, the parameter's.
        layer: PEFT's outermost layer there, never altered; None for a replaced parameter.
        parameters: those of the merged module, by the names that they have in the model.
        sources: for each parameter, what its values come from: two with equal sources are tied.
        is_additive: whether it is a tuner's layer, which must change its weight, and not a module
            that was trained as a whole.
    """

    name: str
    layer: Any
    parameters: tuple[str, ...]
    sources: tuple[object, ...]
    is_additive: bool

    @property
    def is_on_stack(self) -> bool:
        """Whether the layer is on a stack of experts."""
        return _is_on_stack(self.layer)


@dataclass(frozen=True)
class MergedModule:
    """The result of merging a module.

    Attributes:
        parameters: by name, on the CPU.
        has_changed: whether any of them differs from the base's.
    """

    parameters: dict[str, torch.Tensor]
    has_changed: bool


@dataclass(frozen=True)
class _RealWeights:
    """What a layer without values is to be merged with.

    Attributes:
        tensors: what each empty tensor of the layer stands for, by the identity of the empty one.
        digests: of the base's parameters, by name. Digests, since the largest modules (a layer's
            experts) are as large as several others together.
    """

    tensors: dict[int, torch.Tensor]
    digests: dict[str, bytes]


def find_tuned_modules(skeleton: Skeleton) -> list[TunedModule]:
    """The outermost layers that PEFT has put into a model, in its order, then the replacements."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    modules: list[TunedModule] = []
    for name, layer in skeleton.root.named_modules():
        is_tuner = isinstance(layer, BaseTunerLayer)
        if not is_tuner and not isinstance(layer, AuxiliaryTrainingWrapper):
            continue
        if any(name.startswith(f"{module.name}.") for module in modules):
            continue
        modules.append(_tuned_module(name, layer, is_tuner))
    covered = {name for module in modules for name in module.parameters}
    for name, value in skeleton.overrides.items():
        if name not in covered:
            modules.append(TunedModule(name, None, (name,), (id(value),), is_additive=False))
    return modules


def _tuned_module(name: str, layer: Any, is_tuner: bool) -> TunedModule:
    state = _trained(layer).state_dict(keep_vars=True)
    parameters = tuple(f"{name}.{key}" for key in state)
    tokens = getattr(layer, "token_adapter", layer)
    sources: tuple[object, ...]
    if hasattr(tokens, "trainable_tokens_delta"):
        # PEFT ties the head's rows to the embedding's: the same values, of the same adapter.
        sources = (id(tokens.tied_adapter or tokens),) * len(parameters)
        return TunedModule(name, layer, parameters, sources, is_additive=False)
    if is_tuner:
        sources = tuple((parameter,) for parameter in parameters)
        return TunedModule(name, layer, parameters, sources, is_additive=True)
    sources = tuple(map(id, state.values()))
    return TunedModule(name, layer, parameters, sources, is_additive=False)


def _trained(layer: Any) -> Any:
    """The plain module that comes out of a layer; before merging, one of its names and shapes."""
    saved = getattr(layer, "modules_to_save", None)
    if saved is not None and ADAPTER_NAME in saved:
        module = saved[ADAPTER_NAME]
        return module.get_base_layer() if hasattr(module, "base_layer") else module
    token = getattr(layer, "token_adapter", None)
    return (token or layer).get_base_layer()


def has_zero_part(skeleton: Skeleton, module: TunedModule) -> bool:
    """Whether one of the adapter's tensors for a module is all zero, as before most trainings."""
    return any(not bool(value.any()) for _, value in skeleton.values_of(module.name))


def merge_module(
    skeleton: Skeleton,
    module: TunedModule,
    layout: Layout,
    load: Callable[[str], torch.Tensor],
    device: str,
) -> MergedModule:
    """What PEFT's `merge_and_unload` makes of one module.

    Args:
        skeleton: stays as it is.
        module: one of `find_tuned_modules`.
        layout: of the base.
        load: gives a tensor of the base's checkpoint.
        device: where to merge.

    Raises:
        UnsupportedError: with PEFT's reason, if it does not merge the module after all.
    """
    import torch

    if module.layer is None:
        value = skeleton.overrides[module.name]
        value = value.to(layout.dtype(module.name), copy=True)
        return MergedModule({module.name: value}, has_changed=True)
    real = _real_weights(skeleton, module, layout, load, device)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            if module.is_on_stack:
                merged = merge_stacks(module.layer, real.tensors)
            elif skeleton.is_rebuilt and module.is_additive:
                merged = _merge_layer(_rebuilt_layer(skeleton, module, real, device))
            else:
                merged = _merge_layer(copy.deepcopy(module.layer, real.tensors).to(device))
            parameters = _parameters_of(module, merged)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        raise UnsupportedError(
            f"PEFT cannot merge the adapter's tensors for {module.name}: {first_line(error)}",
            next_step="Report it with PEFT's version: ftpack takes this method for mergeable.",
        ) from error
    has_changed = any(
        real.digests.get(name) != _digest(value) for name, value in parameters.items()
    )
    return MergedModule(parameters, has_changed)


def _real_weights(
    skeleton: Skeleton,
    module: TunedModule,
    layout: Layout,
    load: Callable[[str], torch.Tensor],
    device: str,
) -> _RealWeights:
    import torch

    empties = {
        id(tensor): tensor
        for tensor in [*module.layer.parameters(), *module.layer.buffers()]
        if id(tensor) in skeleton.empties
    }
    names = {key: _own_name(module, skeleton.empties[key]) for key in empties}
    base = layout.read(names.values(), load)
    digests = {name: _digest(value) for name, value in base.items()}
    tensors: dict[int, torch.Tensor] = {}
    for key, name in names.items():
        value = base[name].to(device)
        if name in skeleton.overrides:
            value = skeleton.overrides[name].to(device, empties[key].dtype, copy=True)
        is_parameter = isinstance(empties[key], torch.nn.Parameter)
        tensors[key] = torch.nn.Parameter(value, requires_grad=False) if is_parameter else value
    for parameter in module.layer.parameters():
        if id(parameter) in skeleton.key_of:
            kept = skeleton.adapter[skeleton.key_of[id(parameter)]]
            own = as_tensor(kept).to(device, parameter.dtype, copy=isinstance(kept, torch.Tensor))
            tensors[id(parameter)] = torch.nn.Parameter(own, requires_grad=False)
    return _RealWeights(tensors, digests)


def _digest(tensor: torch.Tensor) -> bytes:
    """A digest of the values: adding 0 makes -0 and 0, which are equal, the same bytes."""
    import torch

    digest = hashlib.sha256()
    for piece in torch.split(tensor.reshape(-1), _DIGESTED_ELEMENTS):
        digest.update((piece + 0).view(torch.uint8).numpy().data)
    return digest.digest()


def _own_name(module: TunedModule, names: tuple[str, ...]) -> str:
    """Of a tied parameter's names, the one that it has in this module."""
    return next((name for name in names if name.startswith(f"{module.name}.")), names[0])


def _merge_layer(layer: Any) -> Any:
    """`BaseTuner._unload_and_optionally_merge` for one module."""
    if hasattr(layer, "unload_and_optionally_merge_module"):
        return layer.unload_and_optionally_merge_module(
            merge=True, safe_merge=False, adapter_names=None
        )
    layer.merge(safe_merge=False, adapter_names=None)
    return layer.get_base_layer()


def _rebuilt_layer(skeleton: Skeleton, module: TunedModule, real: _RealWeights, device: str) -> Any:
    """PEFT's layer built again on the real weight, with the adapter's values in it."""
    import torch
    from peft.tuners.tuners_utils import cast_adapter_dtype

    base = copy.deepcopy(module.layer.get_base_layer(), real.tensors).to(device)
    child = module.name.rpartition(".")[2]
    parent = torch.nn.Module()
    parent.add_module(child, base)
    skeleton.tuner._create_and_replace(
        copy.copy(skeleton.config), ADAPTER_NAME, base, child, parent, current_key=module.name
    )
    cast_adapter_dtype(parent, ADAPTER_NAME)
    layer = getattr(parent, child)
    own = dict(skeleton.values_of(module.name))
    _require_same_build(module, own, layer.state_dict())
    unexpected = layer.load_state_dict(own, strict=False).unexpected_keys
    if unexpected:
        raise AdapterMismatchError(
            f"PEFT's layer on {module.name} lacks {', '.join(unexpected)} when it is built again.",
            next_step=MERGE_WITH_PEFT,
        )
    return layer.eval()


def _require_same_build(
    module: TunedModule, saved: Mapping[str, torch.Tensor], built: Mapping[str, torch.Tensor]
) -> None:
    """Require that PEFT built here what the file's values belong to.

    AdaMSS clusters a weight's rows by their singular vectors. It takes whatever cluster sizes the
    file has, and keeps no trace of the clusters but those sizes and the vectors of the other side.
    """
    import torch

    differing = [n for n, value in saved.items() if n in built and value.shape != built[n].shape]
    vectors = f"adamss_newB.{ADAPTER_NAME}"  # [r, in_features], each row of either sign
    if vectors in saved and not differing:
        ours, theirs = built[vectors].float(), saved[vectors].to(built[vectors].device).float()
        cosines = torch.nn.functional.cosine_similarity(ours, theirs, dim=1).abs()
        differing = [] if torch.all(cosines > _SAME_VECTOR) else [vectors]
    if differing:
        raise AdapterMismatchError(
            f"The adapter's {differing[0]} for {module.name} is not what PEFT computes from this "
            "base on this machine, where it clusters the weight's rows differently.",
            next_step="Check --base. If it is right, merge with PEFT on the machine that trained "
            "(merge_and_unload, save_pretrained) and package the merged folder.",
        )


def _parameters_of(module: TunedModule, merged: Any) -> dict[str, torch.Tensor]:
    state: Mapping[str, torch.Tensor] = merged.state_dict()
    parameters = {f"{module.name}.{key}": value.detach().to("cpu") for key, value in state.items()}
    if tuple(parameters) != module.parameters:
        raise AdapterMismatchError(
            f"PEFT turned {module.name} into {sorted(parameters)}; "
            f"{sorted(module.parameters)} was expected.",
            next_step=MERGE_WITH_PEFT,
        )
    return parameters


def merge_stacks(layer: Any, real: Mapping[int, torch.Tensor]) -> Any:
    """The module of stacked experts that PEFT's layers on it make of its real weights.

    PEFT computes the update of a whole stack, [experts, ., .], in fp32, which takes several times
    the stack. An expert's update does not depend on the others, so PEFT's layers get a few experts
    at a time here, as views, and add to them in place.

    Args:
        layer: the outermost of PEFT's layers, one in the other, each on a parameter of the module.
        real: what their parameters and the module's stand for, by their identity; the stacks are
            changed.
    """
    layers = _chain(layer)
    pieces = _pieces(layers, real)
    for piece in pieces:
        part = copy.deepcopy(layer, _values_of_piece(layers, real, piece))
        for item in _chain(part):
            item.num_experts = len(piece)
        _merge_layer(part)
    if pieces:
        return copy.deepcopy(layer.get_base_layer(), dict(real))
    return _merge_layer(copy.deepcopy(layer, dict(real)))


def _is_on_stack(layer: Any) -> bool:
    """Whether a layer is on a parameter of its module, as on stacked experts."""
    return hasattr(layer, "parameter_name")


def _chain(layer: Any) -> list[Any]:
    layers = []
    while _is_on_stack(layer):
        layers.append(layer)
        layer = layer.base_layer
    return layers


def _pieces(layers: list[Any], real: Mapping[int, torch.Tensor]) -> list[range]:
    """Ranges of experts, of about equal length; none where all have to be merged at once.

    A range is never one expert of several: PEFT would compute its update as that of a plain matrix.
    On a GPU all are merged at once, since its library picks the kernel by the number of products;
    on the CPU the bytes were the same for any number of experts and threads.
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


def _values_of_piece(
    layers: list[Any], real: Mapping[int, torch.Tensor], piece: range
) -> dict[int, torch.Tensor]:
    """`real` with some experts' weights, as views, and their part of the adapter."""
    import torch

    values = dict(real)
    for layer in layers:
        stack = layer.get_param()
        a, b = layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight
        rank = a.shape[0] // layer.num_experts
        own_a = real[id(a)][piece.start * rank : piece.stop * rank]
        of_each = real[id(b)].reshape(b.shape[0], rank, layer.num_experts)
        own_b = of_each[:, :, piece.start : piece.stop].reshape(b.shape[0], rank * len(piece))
        own_stack = real[id(stack)][piece.start : piece.stop]
        for whole, own in ((stack, own_stack), (a, own_a), (b, own_b)):
            values[id(whole)] = torch.nn.Parameter(own, requires_grad=False)
    return values
