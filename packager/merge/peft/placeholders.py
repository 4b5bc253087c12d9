"""PEFT's layers on empty weights: what building them computes from the weights is left out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from packager.errors import AdapterMismatchError
from packager.merge.next_steps import SAVE_AGAIN_OR_CHECK_BASE
from packager.merge.plain.targets import PREFIX
from packager.model.tensor_file import TensorFile

if TYPE_CHECKING:
    import torch

# Initialisations of LoRA that compute from the base's weights what no file holds.
_FROM_BASE = ("pissa", "olora", "mica")
# FRoD keeps these for all modules of one kind together.
_PROJECTIONS = ("frod_V", "frod_s_indices", "frod_s_size")


def must_be_rebuilt(config: Any) -> bool:
    """Whether a layer has to be built on its real weight, and not only merged into it.

    For most of these methods PEFT computes something from the weight when it builds the layer: the
    file then holds only a part of what was trained, or of what the base became. BOFT's layers hold
    permutation matrices as large as the base, and so are built one at a time.
    """
    method = config.peft_type.value
    if method == "LORA":
        init = config.init_lora_weights
        has_base_init = isinstance(init, str) and init.lower().startswith(_FROM_BASE)
        return has_base_init or config.kasa_config is not None
    return method in ("ADAMSS", "BOFT", "FROD", "OSF", "PSOFT") or (
        method == "SUPERTUNING" and not config.save_precomputed_indices
    )


def is_shaped_by_base(config: Any) -> bool:
    """Whether the shapes of the adapter's tensors depend on the values of the base's weights."""
    return bool(config.peft_type.value == "ADAMSS")


def is_shared(key: str) -> bool:
    """Whether a key is that of a tensor which all layers share, and the file holds once."""
    return any(
        mark in key for mark in (".vblora_vector_bank.", ".tinylora_v.", ".unilora_theta_d.")
    )


@contextmanager
def placeholders(
    config: Any,
    empties: Mapping[int, tuple[str, ...]],
    weights: TensorFile,
    unread: dict[int, torch.Tensor],
) -> Iterator[None]:
    """While PEFT injects layers, empty each before it builds the next, so that none keeps memory.

    Nothing is computed for layers that are built again later.

    Args:
        config: PEFT's, of the adapter.
        empties: the base's parameters, which stay as they are, by their identity.
        weights: the adapter's tensor file.
        unread: gets the layers' own parameters, by their identity; `load_values` requires that
            the file has them.
    """
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    with ExitStack() as stack:
        emptying = _emptying(tuner_class, config, empties, weights, unread)
        stack.enter_context(replaced(tuner_class, "_create_and_replace", emptying))
        if config.peft_type.value == "ADAMSS":
            from peft.tuners.adamss import layer as adamss

            stack.enter_context(replaced(adamss, "slice_pca", _no_components))
            stack.enter_context(replaced(adamss, "clustering_Z", _even_clusters))
        if config.peft_type.value == "FROD":
            from peft.tuners.frod.layer import FrodLayer

            projections = _projections_of(weights)
            stack.enter_context(replaced(tuner_class, "_init_frod_projections", projections))
            stack.enter_context(replaced(FrodLayer, "_calculate_frod_u_and_lambda", _no_factors))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """While the block runs, another value for an attribute of one of PEFT's modules or classes."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _emptying(
    tuner_class: Any,
    config: Any,
    empties: Mapping[int, tuple[str, ...]],
    weights: TensorFile,
    unread: dict[int, torch.Tensor],
) -> Callable[..., None]:
    """PEFT's `_create_and_replace`, which then empties the new layer.

    It loses what comes from the file later and, if it is built again later, what it computed from
    the base.
    """
    import torch
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.tuners.tuners_utils import BaseTuner, cast_adapter_dtype

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    create = tuner_class._create_and_replace
    casts_plainly = tuner_class._cast_adapter_dtype is BaseTuner._cast_adapter_dtype
    is_rebuilt = must_be_rebuilt(config)
    signature = inspect.signature(create)

    def create_and_empty(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        # Bound by name: PEFT passes `current_key` by position in one place, by name in the others.
        given = signature.bind(*args, **kwargs).arguments
        adapter = given["adapter_name"]
        layer = getattr(given["parent"], given["target_name"])
        stem = f"{PREFIX}{given['current_key']}."
        # PEFT writes into what tied layers share when it builds the second.
        is_tied = any(len(empties.get(id(tensor), ())) > 1 for tensor in layer.parameters())
        if casts_plainly and not is_tied:
            # In the end PEFT does it for all layers, and would give memory to what is empty.
            cast_adapter_dtype(layer, adapter)
        for key, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            is_parameter = isinstance(tensor, torch.nn.Parameter)
            is_base = id(tensor) in empties
            is_adapters = prefix in key and adapter in key and not is_shared(f".{key}.")
            is_own = is_parameter and not is_base and is_adapters and not is_tied
            is_computed = not is_parameter and (
                stem + key.removesuffix(f".{adapter}") not in weights.tensors
            )
            if is_own:
                unread[id(tensor)] = tensor
            if is_own or (is_rebuilt and (is_base or is_computed)):
                tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    return create_and_empty


def _no_components(
    weight: torch.Tensor, r: int, device: object, dtype: object, **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """AdaMSS's `slice_pca`: right and left singular vectors, only their shapes."""
    import torch

    outer, inner, rows, columns = weight.shape
    rank = min(r, rows, columns)
    return torch.zeros(outer, inner, rank, columns), torch.zeros(outer, inner, rows, rank)


def _even_clusters(vectors: torch.Tensor, count: int, iterations: int) -> tuple[torch.Tensor, int]:
    """AdaMSS's `clustering_Z`: each row's cluster, and the number of clusters, as PEFT gives them.

    There are as many clusters as it makes, of arbitrary rows.
    """
    import torch

    count = min(count, len(vectors))
    return torch.arange(len(vectors)) % count, count


def _projections_of(weights: TensorFile) -> Callable[..., None]:
    """FRoD's `_init_frod_projections`, with zeros of the shapes that the file has.

    PEFT factors the weights of all layers at once, and then overwrites the result with the file's.
    """

    def init(self: Any, config: Any, adapter: str) -> None:
        import torch
        from peft.tuners._buffer_dict import BufferDict

        projections: dict[str, dict[str, Any]] = {group: {} for group in _PROJECTIONS}
        for name, info in weights.tensors.items():
            group, _, category = name.removeprefix("base_model.").partition(".")
            if group in projections:
                values = torch.zeros(info.shape, dtype=info.torch_dtype)
                projections[group][category] = BufferDict({adapter: values}, persistent=True)
        # PEFT calls this again for a category that it did not find.
        if hasattr(self, "frod_V") or len(set(map(frozenset, projections.values()))) > 1:
            raise AdapterMismatchError(
                f"{weights.path} lacks projections ({', '.join(_PROJECTIONS)}) of the "
                "modules that adapter_config.json targets.",
                next_step=SAVE_AGAIN_OR_CHECK_BASE,
            )
        for group, values_of in projections.items():
            setattr(self, group, torch.nn.ModuleDict(values_of))

    return init


def _no_factors(
    self: object, projection: object, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """FRoD's U `[out_features, in_features]` and lambda `[in_features]`, only their shapes."""
    import torch

    return torch.zeros(weight.shape), torch.zeros(weight.shape[1])
