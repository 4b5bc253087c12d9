"""The user's options for the source and its base."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass


@dataclass(frozen=True)
class SourceOptions:
    """The choice of a fine-tune and its base.

    Attributes:
        source: an adapter, a training output, or a full model: a folder, a Hub id, or a ModelScope
            id (`modelscope://ORG/NAME`); `adapters` and `base` take the same forms.
        adapters: further adapters; the source is the first, or the base of them all.
        base: the base model; None for the one that the adapter records.
        keep_base_quantized: use a bitsandbytes base that the adapter records as it is, even where
            its 16-bit original is available.
        checkpoint: `N`, `best` or `last` of a training output; None for its final save.
        revision: the branch, tag or commit of the id in `source`, or else of the base.
    """

    source: str
    _: KW_ONLY
    adapters: tuple[str, ...] = ()
    base: str | None = None
    keep_base_quantized: bool = False
    checkpoint: str | None = None
    revision: str | None = None
