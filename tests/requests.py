"""Requests as tests write them: flat, with short names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from packager.bundle.manifest import Scalar
from packager.gguf.quants import parse_quant
from packager.merge.merge_options import Combination, Device, MergeOptions
from packager.package.request import BuildOptions, Request
from packager.prompt.ollama_version import OllamaVersion
from packager.prompt.prompt_options import PromptOptions, Renderer, Thinking
from packager.source.source_options import SourceOptions


def request_for(
    source: Path | str,
    quants: Sequence[str] = (),
    name: str | None = None,
    out: Path | None = None,
    base: Path | str | None = None,
    *,
    adapters: Sequence[Path | str] = (),
    keep_base_quantized: bool = False,
    checkpoint: str | None = None,
    revision: str | None = None,
    combine: str | None = None,
    weights: Sequence[float] = (),
    density: float | None = None,
    seed: int = 0,
    device: Device = "auto",
    text_only: bool = False,
    threads: int = 0,
    renderer: Renderer = "auto",
    chat_template_file: Path | None = None,
    thinking: Thinking = "as-trained",
    system: str | None = None,
    stops: Sequence[str] = (),
    parameters: Mapping[str, Scalar] | None = None,
    preset: str | None = None,
    context_length: int | None = None,
    ollama_version: str | None = None,
    force: bool = False,
) -> Request:
    """The request that the command line would make of the same options."""
    return Request(
        source=SourceOptions(
            str(source),
            adapters=tuple(map(str, adapters)),
            base=None if base is None else str(base),
            keep_base_quantized=keep_base_quantized,
            checkpoint=checkpoint,
            revision=revision,
        ),
        merge=MergeOptions(
            device=device, combination=Combination.parse(combine, weights, density, seed)
        ),
        prompt=PromptOptions(
            renderer=renderer,
            chat_template_file=chat_template_file,
            thinking=thinking,
            system=system,
            stops=tuple(stops),
            parameters=dict(parameters or {}),
            preset=preset,
            context_length=context_length,
            ollama_version=OllamaVersion.parse(ollama_version) if ollama_version else None,
        ),
        build=BuildOptions(
            quants=tuple(map(parse_quant, quants)), out=out, text_only=text_only, threads=threads
        ),
        name=name,
        force=force,
    )
