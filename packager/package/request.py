"""What the user wants made: one options type for each stage, and a few fields for the whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from packager.gguf.quants import DEFAULT_QUANT, QUANTS, Quant
from packager.merge.merge_options import MergeOptions
from packager.prompt.prompt_options import PromptOptions
from packager.source.source_options import SourceOptions


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Which files are made.

    Attributes:
        quants: the quants to make, in order; empty for the default.
        out: the bundle's folder; None for `NAME-gguf` in the current folder.
        text_only: make only the text model of a multimodal model, without its `mmproj`.
        threads: how many threads quantize; 0 for one per core.
    """

    quants: tuple[Quant, ...] = ()
    out: Path | None = None
    text_only: bool = False
    threads: int = 0

    @property
    def wanted(self) -> tuple[Quant, ...]:
        """The quants to make, each once; the default if none is named."""
        return tuple(dict.fromkeys(self.quants)) or (QUANTS[DEFAULT_QUANT],)


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user wants made.

    Attributes:
        source: which fine-tune, and which base.
        merge: how adapters and base become one model.
        prompt: who renders prompts, and what the Modelfile says.
        build: which files are made.
        name: the model's name; None for the source's.
        force: go on where a check would refuse (`packager.override` lists what it covers).
    """

    source: SourceOptions
    merge: MergeOptions = field(default_factory=MergeOptions)
    prompt: PromptOptions = field(default_factory=PromptOptions)
    build: BuildOptions = field(default_factory=BuildOptions)
    name: str | None = None
    force: bool = False
