"""An adapter's configuration as PEFT's own object: no key ignored, no value of a wrong type."""

from __future__ import annotations

import dataclasses
import math
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from packager.errors import (
    BaseMismatchError,
    CorruptFileError,
    UnsupportedError,
    first_line,
    listed,
)
from packager.merge.next_steps import NAME_BASE
from packager.model.adapter import Adapter

# The name that PEFT's model has the adapter under.
ADAPTER_NAME = "default"
# What Unsloth adds to adapter_config.json about the layout of experts (`experts`).
UNSLOTH_KEYS = frozenset({"lora_B_layout", "unsloth_fused_expert_lora"})
# The JSON types of a value that PEFT declares as one of these; PEFT checks other declarations.
_JSON_TYPES: dict[object, tuple[type, ...]] = {
    bool: (bool,),
    # `lora_alpha` is declared an integer, and often is not one.
    int: (int, float),
    float: (float, int),
    str: (str,),
    dict: (dict,),
    list: (list,),
    set: (list,),
    tuple: (list,),
    type(None): (type(None),),
}


def read_peft_config(adapter: Adapter) -> Any:
    """PEFT's own configuration object of an adapter, for inference.

    Raises:
        UnsupportedError: naming keys that PEFT would ignore.
        CorruptFileError: naming the key whose value does not have the type that PEFT declares, or
            is not a valid pattern or rank; or with PEFT's reason.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    path, record = adapter.config.path, adapter.config.raw
    method = str(record.get("peft_type"))
    config_class: Any = PEFT_TYPE_TO_CONFIG_MAPPING.get(method)
    known = {*(config_class.__dataclass_fields__ if config_class else ()), *UNSLOTH_KEYS}
    unknown = sorted(key for key, value in record.items() if value and key not in known)
    if unknown:
        raise UnsupportedError(
            f"{path} sets {listed(unknown)}, which the installed PEFT does not know for "
            f"`peft_type` {method!r}.",
            next_step="Upgrade peft to the version that saved the adapter (`peft_version` there).",
        )
    _require_types(path, record, get_type_hints(config_class))
    _require_patterns(path, record)
    try:
        config: Any = PeftConfig.from_pretrained(str(adapter.folder))
    except ImportError as error:
        raise UnsupportedError(
            f"PEFT cannot load {path}: {first_line(error)}",
            next_step="Install the package that it needs (for AdaMSS: pip install scikit-learn).",
        ) from error
    # Each of its classes checks its values in its own way.
    except Exception as error:
        raise CorruptFileError(
            f"PEFT cannot read {path}: {type(error).__name__}: {' '.join(str(error).split())}",
            next_step="Restore the configuration from the training run.",
        ) from error
    config.inference_mode = True
    return config


def require_every_target(adapter: Adapter, config: Any, peft_model: Any) -> None:
    """Refuse an adapter with a target that the base does not have.

    PEFT only objects if it finds none of the targets: a typo in one of them is an error too.

    Args:
        adapter: messages name its file.
        config: PEFT's, of the adapter.
        peft_model: the base with PEFT's layers in it.

    Raises:
        BaseMismatchError: listing the targets.
    """
    targets = getattr(config, "target_modules", None)
    if not isinstance(targets, set | list):
        return
    modules = peft_model.base_model.targeted_module_names
    missing = [
        target
        for target in sorted(targets)
        if not any(module == target or module.endswith(f".{target}") for module in modules)
    ]
    if missing:
        raise BaseMismatchError(
            f"{adapter.config.path} targets modules that the base does not have: "
            f"{listed(missing)}.",
            next_step=NAME_BASE,
        )


def _require_types(path: Path, record: Mapping[str, object], hints: Mapping[str, object]) -> None:
    for key, value in record.items():
        # Older versions of PEFT write null for what newer ones declare without it.
        if value is not None and not _fits(value, hints.get(key, Any)):
            raise CorruptFileError(
                f"{path}: `{key}` is {str(value)[:80]!r}, which is not of the type in PEFT.",
                next_step="Restore the configuration from the training run.",
            )


def _require_patterns(path: Path, record: Mapping[str, object]) -> None:
    """Check the patterns that PEFT finds modules by, and the ranks and alphas that it gives them.

    PEFT only notices a mistake when it compares them with the base, and would blame the base.
    """
    for key in ("target_modules", "exclude_modules"):
        if isinstance(pattern := record.get(key), str):
            _require_expression(path, key, pattern)
    for key, is_allowed, kind in (
        ("rank_pattern", _is_rank, "a whole number above 0"),
        ("alpha_pattern", _is_alpha, "a number that is not 0"),
    ):
        patterns = record.get(key)
        # AdaLoRA keeps there which of a module's ranks remain; OSF also takes fractions of a rank.
        if not isinstance(patterns, dict) or record.get("peft_type") in ("ADALORA", "OSF"):
            continue
        for pattern, value in patterns.items():
            _require_expression(path, key, pattern)
            if not is_allowed(value):
                raise CorruptFileError(
                    f"{path}: `{key}` gives {pattern!r} {str(value)[:80]!r}, which must be {kind}.",
                    next_step="Restore the configuration from the training run.",
                )


def _require_expression(path: Path, key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise CorruptFileError(
            f"{path}: `{key}` has {pattern[:80]!r}, which is not a regular expression: {error}.",
            next_step="Restore the configuration from the training run.",
        ) from error


def _is_rank(value: object) -> bool:
    return type(value) is int and value > 0


def _is_alpha(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value != 0  # type: ignore[arg-type]


def _fits(value: object, hint: object) -> bool:
    """Whether a JSON value can have the type of a hint; other kinds of hints take everything."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        # A method's variants carry their settings in their names (`pissa_niter_4`).
        return type(value) in {type(part) for part in parts}
    if isinstance(hint, type) and issubclass(hint, str):  # PEFT's enumerations
        hint = str
    elif dataclasses.is_dataclass(hint):
        hint = dict
    allowed = _JSON_TYPES.get(origin or hint)
    if allowed is None:
        return True
    if type(value) not in allowed:
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if isinstance(value, list) and parts:
        return all(_fits(item, parts[0]) for item in value)
    if isinstance(value, dict) and len(parts) == 2:
        return all(_fits(item, parts[1]) for item in value.values())
    return True
