"""PEFT's layers on weights that are not there: what making them computes from these is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from packager.errors import AdapterMismatchError
from packager.merge.next_steps import SAVE_AGAIN_OR_CHECK_BASE
from packager.merge.plain.targets import PREFIX
from packager.model.tensor_file import TensorFile

# Initialisations of LoRA that compute from the base's weights what no file holds.
_FROM_BASE = ("pissa", "olora", "mica")
# What FRoD has for all modules of one kind.
_PROJECTIONS = ("frod_V", "frod_s_indices", "frod_s_size")


def is_made_again(config: Any) -> bool:
    """Whether a layer has to be made on its real weight, and not only merged into it.

    For most of these methods PEFT computes something from the weight when it makes the layer: the
    file then holds only a part of what was trained, or of what the base became. BOFT's layers hold
    permutation matrices as large as the base, and so are made one at a time.
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
    """Whether the shapes of the adapter's tensors come from the weights that they are made on."""
    return bool(config.peft_type.value == "ADAMSS")


def is_shared(key: str) -> bool:
    """Whether a key is of what every layer refers to, and the file holds once for the model."""
    return any(
        mark in key for mark in (".vblora_vector_bank.", ".tinylora_v.", ".unilora_theta_d.")
    )


@contextmanager
def placeholders(
    config: Any,
    empties: Mapping[int, tuple[str, ...]],
    weights: TensorFile,
    unread: dict[int, Any],
) -> Iterator[None]:
    """While PEFT injects layers, empty each before it makes the next: they keep no memory.

    Of layers that are made again later, nothing is computed.

    Args:
        config: PEFT's, of the adapter.
        empties: the base's parameters, which stay as they are, by their identity.
        weights: the adapter's tensor file.
        unread: gets the layers' own parameters, of which `load_adapter` sees to it that the file
            has them, by their identity.
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

            made = _projections_of(weights)
            stack.enter_context(replaced(tuner_class, "_init_frod_projections", made))
            stack.enter_context(replaced(FrodLayer, "_calculate_frod_u_and_lambda", _no_factors))
        yield


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """An attribute of PEFT's, another while this lasts."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _emptying(
    tuner_class: Any,
    config: Any,
    empties: Mapping[int, tuple[str, ...]],
    weights: TensorFile,
    unread: dict[int, Any],
) -> Callable[..., None]:
    """PEFT's `_create_and_replace`, and then its layer emptied of what comes from the file later.

    What a layer computed from the base is emptied where the layer is made again.
    """
    import torch
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
    from peft.tuners.tuners_utils import BaseTuner, cast_adapter_dtype

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING[config.peft_type]
    create = tuner_class._create_and_replace
    casts_plainly = tuner_class._cast_adapter_dtype is BaseTuner._cast_adapter_dtype
    again = is_made_again(config)

    def create_and_empty(
        self: Any,
        peft_config: Any,
        adapter: str,
        target: Any,
        name: str,
        parent: Any,
        current_key: str,
        **rest: Any,
    ) -> None:
        create(self, peft_config, adapter, target, name, parent, current_key=current_key, **rest)
        layer = getattr(parent, name)
        stem = f"{PREFIX}{current_key}."
        # What tied layers share, PEFT writes into when it makes the second.
        is_tied = any(len(empties.get(id(tensor), ())) > 1 for tensor in layer.parameters())
        if casts_plainly and not is_tied:
            # In the end PEFT does it for all layers, and would make values of what is empty.
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
            if is_own or (again and (is_base or is_computed)):
                tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    return create_and_empty


def _no_components(weight: Any, r: int, device: Any, dtype: Any, **_: object) -> tuple[Any, Any]:
    """AdaMSS's `slice_pca`: right and left singular vectors, in shape alone."""
    import torch

    outer, inner, rows, columns = weight.shape
    rank = min(r, rows, columns)
    return torch.zeros(outer, inner, rank, columns), torch.zeros(outer, inner, rows, rank)


def _even_clusters(vectors: Any, count: int, iterations: int) -> tuple[Any, int]:
    """AdaMSS's `clustering_Z`: as many clusters as it makes, of whatever rows."""
    import torch

    count = min(count, len(vectors))
    return torch.arange(len(vectors)) % count, count


def _projections_of(weights: TensorFile) -> Callable[..., None]:
    """FRoD's `_init_frod_projections`, with the shapes of the file's: their values come later.

    PEFT factors all layers' weights at once to make them, and then overwrites them with the file's.
    """

    def init(self: Any, config: Any, adapter: str) -> None:
        import torch
        from peft.tuners._buffer_dict import BufferDict

        found: dict[str, dict[str, Any]] = {group: {} for group in _PROJECTIONS}
        for name, info in weights.tensors.items():
            group, _, category = name.removeprefix("base_model.").partition(".")
            if group in found:
                values = torch.zeros(info.shape, dtype=info.torch_dtype)
                found[group][category] = BufferDict({adapter: values}, persistent=True)
        # PEFT asks a second time for a category that it has not found.
        if hasattr(self, "frod_V") or len({frozenset(made) for made in found.values()}) > 1:
            raise AdapterMismatchError(
                f"{weights.path} has not all projections ({', '.join(_PROJECTIONS)}) of the "
                "modules that adapter_config.json targets.",
                next_step=SAVE_AGAIN_OR_CHECK_BASE,
            )
        for group, made in found.items():
            setattr(self, group, torch.nn.ModuleDict(made))

    return init


def _no_factors(self: Any, projection: Any, weight: Any) -> tuple[Any, Any]:
    """FRoD's U `[out_features, in_features]` and lambda `[in_features]`, in shape alone."""
    import torch

    return torch.zeros(weight.shape), torch.zeros(weight.shape[1])
