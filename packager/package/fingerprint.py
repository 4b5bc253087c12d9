"""Who went into a bundle: the base, the adapters, the tools; and one digest over everything."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json

from packager import __version__
from packager.bundle.manifest import SCHEMA, AdapterIdentity, BaseIdentity
from packager.files import sha256_file
from packager.gguf.convert import Conversion
from packager.gguf.projector import Projector
from packager.model.dequantize.formats import dequantizing_library
from packager.package.prompt_choice import chat_templates
from packager.prompt.decision import PromptDecision
from packager.prompt.modelfile_spec import ModelfileSpec
from packager.source.inputs import Inputs

_TOOLS = ("llama-cpp-python", "torch", "transformers", "peft")


def base_identity(inputs: Inputs) -> BaseIdentity:
    """Who the base is, or the full model where there is no adapter."""
    model = inputs.model
    model_id = inputs.base.model_id if inputs.base else inputs.source.model_id
    revision = inputs.base.revision if inputs.base else inputs.source.revision
    return BaseIdentity(
        id=model_id or model.folder.absolute().name,
        revision=revision,
        config_sha256=sha256_file(model.folder / "config.json"),
        index_sha256=model.index_sha256(),
    )


def adapter_identities(inputs: Inputs) -> tuple[AdapterIdentity, ...]:
    """Which adapters were merged, in their order."""
    return tuple(
        AdapterIdentity(
            name=adapter.folder.absolute().name,
            sha256=sha256_file(adapter.weights.path),
            method=adapter.config.method,
            rank=adapter.config.rank,
        )
        for adapter in inputs.adapters
    )


def fingerprint(
    inputs: Inputs,
    adapters: tuple[AdapterIdentity, ...],
    device: str,
    conversion: Conversion,
    projector: Projector | None,
    decision: PromptDecision,
    spec: ModelfileSpec,
    name: str,
) -> str:
    """A digest of everything that the bytes of a GGUF depend on, but for the quant.

    The base's weight files count by size and time of change: reading them all would cost as much
    as packaging them.
    """
    own = [
        [identity.sha256, sha256_file(adapter.folder / "adapter_config.json")]
        for identity, adapter in zip(adapters, inputs.adapters, strict=True)
    ]
    parts = {
        "schema": SCHEMA,
        "name": name,
        "adapters": own,
        "combination": dataclasses.asdict(inputs.combination) if inputs.combination else None,
        "weights": [
            [str(file.path.resolve()), file.path.stat().st_size, file.path.stat().st_mtime_ns]
            for file in inputs.model.weight_files
        ],
        "files": {key: sha256_file(path) for key, path in sorted(inputs.files.items())},
        "architecture": conversion.architecture,
        "projector": projector and projector.typed.quant.name,
        "chat_templates": chat_templates(decision),
        "end_tokens": decision.end_token_ids,
        "context": conversion.value("context_length"),
        "device": device,
        "modelfile": [spec.template, spec.system, spec.stops, sorted(spec.parameters.items())],
        "tools": tool_versions(inputs),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def tool_versions(inputs: Inputs) -> dict[str, str]:
    """The versions that the bytes of a bundle depend on; the dequantizer's where there is one."""
    found = {"ftpack": __version__}
    library = dequantizing_library(inputs.model.config)
    for distribution in (*_TOOLS, *([library] if library else [])):
        found[distribution] = importlib.metadata.version(distribution)
    return found
