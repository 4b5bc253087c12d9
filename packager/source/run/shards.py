"""The shards that a parallel training run leaves, and the command that joins them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from packager.errors import CorruptFileError, UnsupportedError
from packager.model.tensor_file import PickleFile

_GLOBAL_STEP = re.compile(r"global_step\d+")
_ZERO_SCRIPT = "zero_to_fp32.py"
_COMPLETE_WEIGHTS = (
    "adapter_model.safetensors", "adapter_model.bin",
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip


def refuse_shards(folder: Path) -> None:
    """Refuse a folder whose only weights are the shards of a parallel run.

    Most training checkpoints have optimizer shards beside complete weights; these are accepted.

    Raises:
        UnsupportedError: with the shards, and the command that joins them.
    """
    if not folder.is_dir() or any((folder / name).is_file() for name in _COMPLETE_WEIGHTS):
        return
    if (pieces := _fsdp_folder(folder)) is not None:
        target = folder if pieces != folder else folder.parent
        raise UnsupportedError(
            f"{folder} holds only FSDP shards ({pieces.name}, .distcp files), no complete weights.",
            next_step=f"Join them with `accelerate merge-weights {_quoted(pieces)} "
            f"{_quoted(target)}`, which writes model.safetensors; put the base's config.json and "
            "tokenizer beside it.",
        )
    _refuse_fsdp_file(folder)
    if (step := _deepspeed_folder(folder)) is not None:
        top = folder if step != folder else folder.parent
        script = f"{_quoted(top / _ZERO_SCRIPT)} {_quoted(top)} {_quoted(top)}"
        has_script = (top / _ZERO_SCRIPT).is_file()
        raise UnsupportedError(
            f"{folder} holds only DeepSpeed shards ({step.name}), no complete weights.",
            next_step=f"Join them with `python {script} --safe_serialization`"
            + ("" if has_script else f" ({_ZERO_SCRIPT} comes with deepspeed)")
            + ", put config.json and the tokenizer beside the result, and package that folder.",
        )


def _refuse_fsdp_file(folder: Path) -> None:
    """Refuse the files that accelerate saves with FULL_STATE_DICT or LOCAL_STATE_DICT.

    The file may be complete, but has the names of the model in memory: only transformers and PEFT
    know what `save_pretrained` would write.
    """
    files = sorted(folder.glob("pytorch_model_fsdp*.bin"))
    if not files:
        return
    file = files[0]
    if "_rank" in file.name:
        raise UnsupportedError(
            f"{folder} holds only the FSDP weights of each process ({file.name}), no complete "
            "weights.",
            next_step="Resume the training from it with the same number of processes and with "
            "fsdp_state_dict_type FULL_STATE_DICT, and save with trainer.save_model().",
        )
    raise UnsupportedError(
        f"{folder} holds FSDP's FULL_STATE_DICT ({file.name}), but no weights that save_pretrained "
        "wrote.",
        next_step=f"{_save_again(folder, file)}, then package {folder}.",
    )


def _save_again(folder: Path, file: Path) -> str:
    """The command that converts a complete state into PEFT's or transformers' own files."""
    try:
        names = list(PickleFile(file).tensors)
    except CorruptFileError:
        names = []
    where = json.dumps(str(folder))
    state = f'torch.load({json.dumps(str(file))}, map_location="cpu", weights_only=True)'
    base = 't.AutoModelForCausalLM.from_pretrained("BASE", dtype="auto")'
    named = "replace BASE by the model that was trained"
    if not any(name.startswith("base_model.") for name in names):
        code = f"import torch, transformers as t; m = {base}; m.load_state_dict({state}); "
        return f"Save it as a model with {_python(code + f'm.save_pretrained({where})')} ({named})"
    has_config = (folder / "adapter_config.json").is_file()
    # PEFT's own state does not contain the adapter's name; the wrapped model's does.
    if not any(".default." in name for name in names):
        target = _quoted(folder / "adapter_model.bin")
        config = "" if has_config else ", put the run's adapter_config.json beside it"
        return f"It is the state of a PEFT adapter: `cp {_quoted(file)} {target}`{config}"
    config = f"peft.PeftConfig.from_pretrained({where})" if has_config else "CONFIG"
    code = (
        f"import torch, peft, transformers as t; m = peft.get_peft_model({base}, {config}); "
        f"m.save_pretrained({where}, state_dict={state})"
    )
    named += "" if has_config else ", and CONFIG by the run's own LoraConfig(...)"
    return f"Save it as an adapter with {_python(code)} ({named})"


def _fsdp_folder(folder: Path) -> Path | None:
    """The folder of the model's `.distcp` files; the optimizer's folder has another name."""
    inside = sorted(folder.glob("pytorch_model_fsdp*"))
    folders = (path for path in (*inside, folder) if any(path.glob("*.distcp")))
    return next(folders, None)


def _deepspeed_folder(folder: Path) -> Path | None:
    if _GLOBAL_STEP.fullmatch(folder.name) and any(folder.glob("*_states.pt")):
        return folder
    steps = [path for path in folder.iterdir() if _GLOBAL_STEP.fullmatch(path.name)]
    if steps:
        return max(steps, key=lambda path: int(path.name.removeprefix("global_step")))
    return folder if (folder / _ZERO_SCRIPT).is_file() else None


def _python(code: str) -> str:
    return f"`python -c {shlex.quote(code)}`"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
