"""`ftpack merge --save adapter`: the adapter as it can be published, without the run's traces."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from packager.errors import (
    BaseNotFoundError,
    NonFiniteError,
    OutputExistsError,
    UsageError,
)
from packager.files import (
    made_folder,
    read_json,
    read_text,
    require_disk,
    whole_file,
    write_json,
    write_text,
)
from packager.model.adapter import ADAPTER_CONFIG_NAME, Adapter
from packager.package.plan import Request
from packager.progress import Progress
from packager.save.card import is_local_path, with_base
from packager.save.safetensors import write_tensors
from packager.source.hub.hub import find_cached, is_hub_id
from packager.source.open import Source, open_source
from packager.source.run.folders import TOKENIZER_FILES
from packager.verbs.merge import MergedFolder

if TYPE_CHECKING:
    import torch

_CARD = "README.md"
_WEIGHTS = "adapter_model.safetensors"
# What the model card that PEFT writes says where nobody has filled it in.
_PLACEHOLDER = "[More Information Needed]"
_LICENCES = re.compile(r"(LICEN[CS]E|NOTICE)[\w.-]*", re.IGNORECASE)
_CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]+)")


def publish_adapter(request: Request, folder: Path, progress: Progress) -> MergedFolder:
    """Write an adapter's folder that holds what others need, and nothing else.

    That is its configuration, with the base's Hub id in place of a local path; its weights; its
    tokenizer, chat template and licence; and a model card. Left out are optimizer states, training
    arguments and the like.

    Args:
        request: its `source`, and `base` where the recorded one is no Hub id.
        folder: where to.
        progress: told what is left out.

    Raises:
        UsageError: if the source is no adapter, or if there are several.
        BaseNotFoundError: if nothing tells the Hub id of the base.
        NonFiniteError: naming a tensor with NaN or Inf.
        OutputExistsError: if the folder holds an adapter already, and `request.force` is not set;
            or if it is the source's own.
    """
    if request.adapters or request.combine:
        raise UsageError(
            "--save adapter writes SOURCE alone, and --adapter or --combine is given.",
            next_step="Leave it away, and save each adapter by itself.",
        )
    if (folder / ADAPTER_CONFIG_NAME).exists() and not request.force:
        raise OutputExistsError(
            f"{folder} holds an adapter already ({ADAPTER_CONFIG_NAME}).",
            next_step="Choose another folder with --out, or overwrite it with --force.",
        )
    source = open_source(request.source, request.checkpoint, request.revision, progress)
    progress.note(f"Source: {source.reason}")
    if source.adapter is None:
        raise UsageError(
            f"--save adapter: SOURCE {request.source} is a full model.",
            next_step="Name an adapter's folder, or save the model with --save merged_16bit.",
        )
    if folder.resolve() == source.folder.resolve():
        raise OutputExistsError(
            f"{folder} is where the adapter is read from.",
            next_step="Choose another folder with --out.",
        )
    base, revision = _public_base(source.adapter, request.base)
    files = _write(source, source.adapter, (base, revision), folder)
    left = sorted({path.name for path in source.folder.iterdir()} - {path.name for path in files})
    if left:
        progress.note(f"Left out: {', '.join(left)}")
    return MergedFolder(folder, tuple(files), sum(path.stat().st_size for path in files))


def _public_base(adapter: Adapter, wanted: str | None) -> tuple[str, str | None]:
    """The Hub id of an adapter's base, and its revision where that is recorded."""
    name = wanted or adapter.config.base_model_name_or_path or ""
    if cached := _CACHED.search(name):
        return f"{cached[1]}/{cached[2]}", cached[3]
    if is_hub_id(name) and not Path(name).is_dir() and (wanted or _has_owner(name)):
        return name, None if wanted else adapter.config.revision
    raise BaseNotFoundError(
        f"{adapter.folder / ADAPTER_CONFIG_NAME}: `base_model_name_or_path` is "
        f"{adapter.config.base_model_name_or_path!r}"
        + (f", and --base is {wanted!r}" if wanted else "")
        + ": no Hub id with an owner, by which others find the base.",
        next_step="Name the base's Hub id with --base OWNER/NAME.",
    )


def _has_owner(name: str) -> bool:
    """Whether an id is more than a bare name, which may be a training machine's folder.

    A few old models have no owner (`gpt2`): that is believed of those in the Hub's cache.
    """
    return "/" in name or find_cached(name, None) is not None


def _write(
    source: Source, adapter: Adapter, base: tuple[str, str | None], folder: Path
) -> list[Path]:
    import torch

    tensors = {name: adapter.weights.load(name) for name in adapter.weights.tensors}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise NonFiniteError(
                f"The adapter's tensor {name!r} in {adapter.weights.path} has NaN or Inf.",
                next_step="The training run diverged; use an earlier checkpoint.",
            )
    require_disk(folder, sum(tensor.nbytes for tensor in tensors.values()), "The adapter")
    card = _card(source, adapter, base[0])
    with made_folder(folder):
        return _write_all(source, tensors, card, base, folder)


def _write_all(
    source: Source,
    tensors: Mapping[str, torch.Tensor],
    card: str,
    base: tuple[str, str | None],
    folder: Path,
) -> list[Path]:
    # Without its configuration it is no adapter, until everything is whole.
    (folder / ADAPTER_CONFIG_NAME).unlink(missing_ok=True)
    write_tensors(tensors, folder / _WEIGHTS)
    (folder / "adapter_model.bin").unlink(missing_ok=True)
    written = [folder / _WEIGHTS]
    for name, path in source.files.items():
        if TOKENIZER_FILES.fullmatch(name) or _LICENCES.fullmatch(name):
            (folder / name).parent.mkdir(exist_ok=True)
            _copy(path, folder / name)
            written.append(folder / name)
    write_text(folder / _CARD, card)
    config = read_json(source.folder / ADAPTER_CONFIG_NAME)
    config |= {"base_model_name_or_path": base[0], "revision": base[1], "inference_mode": True}
    write_json(folder / ADAPTER_CONFIG_NAME, config)
    return [*written, folder / _CARD, folder / ADAPTER_CONFIG_NAME]


def _copy(path: Path, target: Path) -> None:
    """Copy a file; of a tokenizer's configuration, without the paths of this machine."""
    if path.name == "tokenizer_config.json":
        config = read_json(path)
        local = [
            key
            for key, value in config.items()
            if key.endswith(("_path", "_file")) and isinstance(value, str)
            if is_local_path(value)
        ]
        if local:
            write_json(target, {key: config[key] for key in config if key not in local})
            return
    with path.open("rb") as source, whole_file(target) as copied:
        shutil.copyfileobj(source, copied)


def _card(source: Source, adapter: Adapter, base: str) -> str:
    """The user's own model card with the base's id in it; where there is none, a short one."""
    path = source.folder / _CARD
    if path.is_file():
        text = read_text(path, "Save it as UTF-8, or remove it: a short one is written then.")
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
