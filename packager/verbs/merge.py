"""`ftpack merge`: the merged model as a folder, in 16 or in 4 bits; or the adapter, cleaned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packager.errors import CHOOSE_OUT, CHOOSE_OUT_OR_FORCE, OutputExistsError, UsageError
from packager.files import scratch_folder
from packager.merge.checks import require_complete
from packager.model.config import CONFIG_NAME
from packager.override import refuse_unless
from packager.package.merged_model import open_merged
from packager.package.prepare import adapters_of, open_inputs
from packager.package.request import Request
from packager.progress import Progress, Silent
from packager.quality.base_choice import BaseChoice, measure_base_choice
from packager.save.clean_adapter import save_adapter as write_clean_adapter
from packager.save.four_bit import plan_four_bit, require_bitsandbytes
from packager.save.merged_folder import require_room, save_merged
from packager.save.staged_folder import SavedFolder
from packager.source.inputs import Inputs
from packager.source.vocabulary_rows import require_rows

Form = Literal["merged_16bit", "merged_4bit"]


@dataclass(frozen=True)
class MergedFolder:
    """A merged model that was written.

    Attributes:
        saved: where it is, and its files.
        base_choice: how close the merge is to what was trained, for a base that bitsandbytes
            quantized, or its 16-bit original; else None.
    """

    saved: SavedFolder
    base_choice: BaseChoice | None


def merge(
    request: Request,
    folder: Path,
    progress: Progress | None = None,
    *,
    form: Form = "merged_16bit",
) -> MergedFolder:
    """Write source and base as one model that transformers loads; gives the folder and its files.

    Args:
        request: what to merge; only its `source`, `merge` and `force` are used.
        folder: the folder to write.
        progress: receives every decision, and the state of the work.
        form: `merged_16bit`, in the base's own element type, or `merged_4bit`, by bitsandbytes.

    Raises:
        ToolchainError: if `form` is `merged_4bit`, and bitsandbytes is not installed.
        OutputExistsError: if the folder contains a model, and `request.force` is not set; or if it
            is the source's or the base's own.
        UsageError: if options do not fit together, or the device does not exist.
        DiskSpaceError: if there is no room for the model.
        InputRefusedError: whatever is wrong with source or base.
    """
    progress = progress or Silent()
    _require_free(folder, request.force, progress)
    if form == "merged_4bit":
        require_bitsandbytes()
    inputs = open_inputs(request, progress)
    _require_elsewhere(folder, inputs)
    with scratch_folder() as scratch:
        merge_onto = adapters_of(inputs, request, scratch)
        model = open_merged(inputs, merge_onto, progress)
        require_rows(inputs, model.config, model.tensors)
        require_complete(model, request.force, progress)
        four_bit = plan_four_bit(model) if form == "merged_4bit" else None
        require_room(model, folder, four_bit)
        every_weight: dict[str, dict[str, str]] = {name: {} for name in model.tensors}
        base_choice = measure_base_choice(
            inputs.base, inputs.adapters, merge_onto, model, every_weight, progress
        )
        saved = save_merged(model, inputs.files, folder, progress, four_bit)
    return MergedFolder(saved, base_choice)


def save_adapter(request: Request, folder: Path, progress: Progress | None = None) -> SavedFolder:
    """Write the source's adapter, cleaned for publishing; see `packager.save.clean_adapter`.

    Args:
        request: which adapter; only its `source` and `force` are used.
        folder: the folder to write.
        progress: receives the chosen source, and what is left out.

    Raises:
        UsageError: if the source is not one adapter alone.
        InputRefusedError: what `packager.save.clean_adapter.save_adapter` raises.
    """
    if request.source.adapters or request.merge.combination:
        raise UsageError(
            "--save adapter writes SOURCE alone, but --adapter or --combine is given.",
            next_step="Omit these options, and save each adapter by itself.",
        )
    return write_clean_adapter(request.source, folder, progress or Silent(), force=request.force)


def _require_free(folder: Path, force: bool, progress: Progress) -> None:
    if (folder / CONFIG_NAME).exists():
        refusal = OutputExistsError(
            f"{folder} already contains a model ({CONFIG_NAME}).", next_step=CHOOSE_OUT_OR_FORCE
        )
        refuse_unless(force, refusal, progress)


def _require_elsewhere(folder: Path, inputs: Inputs) -> None:
    read_from = [inputs.model.folder, *(source.folder for source in inputs.sources)]
    if folder.resolve() in [path.resolve() for path in read_from]:
        raise OutputExistsError(
            f"{folder} is the folder that the model is read from.", next_step=CHOOSE_OUT
        )
