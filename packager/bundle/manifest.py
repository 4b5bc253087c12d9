"""What a bundle's manifest tells: plain data, to JSON and back.

Its bytes depend on what was packaged alone: no time, no path of this machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from packager.errors import CorruptFileError

Scalar = int | float | str | bool

SCHEMA = 4
MANIFEST = "manifest.json"
_ABSENT = object()
RESTORE = "Take the whole folder again from where it was built, or package the model again."


@dataclass(frozen=True)
class GgufFile:
    """A GGUF of the bundle.

    Attributes:
        name: its file name.
        quant: llama.cpp's name of the quantization, `Q5_K_M`.
        size_bytes: its size.
        sha256: its digest, in hexadecimal.
        bits_per_weight: what its tensors really take, over all weights.
        fallbacks: tensors that have another type than the quantization asks for, and why.
    """

    name: str
    quant: str
    size_bytes: int
    sha256: str
    bits_per_weight: float
    fallbacks: tuple[str, ...]


@dataclass(frozen=True)
class BaseIdentity:
    """Which base model was used.

    Attributes:
        id: the model's id where it is known, else the folder's name.
        revision: the Hub's commit, where there is one.
        config_sha256: the digest of its `config.json`.
        index_sha256: the digest of what says which tensors it has: its shards' index, or the
            header of its only file; None in bundles of earlier versions.
    """

    id: str
    revision: str | None
    config_sha256: str
    index_sha256: str | None = None


@dataclass(frozen=True)
class AdapterIdentity:
    """Which adapter was merged.

    Attributes:
        name: the folder's name.
        sha256: the digest of its weights file.
        method: PEFT's name of the method, `LORA`.
        rank: its rank, where the method has one.
    """

    name: str
    sha256: str
    method: str
    rank: int | None


@dataclass(frozen=True)
class TrainedTemplate:
    """The chat template of training, with what it was told.

    Attributes:
        source: the Jinja text.
        tool_use: the one for conversations with tools, where there is one of its own.
        tokens: the special tokens by the names that a template has for them (`bos_token`).
        variables: what else it was told (`enable_thinking`).
    """

    source: str
    tool_use: str | None
    tokens: Mapping[str, str]
    variables: Mapping[str, Scalar]


@dataclass(frozen=True)
class PromptRecord:
    """What was decided about the prompt.

    Attributes:
        renderer: who renders, `native` (the GGUF's Jinja) or `TEMPLATE` (Go).
        family: the family of templates that it belongs to, where it is a known one.
        reason: why, in one sentence.
        template_origin: the file that the training's chat template came from.
        template: the Go template, where that one renders.
        system: the default system text.
        stops: the texts that end an answer.
        parameters: the other parameters, by Ollama's names.
        pins: variables that the GGUF's chat template sets to what they were in training.
        trained: the chat template of training itself, to prove the prompt by.
    """

    renderer: str
    family: str | None
    reason: str
    template_origin: str | None
    template: str | None
    system: str | None
    stops: tuple[str, ...]
    parameters: Mapping[str, Scalar]
    pins: Mapping[str, str]
    trained: TrainedTemplate


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds, and what it was made of and with.

    Attributes:
        schema: the version of this layout.
        name: the model's name.
        fingerprint: a digest over everything that decides the bundle's bytes.
        base: the base model.
        adapters: those that were merged, in their order; none for a full model.
        combination: how they were combined into one before; None where they were merged in turn.
        tools: the versions of what made it, by name.
        ggufs: its GGUF files, in the order that was asked for.
        projector: the `mmproj` that belongs to each of them, of a model that sees or hears.
        prompt: what was decided about the prompt.
    """

    schema: int
    name: str
    fingerprint: str
    base: BaseIdentity
    adapters: tuple[AdapterIdentity, ...]
    combination: str | None
    tools: Mapping[str, str]
    ggufs: tuple[GgufFile, ...]
    projector: GgufFile | None
    prompt: PromptRecord

    @property
    def files(self) -> tuple[GgufFile, ...]:
        """Every GGUF."""
        return (*self.ggufs, self.projector) if self.projector else self.ggufs

    def to_json(self) -> str:
        """The manifest as text, the same for equal manifests."""
        record = dataclasses.asdict(self)
        record["tools"] = dict(sorted(self.tools.items()))
        record["prompt"]["parameters"] = dict(sorted(self.prompt.parameters.items()))
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, record: Mapping[str, object], where: str = MANIFEST) -> Manifest:
        """The manifest in a JSON object; keys of later versions are passed over.

        Args:
            record: the object.
            where: the file, for messages.

        Raises:
            CorruptFileError: naming the key that is missing or of another type.
        """
        import pydantic

        if (schema := record.get("schema")) != SCHEMA and isinstance(schema, int):
            raise CorruptFileError(
                f"{where}: schema is {schema}; this version of ftpack reads {SCHEMA}.",
                next_step="Install a newer ftpack, or package the model again.",
            )
        text = json.dumps(record)
        try:
            manifest = pydantic.TypeAdapter(cls).validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            raise _wrong(record, error.errors()[0], where) from None
        for gguf in manifest.files:
            require_plain_name(gguf.name, where)
        return manifest


def require_plain_name(name: str, where: str) -> None:
    """Keep a bundle from someone else from naming files outside its folder."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise CorruptFileError(
            f"{where}: {name!r} is not the name of a file in the bundle.", next_step=RESTORE
        )


def _wrong(record: object, found: Mapping[str, Any], where: str) -> CorruptFileError:
    """What pydantic says of a value, with the value and the key that has it."""
    path, value = "", record
    for key in found["loc"]:
        inner = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if isinstance(value, list) and isinstance(key, int):
            inner = value[key]
        if inner is _ABSENT and found["type"] != "missing":
            break  # the rest names a type that the value might have had
        path, value = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}", inner
    path = path.removeprefix(".")
    said = f"{path} is {json.dumps(value, ensure_ascii=False, default=str)[:80]}: {found['msg']}"
    if value is _ABSENT:
        said = f"the key {path} is missing"
    return CorruptFileError(f"{where}: {said}.", next_step=RESTORE)
