"""Where a bundle's bytes come from: the base, the adapters, the tools; and a digest of it all."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json

from packager import __version__
from packager.bundle.manifest import SCHEMA, AdapterIdentity, BaseIdentity
from packager.files import sha256_file
from packager.model.config import CONFIG_NAME
from packager.model.dequantize.formats import dequantizing_library
from packager.package.package import Package
from packager.source.inputs import Inputs

_TOOLS = ("llama-cpp-python", "torch", "transformers", "peft")


def base_identity(inputs: Inputs) -> BaseIdentity:
    """Which base it is, or which full model if there is no adapter."""
    model = inputs.model
    origin = inputs.base or inputs.source
    return BaseIdentity(
        id=origin.model_id or model.folder.absolute().name,
        revision=origin.revision,
        config_sha256=model.config.file.sha256,
        index_sha256=model.index_sha256(),
    )


def tool_versions(inputs: Inputs) -> dict[str, str]:
    """The versions that a bundle's bytes depend on, with the library that dequantizes, if any."""
    library = dequantizing_library(inputs.model.config)
    names = (*_TOOLS, *([library] if library else []))
    return {"ftpack": __version__} | {name: importlib.metadata.version(name) for name in names}


def fingerprint(package: Package) -> str:
    """A digest of everything that the bytes of a GGUF depend on, except the quant.

    The base's weight files count by their size and time of change: reading them all would cost as
    much as packaging them.
    """
    inputs, prompt = package.inputs, package.prompt
    merge = package.merge_onto.options
    projector = package.projector
    modelfile = prompt.modelfile
    files = {name: file.sha256 for name, file in inputs.files.items()}
    files[CONFIG_NAME] = inputs.model.config.file.sha256
    parts = {
        "schema": SCHEMA,
        "name": package.name,
        "adapters": [
            [identity.sha256, adapter.config.file.sha256]
            for identity, adapter in zip(package.adapters, inputs.adapters, strict=True)
        ],
        "combination": merge.combination
        and dataclasses.asdict(merge.combination)
        | {"weights": merge.combination.weights_for(len(inputs.adapters))},
        "weights": [
            [str(file.path.resolve()), file.path.stat().st_size, file.path.stat().st_mtime_ns]
            for file in inputs.model.weight_files
        ],
        "files": files,
        "architecture": package.text.architecture,
        "projector": projector and projector.typed.quant.name,
        "chat_templates": prompt.gguf_chat_templates,
        "end_tokens": prompt.decision.end_token_ids,
        "context": package.text.value("context_length"),
        "device": merge.device,
        "modelfile": [
            modelfile.ollama_template,
            modelfile.system,
            modelfile.stops,
            sorted(modelfile.parameters.items()),
        ],
        "tools": tool_versions(inputs),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def adapter_identities(inputs: Inputs) -> tuple[AdapterIdentity, ...]:
    """Which adapters are merged, in order; their files are read whole for the digests."""
    return tuple(
        AdapterIdentity(
            name=adapter.folder.absolute().name,
            sha256=sha256_file(adapter.weights.path),
            method=adapter.config.method,
            rank=adapter.config.rank,
        )
        for adapter in inputs.adapters
    )
