"""A bundle's manifest: plain data, to JSON and back.

Its bytes depend only on what was packaged: it holds no time and no path of this machine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from packager.errors import CorruptFileError
from packager.scalar import Scalar

SCHEMA = 4
MANIFEST = "manifest.json"
_ABSENT = object()
RESTORE = "Copy the whole folder again from where it was built, or package the model again."


@dataclass(frozen=True)
class GgufFile:
    """A GGUF of the bundle.

    Attributes:
        name: its file name.
        quant: llama.cpp's name of the quantization, `Q5_K_M`.
        size_bytes: its size.
        sha256: its digest, in hexadecimal.
        bits_per_weight: the average over all weights, as stored.
        fallbacks: the tensors whose type is not the one that the quantization asks for, and why.
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
        id: the model's id if it is known, else the folder's name.
        revision: the Hub's commit, if there is one.
        config_sha256: the digest of its `config.json`.
        index_sha256: the digest of its list of tensors: the shards' index, or the header of the
            only file; None in bundles of earlier versions.
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
        method: the method's name, `LoRA`.
        rank: its rank, if the method has one.
    """

    name: str
    sha256: str
    method: str
    rank: int | None


@dataclass(frozen=True)
class TrainedTemplate:
    """The training chat template, with its variables.

    Attributes:
        source: the Jinja text.
        tool_use: the one for conversations with tools, if there is a separate one.
        tokens: the special tokens by the names that templates use for them (`bos_token`).
        variables: the other variables that training set (`enable_thinking`).
    """

    source: str
    tool_use: str | None
    tokens: Mapping[str, str]
    variables: Mapping[str, Scalar]


def _json_key(field: str) -> str:
    """The key of a field in JSON, where bundles of earlier versions have the shorter one."""
    return "template" if field == "ollama_template" else field


@dataclass(frozen=True)
class PromptRecord:
    """What was decided about the prompt.

    Attributes:
        renderer: who renders, `native` (the GGUF's Jinja) or `TEMPLATE` (Go).
        family: the family of templates that it belongs to, if it is a known one.
        reason: why, in one sentence.
        template_origin: the file that the training chat template came from.
        ollama_template: the Ollama template (Go), if that one renders; `template` in JSON.
        system: the default system text.
        stops: the texts that end an answer.
        parameters: the other parameters, by Ollama's names.
        pins: variables that the GGUF's chat template sets to their training values.
        trained: the training chat template itself, to compare prompts with.
    """

    renderer: str
    family: str | None
    reason: str
    template_origin: str | None
    ollama_template: str | None
    system: str | None
    stops: tuple[str, ...]
    parameters: Mapping[str, Scalar]
    pins: Mapping[str, str]
    trained: TrainedTemplate

    # Read by pydantic, which is imported only where a manifest is read.
    __pydantic_config__: ClassVar[dict[str, object]] = {"alias_generator": _json_key}


@dataclass(frozen=True)
class Manifest:
    """What a bundle contains, and what it was made from and with.

    Attributes:
        schema: the version of this layout.
        name: the model's name.
        fingerprint: a digest of everything that the bundle's bytes depend on.
        base: the base model.
        adapters: the merged adapters, in order; empty for a full model.
        combination: how they were combined into one; None if they were merged one after another.
        tools: the versions of the tools that made it, by name.
        ggufs: its GGUF files, in the order of the request.
        projector: the `mmproj` of a multimodal model, which belongs to each of them.
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
        """The manifest as text; equal manifests give equal text."""
        record = dataclasses.asdict(self)
        record["tools"] = dict(sorted(self.tools.items()))
        prompt = record["prompt"] | {"parameters": dict(sorted(self.prompt.parameters.items()))}
        record["prompt"] = {_json_key(field): value for field, value in prompt.items()}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, record: Mapping[str, object], where: str = MANIFEST) -> Manifest:
        """The manifest in a JSON object; keys of later versions are ignored.

        Args:
            record: the object.
            where: the file, for messages.

        Raises:
            CorruptFileError: naming the key that is missing or has the wrong type.
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
    """Refuse a file name that leads out of the bundle's folder.

    Raises:
        CorruptFileError: naming the file that contains the name.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise CorruptFileError(
            f"{where}: {name!r} is not the name of a file in the bundle.", next_step=RESTORE
        )


def _wrong(record: object, problem: Mapping[str, Any], where: str) -> CorruptFileError:
    """The error for a value that pydantic rejects, with its key."""
    path, value = "", record
    for key in problem["loc"]:
        inner = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if isinstance(value, list) and isinstance(key, int):
            inner = value[key]
        if inner is _ABSENT and problem["type"] != "missing":
            break  # the rest names a type that the value might have had
        path, value = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}", inner
    path = path.removeprefix(".")
    message = (
        f"{path} is {json.dumps(value, ensure_ascii=False, default=str)[:80]}: {problem['msg']}"
    )
    if value is _ABSENT:
        message = f"the key {path} is missing"
    return CorruptFileError(f"{where}: {message}.", next_step=RESTORE)
