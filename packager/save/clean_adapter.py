"""A clean adapter: what others need, without the traces of the training run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import (
    CHOOSE_OUT,
    CHOOSE_OUT_OR_FORCE,
    USE_EARLIER_CHECKPOINT,
    BaseNotFoundError,
    NonFiniteError,
    OutputExistsError,
    UsageError,
)
from packager.files import made_folder, read_text, require_disk, write_json, write_text
from packager.model.adapter import ADAPTER_CONFIG_NAME, WEIGHT_NAMES, Adapter
from packager.model.model_file import ModelFile
from packager.model.tokenizer import TOKENIZER_CONFIG
from packager.override import refuse_unless
from packager.progress import Progress
from packager.save.card import is_local_path, with_base
from packager.save.merged_folder import copy_file
from packager.save.safetensors import write_tensors
from packager.save.staged_folder import SavedFolder
from packager.source.hub.hub import find_cached, is_hub_id
from packager.source.open import Source, open_source
from packager.source.run.folders import TOKENIZER_FILES
from packager.source.source_options import SourceOptions

if TYPE_CHECKING:
    import torch

_CARD = "README.md"
# What PEFT's model card says until somebody completes it.
_PLACEHOLDER = "[More Information Needed]"
_LICENCES = re.compile(r"(LICEN[CS]E|NOTICE)[\w.-]*", re.IGNORECASE)
_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]+)")


@dataclass(frozen=True)
class PublicBase:
    """A base as others find it on the Hub.

    Attributes:
        model_id: its Hub id, nearly always with an owner.
        revision: its commit, if that is recorded.
    """

    model_id: str
    revision: str | None


def save_adapter(
    options: SourceOptions, folder: Path, progress: Progress, *, force: bool = False
) -> SavedFolder:
    """Write an adapter's folder with only what others need; gives the folder and its files.

    They need its configuration, with the base's Hub id in place of a local path; its weights; its
    tokenizer, chat template and licence; and a model card. Optimizer states, training arguments and
    the like are left out.

    Args:
        options: the adapter, and the Hub id of its base if the adapter does not record one.
        folder: the folder to write.
        progress: receives the chosen source, and what is left out.
        force: whether to overwrite an adapter in `folder`.

    Raises:
        UsageError: if the source is a full model.
        BaseNotFoundError: if the base's Hub id is not known.
        NonFiniteError: naming a tensor with NaN or Inf.
        OutputExistsError: if the folder contains an adapter, and `force` is not set; or if it is
            the source's own.
    """
    if (folder / ADAPTER_CONFIG_NAME).exists():
        refusal = OutputExistsError(
            f"{folder} already contains an adapter ({ADAPTER_CONFIG_NAME}).",
            next_step=CHOOSE_OUT_OR_FORCE,
        )
        refuse_unless(force, refusal, progress)
    source = open_source(options.source, options.checkpoint, options.revision, progress)
    progress.note(f"Source: {source.reason}")
    if source.adapter is None:
        raise UsageError(
            f"--save adapter: SOURCE {options.source} is a full model.",
            next_step="Name an adapter's folder, or save the model with --save merged_16bit.",
        )
    if folder.resolve() == source.folder.resolve():
        raise OutputExistsError(
            f"{folder} is the folder that the adapter is read from.", next_step=CHOOSE_OUT
        )
    base = _public_base(source.adapter, options.base)
    files = _write(source, source.adapter, base, folder, progress)
    left_out = {path.name for path in source.folder.iterdir()} - {path.name for path in files}
    if left_out:
        progress.note(f"Left out: {', '.join(sorted(left_out))}")
    return SavedFolder(folder, tuple(files))


def _public_base(adapter: Adapter, wanted: str | None) -> PublicBase:
    """The base's Hub id: the one that the user names, else the recorded one."""
    name = wanted or adapter.config.base_model_name_or_path or ""
    if cached := _CACHED.search(name):
        return PublicBase(f"{cached[1]}/{cached[2]}", cached[3])
    if is_hub_id(name) and not Path(name).is_dir() and (wanted or _has_owner(name)):
        return PublicBase(name, None if wanted else adapter.config.revision)
    raise BaseNotFoundError(
        f"{adapter.config.path}: `base_model_name_or_path` is "
        f"{adapter.config.base_model_name_or_path!r}"
        + (f", and --base is {wanted!r}" if wanted else "")
        + ": others cannot find the base without a Hub id that has an owner.",
        next_step="Name the base's Hub id with --base OWNER/NAME.",
    )


def _has_owner(name: str) -> bool:
    """Whether an id has an owner; a bare name may be a folder of the training machine.

    A few old models have no owner (`gpt2`); they are accepted if they are in the Hub's cache.
    """
    return "/" in name or find_cached(name, None) is not None


def _write(
    source: Source, adapter: Adapter, base: PublicBase, folder: Path, progress: Progress
) -> list[Path]:
    size_bytes = sum(info.size_bytes for info in adapter.weights.tensors.values())
    require_disk(folder, size_bytes, "The adapter")
    tensors = _load_finite(adapter, progress)
    card = _card(source, adapter, base.model_id)
    with made_folder(folder):
        return _write_all(source, adapter, tensors, card, base, folder)


def _load_finite(adapter: Adapter, progress: Progress) -> dict[str, torch.Tensor]:
    """Every tensor of an adapter; NaN and Inf are refused."""
    import torch

    tensors = {}
    size_bytes = sum(info.size_bytes for info in adapter.weights.tensors.values())
    with progress.task("Reading the adapter", size_bytes) as task:
        for name in adapter.weights.tensors:
            tensor = adapter.weights.load(name)
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise NonFiniteError(
                    f"The adapter's tensor {name!r} in {adapter.weights.path} has NaN or Inf.",
                    next_step=USE_EARLIER_CHECKPOINT,
                )
            tensors[name] = tensor
            task.advance(tensor.nbytes)
    return tensors


def _write_all(
    source: Source,
    adapter: Adapter,
    tensors: Mapping[str, torch.Tensor],
    card: str,
    base: PublicBase,
    folder: Path,
) -> list[Path]:
    # Without its configuration the folder is not an adapter, until everything is complete.
    (folder / ADAPTER_CONFIG_NAME).unlink(missing_ok=True)
    write_tensors(tensors, folder / WEIGHT_NAMES[0])
    (folder / WEIGHT_NAMES[1]).unlink(missing_ok=True)
    written = [folder / WEIGHT_NAMES[0]]
    for name, file in source.files.items():
        if TOKENIZER_FILES.fullmatch(name) or _LICENCES.fullmatch(name):
            (folder / name).parent.mkdir(exist_ok=True)
            _copy(file, folder / name)
            written.append(folder / name)
    write_text(folder / _CARD, card)
    config = {
        **adapter.config.raw,
        "base_model_name_or_path": base.model_id,
        "revision": base.revision,
        "inference_mode": True,
    }
    write_json(folder / ADAPTER_CONFIG_NAME, config)
    return [*written, folder / _CARD, folder / ADAPTER_CONFIG_NAME]


def _copy(file: ModelFile, target: Path) -> None:
    """Copy a file; leave local paths out of a tokenizer's configuration."""
    if file.path.name == TOKENIZER_CONFIG:
        local = [
            key
            for key, value in file.json.items()
            if key.endswith(("_path", "_file")) and isinstance(value, str)
            if is_local_path(value)
        ]
        if local:
            write_json(target, {k: value for k, value in file.json.items() if k not in local})
            return
    copy_file(file.path, target)


def _card(source: Source, adapter: Adapter, base: str) -> str:
    """The user's own model card, with the base's Hub id; a short one if there is none."""
    path = source.folder / _CARD
    if path.is_file():
        text = read_text(path, "Save it as UTF-8, or remove it to get a short one.")
        if _PLACEHOLDER not in text:
            return with_base(text, adapter.config.base_model_name_or_path or "", base)
    ranks = f", rank {adapter.config.rank}" if adapter.config.rank is not None else ""
    ranks += f", alpha {adapter.config.alpha:g}" if adapter.config.alpha is not None else ""
    return f"""---
base_model: {base}
library_name: peft
pipeline_tag: text-generation
tags:
- {"lora" if "LoRA" in adapter.config.method else "peft"}
---

# {source.folder.absolute().name}

A {adapter.config.method} adapter for [{base}](https://huggingface.co/{base}){ranks}, on
{adapter.config.target_modules}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(model, "NAME_OF_THIS_REPOSITORY")
```
"""
