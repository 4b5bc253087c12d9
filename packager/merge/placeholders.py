"""PEFT's layers on weights that are not there: what making them computes from these is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from packager.checkpoint import TensorFile
from packager.errors import AdapterMismatchError
from packager.merge.targets import PREFIX

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


@contextmanager
def placeholders(
    config: Any, empties: Mapping[int, tuple[str, ...]], weights: TensorFile
) -> Iterator[None]:
    """While PEFT injects layers that are made again later: compute nothing, keep no memory.

    Args:
        config: PEFT's, of the adapter.
        empties: the base's parameters, which stay as they are, by their identity.
        weights: the adapter's tensor file.
    """
    if not is_made_again(config):
        yield
        return
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    tuner_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    with ExitStack() as stack:
        create = tuner_class._create_and_replace
        emptying = _emptying(create, empties, weights)
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
    create: Callable[..., None], empties: Mapping[int, tuple[str, ...]], weights: TensorFile
) -> Callable[..., None]:
    """PEFT's `_create_and_replace`, and then all emptied but what the file has values for."""
    import torch

    def create_and_empty(
        self: Any, peft_config: Any, adapter: str, target: Any, name: str, parent: Any, **rest: Any
    ) -> None:
        create(self, peft_config, adapter, target, name, parent, **rest)
        stem = f"{PREFIX}{rest['current_key']}."
        for own, tensor in _held_by(getattr(parent, name)):
            in_file = stem + own.removesuffix(f".{adapter}") in weights.tensors
            is_adapter = isinstance(tensor, torch.nn.Parameter) or in_file
            if id(tensor) in empties or not is_adapter:
                tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    return create_and_empty


def _held_by(layer: Any) -> list[tuple[str, Any]]:
    return [*layer.named_parameters(), *layer.named_buffers()]


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
                next_step="Save the adapter again with PEFT's save_pretrained, or check --base.",
            )
        for group, made in found.items():
            setattr(self, group, torch.nn.ModuleDict(made))

    return init


def _no_factors(self: Any, projection: Any, weight: Any) -> tuple[Any, Any]:
    """FRoD's U `[out_features, in_features]` and lambda `[in_features]`, in shape alone."""
    import torch

    return torch.zeros(weight.shape), torch.zeros(weight.shape[1])
