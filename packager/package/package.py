"""A package: everything is decided, but no weight is read and nothing is written yet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packager.bundle.manifest import AdapterIdentity
from packager.gguf.convert import Conversion
from packager.gguf.quants import Quant
from packager.gguf.types import TypedQuant
from packager.merge.merged import Merged
from packager.package.merged_model import MergeOnto
from packager.package.names import file_stem, gguf_name
from packager.package.request import BuildOptions
from packager.prompt.prompt_plan import PromptPlan
from packager.source.inputs import Inputs


@dataclass(frozen=True)
class PlannedGguf:
    """A file to be made.

    Attributes:
        file_name: its name in the bundle.
        conversion: its tensors and metadata.
        typed: what each tensor becomes.
        is_projector: whether it is the `mmproj` of a multimodal model.
    """

    file_name: str
    conversion: Conversion
    typed: TypedQuant
    is_projector: bool = False


@dataclass(frozen=True)
class Package:
    """Everything that a build needs to know.

    Attributes:
        name: the model's name.
        inputs: source and base.
        adapters: the digests of the adapters, in order.
        merge_onto: what merges them into a model.
        model: the merged model.
        text: the text model's tensors and metadata, which every quant shares.
        prompt: the chat template, who renders it, and what the Modelfile says.
        files: the files to be made: the quants in the order of the request, then the `mmproj`.
        options: where they go, and how many threads quantize.
        context_length: the context in tokens that was asked for; None for the model's own.
        force: whether another model's files in `out` may be overwritten.
    """

    name: str
    inputs: Inputs
    adapters: tuple[AdapterIdentity, ...]
    merge_onto: MergeOnto
    model: Merged
    text: Conversion
    prompt: PromptPlan
    files: tuple[PlannedGguf, ...]
    options: BuildOptions
    context_length: int | None
    force: bool

    @property
    def out(self) -> Path:
        """The bundle's folder."""
        return self.options.out or Path(f"{file_stem(self.name)}-gguf")

    @property
    def ggufs(self) -> tuple[PlannedGguf, ...]:
        """The quants to be made."""
        return tuple(file for file in self.files if not file.is_projector)

    @property
    def projector(self) -> PlannedGguf | None:
        """The `mmproj` to be made, if the model has one."""
        return next((file for file in self.files if file.is_projector), None)

    def file_name(self, quant: Quant) -> str:
        """The name that a quant of this model has in the bundle."""
        return gguf_name(self.name, quant)
