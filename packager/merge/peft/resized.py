"""A vocabulary that training has resized: PEFT saves its embeddings beside the adapter."""

from __future__ import annotations

from typing import Any

from packager.errors import BaseMismatchError
from packager.merge.plain.targets import PREFIX
from packager.model.tensor_file import TensorFile


def resized_rows(model: Any, weights: TensorFile) -> int | None:
    """The rows of the embeddings that an adapter brings along, where they are not the base's.

    Args:
        model: the base's, with or without weights.
        weights: the adapter's tensors.

    Raises:
        BaseMismatchError: if the file has not all the rows of both sides: they would be random.
    """
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    modules = [module for module in modules if module is not None]
    rows_of: dict[str, int | None] = {}
    covers_both = False
    for module in modules:
        name = next(name for name, item in model.named_modules() if item is module)
        whole, wrapped = f"{PREFIX}{name}.weight", f"{PREFIX}{name}.base_layer.weight"
        key = next((key for key in (whole, wrapped) if key in weights.tensors), None)
        # Under a tuned layer it is the base's own matrix, which a tied head shares.
        covers_both |= key == wrapped and module.weight is modules[0].weight is modules[-1].weight
        rows_of[name] = None if key is None else weights.tensors[key].shape[0]
    found = {rows for rows in rows_of.values() if rows is not None}
    own_rows = modules[0].weight.shape[0]
    if found <= {own_rows}:
        return None
    if len(found) > 1 or (None in rows_of.values() and not covers_both):
        held = ", ".join(f"{name}: {rows or 'none'}" for name, rows in rows_of.items())
        raise BaseMismatchError(
            f"{weights.path} has embeddings for a vocabulary of {max(found)}, the base one of "
            f"{own_rows}, and the adapter does not hold the rows of both sides ({held}).",
            next_step="Save the adapter again with save_embedding_layers=True, or name the base "
            "with the resized vocabulary with --base PATH.",
        )
    return found.pop()
