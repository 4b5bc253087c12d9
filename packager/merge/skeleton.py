"""PEFT's layers, with the adapter's values, in a model whose own weights take no memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.checkpoint import TensorFile
from packager.errors import BaseMismatchError, UnsupportedError
from packager.merge.layout import Layout, build_model, resize
from packager.merge.peft_config import read_peft_config
from packager.merge.resized import resized_rows
from packager.merge.targets import listed

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
_CHECK_BASE = "Name the base that was fine-tuned with --base PATH_OR_ID."
# Initialisations of LoRA that compute from the base's weights what no file holds.
_FROM_BASE = ("pissa", "olora", "mica")


@dataclass
class Skeleton:
    """A tuned model without the base's weights.

    Attributes:
        peft_model: PEFT's model around it.
        config: PEFT's configuration of the adapter.
        empties: the base's parameters and buffers as they are in `peft_model`, of no size: the
            names that each has in the base's model, by its identity.
        overrides: values of the adapter's file for the base's own parameters (biases, resized
            embeddings), by name.
        adapter: the adapter's values by their keys in `peft_model`.
        again: whether a layer has to be made anew on its real weight (`is_made_again`).
        rows: the size of the vocabulary, where the adapter's training has changed it.
    """

    peft_model: Any
    config: Any
    empties: dict[int, tuple[str, ...]]
    again: bool
    rows: int | None = None
    overrides: dict[str, torch.Tensor] = field(default_factory=dict)
    adapter: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def is_factored(self) -> bool:
        """Whether PEFT computes a factorization of the base's weights again."""
        return self.again and self.config.peft_type.value not in ("BOFT", "SUPERTUNING")

    @property
    def tuner(self) -> Any:
        """PEFT's `BaseTuner`."""
        return self.peft_model.base_model

    @property
    def root(self) -> Any:
        """The base's model, with PEFT's layers in it."""
        return self.tuner.model


def build_skeleton(layout: Layout, folder: Path, weights: TensorFile) -> Skeleton:
    """Put PEFT's layers for an adapter into the base's model; its values are still to be loaded.

    Args:
        layout: of the base; it takes the size of the adapter's vocabulary.
        folder: the adapter's.
        weights: its tensor file, of which only the header is looked at.

    Raises:
        UnsupportedError: with PEFT's reason, where it does not take this adapter on this model.
        BaseMismatchError: if the base has not the targeted modules, or another vocabulary.
    """
    model = build_model(layout.folder)
    rows = resized_rows(model, weights)
    if rows is not None:
        layout.resize(rows)
        resize(model, rows)
    empties = _empty(model, layout)
    with warnings.catch_warnings():
        # What PEFT only warns of is an error here, or is said by ftpack in its own words.
        warnings.simplefilter("ignore")
        return _inject(model, read_peft_config(folder), empties, folder, rows)


def empty_model(layout: Layout) -> Any:
    """The base's model, its weights zeros that take no memory."""
    model = build_model(layout.folder)
    _empty(model, layout)
    return model


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
    return method in ("BOFT", "OSF", "PSOFT") or (
        method == "SUPERTUNING" and not config.save_precomputed_indices
    )


def _empty(model: Any, layout: Layout) -> dict[int, tuple[str, ...]]:
    """Replace what a model on the meta device holds by zeros that take no memory.

    Not by nothing: PEFT would put its own layers on the meta device, too, and lose what it makes
    there from seeds.
    """
    import torch

    made: dict[int, Any] = {}
    names: dict[int, list[str]] = {}
    for module_name, module in model.named_modules():
        stem = f"{module_name}." if module_name else ""
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None:
                continue
            if name in module._non_persistent_buffers_set:
                # No file holds it and merging has no use for it: if it had, the result would show.
                module._buffers[name] = torch.full_like(
                    value, float("nan") if value.is_floating_point() else 0, device="cpu"
                )
                continue
            if id(value) not in made:
                zeros = torch.zeros((), dtype=layout.dtype(stem + name)).expand(value.shape)
                is_parameter = name in module._parameters
                made[id(value)] = (
                    torch.nn.Parameter(zeros, requires_grad=False) if is_parameter else zeros
                )
            empty = made[id(value)]
            (module._parameters if name in module._parameters else module._buffers)[name] = empty
            names.setdefault(id(empty), []).append(stem + name)
    model._ftpack_empties = list(made.values())  # ids stay theirs while these live
    return {key: tuple(value) for key, value in names.items()}


def _inject(
    model: Any, config: Any, empties: dict[int, tuple[str, ...]], folder: Path, rows: int | None
) -> Skeleton:
    from peft import PeftModel
    from peft.auto import MODEL_TYPE_TO_PEFT_MODEL_MAPPING

    again = is_made_again(config)
    neutral = copy.deepcopy(config)
    if again and config.peft_type.value == "LORA":
        neutral.init_lora_weights = True
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    try:
        with _kept_empty(config, empties, again):
            peft_model = model_class(model, neutral, ADAPTER)
    # Each of its methods fails in its own way at what it does not take.
    except Exception as error:
        kind = BaseMismatchError if "target" in str(error).lower() else UnsupportedError
        raise kind(
            f"PEFT does not take {folder / 'adapter_config.json'} on this base: "
            f"{first_line(error)}",
            next_step=_CHECK_BASE,
        ) from error
    if config.peft_type.value == "LORA":
        neutral.init_lora_weights = config.init_lora_weights
    _require_every_target(folder, neutral, peft_model)
    _require_biases(folder, peft_model)
    return Skeleton(peft_model, neutral, empties, again, rows)


@contextmanager
def _kept_empty(config: Any, empties: Mapping[int, tuple[str, ...]], again: bool) -> Iterator[None]:
    """While PEFT injects layers that are made again later, empty what each of them holds."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    if not again:
        yield
        return
    import torch

    tuner_class: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    create = tuner_class._create_and_replace

    def create_and_empty(
        self: Any,
        peft_config: Any,
        adapter: str,
        target: Any,
        name: str,
        parent: Any,
        **kwargs: Any,
    ) -> None:
        create(self, peft_config, adapter, target, name, parent, **kwargs)
        layer = getattr(parent, name)
        for tensor in [*layer.parameters(), *layer.buffers()]:
            if id(tensor) in empties or not isinstance(tensor, torch.nn.Parameter):
                tensor.data = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)

    tuner_class._create_and_replace = create_and_empty
    try:
        yield
    finally:
        tuner_class._create_and_replace = create


def _require_every_target(folder: Path, config: Any, peft_model: Any) -> None:
    """PEFT only minds when none of the targets is found; a typo in one of them is an error too."""
    wanted = getattr(config, "target_modules", None)
    if not isinstance(wanted, set | list):
        return
    found = peft_model.base_model.targeted_module_names
    missing = [
        target
        for target in sorted(wanted)
        if not any(name == target or name.endswith(f".{target}") for name in found)
    ]
    if missing:
        raise BaseMismatchError(
            f"{folder / 'adapter_config.json'} targets modules that the base does not have: "
            f"{listed(missing)}.",
            next_step=_CHECK_BASE,
        )


def _require_biases(folder: Path, peft_model: Any) -> None:
    """A trained bias needs one in the base to be added to."""
    for name, layer in peft_model.base_model.model.named_modules():
        has_bias = getattr(layer, "lora_bias", {}).get(ADAPTER) or hasattr(layer, "beft_bias")
        if has_bias and getattr(layer.get_base_layer(), "bias", None) is None:
            raise UnsupportedError(
                f"{folder} has trained a bias for {name}, and the base has none there to add it "
                "to.",
                next_step="Train without `lora_bias`, or on modules that have a bias: a merged "
                "model has no place for it.",
            )


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
