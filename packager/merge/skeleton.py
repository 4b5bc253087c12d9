"""PEFT's layers, with the adapter's values, in a model whose own weights take no memory."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.checkpoint import TensorFile
from packager.errors import (
    AdapterMismatchError,
    BaseMismatchError,
    NonFiniteError,
    UnsupportedError,
)
from packager.files import read_json
from packager.merge.layout import Layout, build_model, resize
from packager.merge.targets import PREFIX, listed

if TYPE_CHECKING:
    import torch

ADAPTER = "default"
_CHECK_BASE = "Name the base that was fine-tuned with --base PATH_OR_ID."
_SAVE_AGAIN = "Check --base; or save the adapter again with PEFT's save_pretrained."
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
        again: whether a layer has to be made anew on its real weight, since making it reads it.
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
    def tuner(self) -> Any:
        """PEFT's `BaseTuner`."""
        return self.peft_model.base_model

    @property
    def root(self) -> Any:
        """The base's model, with PEFT's layers in it."""
        return self.tuner.model


def build_skeleton(layout: Layout, folder: Path, weights: TensorFile) -> Skeleton:
    """Inject an adapter as PEFT does, and hold every tensor of its file to account.

    Args:
        layout: of the base.
        folder: the adapter's.
        weights: its tensor file.

    Raises:
        UnsupportedError: with PEFT's reason, where it does not take this adapter on this model.
        AdapterMismatchError: listing tensors that nothing would use, or layers that have none.
        BaseMismatchError: listing the shapes that differ.
        NonFiniteError: naming a tensor with NaN or Inf.
    """
    _check_file(weights)
    model = build_model(layout.folder)
    rows = _resized_rows(model, weights)
    if rows is not None:
        layout.resize(rows)
        resize(model, rows)
    empties = _empty(model, layout)
    with warnings.catch_warnings():
        # What PEFT only warns of is an error here, or is said by ftpack in its own words.
        warnings.simplefilter("ignore")
        config = _read_config(folder)
        skeleton = _inject(model, config, empties, folder, rows)
        _load(skeleton, folder, weights)
    return skeleton


def _read_config(folder: Path) -> Any:
    """PEFT's own configuration object; a key that it would ignore is an error."""
    from peft import PeftConfig

    path = folder / "adapter_config.json"
    config: Any = PeftConfig.from_pretrained(str(folder))
    known = set(type(config).__dataclass_fields__)
    unknown = sorted(key for key, value in read_json(path).items() if value and key not in known)
    if unknown:
        raise UnsupportedError(
            f"{path} sets {listed(unknown)}, which the installed PEFT does not know for "
            f"`peft_type` {config.peft_type.value!r}.",
            next_step="Upgrade peft to the version that made the adapter (`peft_version` there).",
        )
    config.inference_mode = True
    return config


def _resized_rows(model: Any, weights: TensorFile) -> int | None:
    """The rows of the embeddings that an adapter brings along, where they are not the base's.

    Raises:
        BaseMismatchError: if the file has not all the rows: they would be random.
    """
    found = {}
    for module in _embeddings(model):
        name = next(name for name, item in model.named_modules() if item is module)
        keys = (f"{PREFIX}{name}.weight", f"{PREFIX}{name}.base_layer.weight")
        shapes = [weights.tensors[key].shape for key in keys if key in weights.tensors]
        found[name] = shapes[0] if shapes else None
    rows = {shape[0] for shape in found.values() if shape}
    own = model.get_input_embeddings().weight
    if rows <= {own.shape[0]} or any(s and s[1:] != own.shape[1:] for s in found.values()):
        return None
    absent = [name for name, shape in found.items() if shape is None]
    is_tied = len({id(m.weight) for m in _embeddings(model)}) == 1
    if len(rows) > 1 or (absent and not is_tied):
        raise BaseMismatchError(
            f"{weights.path} has embeddings for a vocabulary of {max(rows)}, the base one of "
            f"{own.shape[0]}, and the adapter does not hold all the rows of both sides "
            f"({', '.join(f'{name}: {shape}' for name, shape in found.items())}).",
            next_step="Save the adapter again with save_embedding_layers=True, or name the base "
            "with the resized vocabulary with --base PATH.",
        )
    return rows.pop()


def _embeddings(model: Any) -> list[Any]:
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in both if module is not None]


def reads_base(config: Any) -> bool:
    """Whether PEFT computes something from a base weight when it makes the layer for it.

    The file then holds only a part of what was trained, or of what the base became.
    """
    method = config.peft_type.value
    if method == "LORA":
        init = config.init_lora_weights
        has_base_init = isinstance(init, str) and init.lower().startswith(_FROM_BASE)
        return has_base_init or config.kasa_config is not None
    return method in ("OSF", "PSOFT") or (
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

    again = reads_base(config)
    neutral = copy.deepcopy(config)
    if again and config.peft_type.value == "LORA":
        neutral.init_lora_weights = True
    model_class = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
    try:
        with _kept_empty(config, empties, again):
            peft_model = model_class(model, neutral, ADAPTER)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        # NoMatchingPeftModuleError is a ValueError.
        kind = BaseMismatchError if "target" in str(error).lower() else UnsupportedError
        raise kind(
            f"PEFT does not take {folder / 'adapter_config.json'} on this base: {_line(error)}",
            next_step=_CHECK_BASE,
        ) from error
    if config.peft_type.value == "LORA":
        neutral.init_lora_weights = config.init_lora_weights
    _require_every_target(folder, neutral, peft_model)
    _require_biases(folder, peft_model)
    return Skeleton(peft_model, neutral, empties, again, rows)


@contextmanager
def _kept_empty(config: Any, empties: Mapping[int, tuple[str, ...]], again: bool) -> Iterator[None]:
    """While PEFT injects layers that rewrite their base weight, make each weight empty again."""
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


def _load(skeleton: Skeleton, folder: Path, weights: TensorFile) -> None:
    """Let PEFT rename and load the adapter's tensors, and see where each of them went."""
    peft_model = skeleton.peft_model
    load_state_dict = peft_model.load_state_dict

    def take(state: dict[str, Any], strict: bool = False, **_: object) -> Any:
        _sort(skeleton, state, folder)
        return load_state_dict(skeleton.adapter, strict=False)

    peft_model.load_state_dict = take
    try:
        mapping = getattr(skeleton.root, "_checkpoint_conversion_mapping", {})
        result = peft_model.load_adapter(
            str(folder), ADAPTER, torch_device="cpu", key_mapping=mapping
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise AdapterMismatchError(
            f"PEFT cannot put the tensors of {weights.path} into this base: {_line(error)}",
            next_step=_SAVE_AGAIN,
        ) from error
    finally:
        del peft_model.load_state_dict
    _require_trained_biases(skeleton, weights)
    absent = [key for key in result.missing_keys if not _is_shared(key)]
    if absent:
        raise AdapterMismatchError(
            f"{weights.path} has no tensors for {len(absent)} parts of targeted modules: "
            f"{listed([key.removeprefix(PREFIX) for key in absent])}.",
            next_step="Save the adapter again with PEFT's save_pretrained, or check --base.",
        )


def _sort(skeleton: Skeleton, state: Mapping[str, Any], folder: Path) -> None:
    """Tell the adapter's values from those for the base's own parameters; check the shapes."""
    known = skeleton.peft_model.state_dict(keep_vars=True)
    left = sorted(key for key in state if key not in known and not _is_repeated(key, state))
    if left:
        raise AdapterMismatchError(
            f"{len(left)} adapter tensors in {folder} belong to no tuned module of this base"
            f"{_cause(left)}: {listed(left)}.",
            next_step=_SAVE_AGAIN,
        )
    differing = []
    for key, value in state.items():
        place = known.get(key)
        if place is None:
            continue
        if place.shape != value.shape:
            differing.append(
                f"{key.removeprefix(PREFIX)}: {list(value.shape)} found, {list(place.shape)} fits"
            )
        names = skeleton.empties.get(id(place))
        if names is None:
            skeleton.adapter[key] = value
        else:
            skeleton.overrides.update(dict.fromkeys(names, value))
    if differing:
        raise BaseMismatchError(
            f"Adapter and base do not fit: {len(differing)} shapes differ: "
            f"{listed(differing, '; ')}.",
            next_step=_CHECK_BASE,
        )


def _is_repeated(key: str, state: Mapping[str, Any]) -> bool:
    """Whether PEFT has saved a whole module twice, as it does where the vocabulary was resized."""
    import torch

    loaded = state.get(key.replace(".modules_to_save.", f".modules_to_save.{ADAPTER}."))
    return loaded is not None and ".modules_to_save." in key and torch.equal(loaded, state[key])


def _check_file(weights: TensorFile) -> None:
    """Refuse values that are no numbers, and two names for one place: one would silently win."""
    import torch

    plain: dict[str, str] = {}
    for name in weights.tensors:
        other = plain.setdefault(re.sub(rf"\.{ADAPTER}(?=\.|$)", "", name), name)
        if other != name:
            raise AdapterMismatchError(
                f"{weights.path} holds both {other!r} and {name!r}, which are the same to PEFT.",
                next_step="Save the adapter again with PEFT's save_pretrained.",
            )
        value = weights.load(name)
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFiniteError(
                f"The adapter's tensor {name!r} in {weights.path} has NaN or Inf.",
                next_step="The training run diverged; use an earlier checkpoint.",
            )


def _require_trained_biases(skeleton: Skeleton, weights: TensorFile) -> None:
    """The base's biases that were trained must be in the file: PEFT would keep the base's."""
    trained = getattr(skeleton.config, "bias", "none")
    if trained not in ("all", "lora_only"):
        return
    own = {
        id(parameter)
        for layer in skeleton.root.modules()
        if trained == "all" or hasattr(layer, "base_layer")
        for name, parameter in layer.named_parameters()
        if name.rpartition(".")[2] == "bias"
    }
    names = [names[0] for key, names in skeleton.empties.items() if key in own]
    absent = [name for name in names if name not in skeleton.overrides]
    if absent:
        raise AdapterMismatchError(
            f"adapter_config.json says `bias` {trained!r}, and {weights.path} has no tensors for "
            f"{len(absent)} of {len(names)} biases: {listed(absent)}.",
            next_step="Save the adapter again with PEFT's save_pretrained.",
        )


def _is_shared(key: str) -> bool:
    """What every layer refers to and the file holds once, for the whole model."""
    return any(mark in key for mark in ("vblora_vector_bank", ".tinylora_v.", ".unilora_theta_d."))


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cause(names: list[str]) -> str:
    """Why names are not as PEFT saves them, where that is known."""
    causes = {
        "_orig_mod.": " (saved from a compiled model)",
        ".module.": " (saved from a wrapped model)",
    }
    return next((text for mark, text in causes.items() if any(mark in n for n in names)), "")
