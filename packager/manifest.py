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
        reader = _Reader(record, where)
        schema = reader.whole("schema")
        if schema != SCHEMA:
            raise CorruptFileError(
                f"{where}: schema is {schema}; this version of ftpack reads {SCHEMA}.",
                next_step="Install a newer ftpack, or package the model again.",
            )
        beside = reader.optional_record("projector")
        manifest = cls(
            schema=schema,
            name=reader.text("name"),
            fingerprint=reader.text("fingerprint"),
            base=_read_base(reader.record("base")),
            adapters=tuple(_read_adapter(adapter) for adapter in reader.records("adapters")),
            combination=reader.optional_text("combination"),
            tools=reader.text_by_name("tools"),
            ggufs=tuple(_read_gguf(gguf) for gguf in reader.records("ggufs")),
            projector=_read_gguf(beside) if beside else None,
            prompt=_read_prompt(reader.record("prompt")),
        )
        for gguf in manifest.files:
            require_plain_name(gguf.name, where)
        return manifest


def require_plain_name(name: str, where: str) -> None:
    """Keep a bundle from someone else from naming files outside its folder."""
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise CorruptFileError(
            f"{where}: {name!r} is not the name of a file in the bundle.", next_step=RESTORE
        )


class _Reader:
    """Typed values of a JSON object, or an error that names the key.

    Args:
        record: the object.
        where: the file, for messages.
        path: the key of the object itself, followed by a dot; empty for the whole file.
    """

    def __init__(self, record: object, where: str, path: str = "") -> None:
        self._where, self._path = where, path
        if not isinstance(record, Mapping):
            raise self._wrong(path.rstrip("."), record, "an object")
        self._record = record

    def text(self, key: str) -> str:
        value = self._get(key)
        if not isinstance(value, str):
            raise self._wrong(self._path + key, value, "a text")
        return value

    def optional_text(self, key: str) -> str | None:
        return None if self._get(key) is None else self.text(key)

    def later_text(self, key: str) -> str | None:
        """A text that earlier versions did not write."""
        return self.optional_text(key) if key in self._record else None

    def whole(self, key: str) -> int:
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(self._path + key, value, "a whole number")
        return value

    def optional_whole(self, key: str) -> int | None:
        return None if self._get(key) is None else self.whole(key)

    def number(self, key: str) -> float:
        value = self._get(key)
        return float(value) if isinstance(value, float) else float(self.whole(key))

    def texts(self, key: str) -> tuple[str, ...]:
        value = self._list(key)
        if not all(isinstance(item, str) for item in value):
            raise self._wrong(self._path + key, value, "a list of texts")
        return tuple(value)

    def text_by_name(self, key: str) -> dict[str, str]:
        inner = self.record(key)
        return {name: inner.text(name) for name in inner._record}

    def scalar_by_name(self, key: str) -> dict[str, Scalar]:
        inner = self.record(key)
        return {name: inner._scalar(name) for name in inner._record}

    def record(self, key: str) -> _Reader:
        return _Reader(self._get(key), self._where, f"{self._path}{key}.")

    def optional_record(self, key: str) -> _Reader | None:
        return None if self._get(key) is None else self.record(key)

    def records(self, key: str) -> list[_Reader]:
        return [
            _Reader(item, self._where, f"{self._path}{key}[{index}].")
            for index, item in enumerate(self._list(key))
        ]

    def _scalar(self, key: str) -> Scalar:
        value = self._get(key)
        if not isinstance(value, int | float | str | bool):
            raise self._wrong(self._path + key, value, "a number, a text, true or false")
        return value

    def _list(self, key: str) -> list[Any]:
        value = self._get(key)
        if not isinstance(value, list):
            raise self._wrong(self._path + key, value, "a list")
        return value

    def _get(self, key: str) -> object:
        if key not in self._record:
            raise CorruptFileError(
                f"{self._where}: the key {self._path}{key} is missing.", next_step=RESTORE
            )
        return self._record[key]

    def _wrong(self, key: str, value: object, wanted: str) -> CorruptFileError:
        found = json.dumps(value, ensure_ascii=False, default=str)[:80]
        return CorruptFileError(
            f"{self._where}: {key or 'the file'} is {found}, not {wanted}.", next_step=RESTORE
        )


def _read_gguf(reader: _Reader) -> GgufFile:
    return GgufFile(
        name=reader.text("name"),
        quant=reader.text("quant"),
        size_bytes=reader.whole("size_bytes"),
        sha256=reader.text("sha256"),
        bits_per_weight=reader.number("bits_per_weight"),
        fallbacks=reader.texts("fallbacks"),
    )


def _read_base(reader: _Reader) -> BaseIdentity:
    return BaseIdentity(
        id=reader.text("id"),
        revision=reader.optional_text("revision"),
        config_sha256=reader.text("config_sha256"),
        index_sha256=reader.later_text("index_sha256"),
    )


def _read_adapter(reader: _Reader) -> AdapterIdentity:
    return AdapterIdentity(
        name=reader.text("name"),
        sha256=reader.text("sha256"),
        method=reader.text("method"),
        rank=reader.optional_whole("rank"),
    )


def _read_prompt(reader: _Reader) -> PromptRecord:
    return PromptRecord(
        renderer=reader.text("renderer"),
        family=reader.optional_text("family"),
        reason=reader.text("reason"),
        template_origin=reader.optional_text("template_origin"),
        template=reader.optional_text("template"),
        system=reader.optional_text("system"),
        stops=reader.texts("stops"),
        parameters=reader.scalar_by_name("parameters"),
        pins=reader.text_by_name("pins"),
        trained=_read_trained(reader.record("trained")),
    )


def _read_trained(reader: _Reader) -> TrainedTemplate:
    return TrainedTemplate(
        source=reader.text("source"),
        tool_use=reader.optional_text("tool_use"),
        tokens=reader.text_by_name("tokens"),
        variables=reader.scalar_by_name("variables"),
    )
