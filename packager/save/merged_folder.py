"""A merged model as a folder that transformers loads, in 16 or in 4 bits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from packager.files import require_disk, whole_file, write_json
from packager.merge.checks import require_applied
from packager.merge.merged import Merged
from packager.model.config import CONFIG_NAME, ModelConfig
from packager.model.model_file import ModelFile
from packager.progress import Progress
from packager.save.four_bit import FourBitPlan, save_four_bit
from packager.save.safetensors import save_safetensors
from packager.save.staged_folder import SavedFolder, staged

# They describe the training run or another model.
_NOT_COPIED = ("README.md", "trainer_state.json")


def require_room(model: Merged, folder: Path, four_bit: FourBitPlan | None) -> None:
    """Refuse a model for which the folder has no room.

    Args:
        model: the model.
        folder: the folder to write.
        four_bit: how its weights are quantized by bitsandbytes; None to write them as they are.

    Raises:
        DiskSpaceError: with the size of the weights and the free space.
    """
    sizes = (info.size_bytes for info in model.tensors.values())
    require_disk(folder, four_bit.size_bytes if four_bit else sum(sizes), "The merged model")


def save_merged(
    model: Merged,
    files: Mapping[str, ModelFile],
    folder: Path,
    progress: Progress,
    four_bit: FourBitPlan | None = None,
) -> SavedFolder:
    """Write a merged model and the files that describe it; gives the folder and its files.

    After an error the folder is as it was.

    Args:
        model: the model; names, shapes and dtypes are written as they are.
        files: the tokenizer and other files that belong to it, by name.
        folder: the folder to write.
        progress: receives the bytes of the weights as they are written.
        four_bit: how its weights are quantized by bitsandbytes; None to write them as they are.

    Raises:
        NonFiniteError: naming the tensor that holds NaN or Inf.
        AdapterMismatchError: if something of an adapter was left out.
    """
    config = model.config
    with staged(folder) as staging:
        if four_bit:
            weights = save_four_bit(model, four_bit, staging, progress)
            config = config.replaced({**config.values, "quantization_config": four_bit.config})
        else:
            weights = save_safetensors(model, staging, progress)
        names = [path.name for path in weights]
        names += _copy(files, staging)
        _write_config(config, staging)
        require_applied(model, progress)
    return SavedFolder(folder, tuple(folder / name for name in (*names, CONFIG_NAME)))


def _write_config(config: ModelConfig, folder: Path) -> None:
    """Copy `config.json`, or write it anew if merging or quantizing has changed it."""
    if config.is_changed:
        write_json(folder / CONFIG_NAME, config.values)
    else:
        copy_file(config.path, folder / CONFIG_NAME)


def _copy(files: Mapping[str, ModelFile], folder: Path) -> list[str]:
    names = [name for name in files if name not in _NOT_COPIED]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        copy_file(files[name].path, folder / name)
    return names


def copy_file(path: Path, target: Path) -> None:
    """Copy a file, completely or not at all."""
    with path.open("rb") as source, whole_file(target) as copy:
        shutil.copyfileobj(source, copy)
