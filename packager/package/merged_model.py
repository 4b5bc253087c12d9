"""The model to package: the base's weights, dequantized if need be, with the adapters merged in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.merge.adapters import merge
from packager.merge.merge_options import MergeOptions
from packager.merge.merged import Merged
from packager.model.adapter import Adapter
from packager.model.checkpoint import Checkpoint
from packager.model.dequantize.dequantized import Dequantized
from packager.model.dequantize.formats import quantization_settings, require_plain
from packager.progress import Progress
from packager.source.inputs import Inputs


@dataclass(frozen=True)
class MergeOnto:
    """The adapters of a run, to be merged into any model.

    Attributes:
        adapters: the adapters, in order.
        options: how they are merged; the device is the one in use.
        scratch: the run's temporary folder.
    """

    adapters: tuple[Adapter, ...]
    options: MergeOptions
    scratch: Path

    def __call__(self, base: Checkpoint) -> Merged:
        """The merged model; no weight of the base is read.

        Raises:
            InputRefusedError: what `packager.merge.adapters.merge` raises if one does not fit.
        """
        return merge(base, self.adapters, self.options, self.scratch)


def open_merged(inputs: Inputs, merge_onto: MergeOnto, progress: Progress) -> Merged:
    """The merged model; adapters are compared with the base, and no weight of it is read.

    Raises:
        InputRefusedError: if an adapter does not fit.
        CorruptFileError: if weights are packed in a way that `config.json` does not describe.
    """
    merged = merge_onto(_plain_weights(inputs, progress))
    for warning in merged.facts.warnings:
        progress.warn(warning)
    return merged


def _plain_weights(inputs: Inputs, progress: Progress) -> Checkpoint:
    """The model's weights in 16 or 32 bits: nothing can be merged into packed ones."""
    model = inputs.model
    if quantization_settings(model.config) is None:
        require_plain(model)
        return model
    dequantized = Dequantized(model)
    require_plain(dequantized)
    progress.note(f"The {'base' if inputs.base else 'model'} is {dequantized.description}")
    return dequantized
