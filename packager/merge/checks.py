"""Whether all of the model and all of the adapters are in a merged model."""

from __future__ import annotations

from collections.abc import Collection

from packager.errors import MissingWeightsError, UnsupportedError, listed
from packager.merge.merged import Merged
from packager.merge.peft.layout import Layout
from packager.model.checkpoint import Checkpoint
from packager.override import refuse_unless
from packager.progress import Progress


def require_applied(
    model: Merged, progress: Progress, tensors_read: Collection[str] | None = None
) -> None:
    """Check, after everything was read, that every adapter was applied; warn if none had an effect.

    Args:
        model: what was read.
        progress: told if the adapters change nothing.
        tensors_read: the tensors that were to be read; None for all.

    Raises:
        AdapterMismatchError: if something of an adapter was left out.
    """
    model.require_all_used(tensors_read)
    if model.is_untrained:
        progress.warn("The adapter changes nothing (it is untrained): the model equals its base")


def require_complete(checkpoint: Checkpoint, force: bool, progress: Progress) -> None:
    """Refuse weights that are not all of the model: transformers would fill in random ones.

    Raises:
        MissingWeightsError: listing what is missing or has another shape than in the model, unless
            `force` is set.
    """
    try:
        faults = Layout(checkpoint.tensors, checkpoint.config).faults()
    except UnsupportedError as error:
        progress.note(f"Whether the model is complete was not checked: {error.message}")
        return
    if faults:
        refusal = MissingWeightsError(
            f"The weights do not fit the model that {checkpoint.config.path} describes: "
            f"{listed(faults, '; ')}.",
            next_step="Download or save the model again; if this is an adapter, add its "
            "adapter_config.json. With --force the model is written all the same.",
        )
        refuse_unless(force, refusal, progress)
