"""The device that adapters are merged on."""

from __future__ import annotations

from packager.errors import UsageError
from packager.merge.merge_options import Device


def choose_device(wanted: Device) -> Device:
    """The device to merge on, as torch names it; for `auto`, a GPU where torch finds one.

    Raises:
        UsageError: if a GPU is asked for and torch finds none.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda" if wanted == "auto" else wanted
    if wanted == "auto":
        return "cpu"
    raise UsageError(
        f"--device {wanted}: torch finds no CUDA device.",
        next_step="Use --device cpu, or check the driver and the torch build.",
    )
