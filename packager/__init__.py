"""ftpack: from what a fine-tuning run leaves behind to a model that answers in Ollama.

    from packager import BuildOptions, Request, SourceOptions, gguf, parse_quant

    request = Request(
        source=SourceOptions("./lora"), build=BuildOptions(quants=(parse_quant("q5_k_m"),))
    )
    built = gguf(request)

The names below are the library's contract; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

__version__ = "0.1.0"

_HOME = {
    "BuildOptions": "packager.package.request",
    "Built": "packager.verbs.build",
    "Bundle": "packager.bundle.bundle",
    "Chat": "packager.verbs.run",
    "ChatOptions": "packager.verbs.run",
    "Combination": "packager.merge.merge_options",
    "Daemon": "packager.runtime.daemon",
    "FtpackError": "packager.errors",
    "Inspection": "packager.verbs.inspect",
    "MergeOptions": "packager.merge.merge_options",
    "MergedFolder": "packager.verbs.merge",
    "OllamaVersion": "packager.prompt.ollama_version",
    "Package": "packager.package.package",
    "Packaged": "packager.verbs.ollama",
    "Plan": "packager.package.plan",
    "Progress": "packager.progress",
    "PromptOptions": "packager.prompt.prompt_options",
    "PromptReport": "packager.verbs.prompt",
    "Registered": "packager.verbs.register",
    "Request": "packager.package.request",
    "SavedFolder": "packager.save.staged_folder",
    "Silent": "packager.progress",
    "SourceOptions": "packager.source.source_options",
    "build": "packager.verbs.build",
    "gguf": "packager.verbs.gguf",
    "prompt": "packager.verbs.prompt",
    "doctor": "packager.verbs.doctor",
    "inspect": "packager.verbs.inspect",
    "merge": "packager.verbs.merge",
    "modelfile": "packager.verbs.modelfile",
    "ollama": "packager.verbs.ollama",
    "parse_quant": "packager.gguf.quants",
    "plan": "packager.verbs.gguf",
    "prepare": "packager.package.prepare",
    "read_bundle": "packager.bundle.bundle",
    "read_conversations": "packager.verify.dataset",
    "register": "packager.verbs.register",
    "run": "packager.verbs.run",
    "save_adapter": "packager.verbs.merge",
    "scratch_folder": "packager.files",
    "verify_bundle": "packager.bundle.bundle",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


class _Library(ModuleType):
    """The package itself: it keeps the names of verbs that are also names of rooms for the verbs.

    The import system sets a package's attribute to each part that it imports, and would hide them.
    Code reaches a room by its full name (`from packager.merge.adapters import ...`), which does not
    need the attribute.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME:
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library
