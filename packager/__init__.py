"""ftpack: from what a fine-tuning run leaves behind to a model that answers in Ollama.

    from packager import Request, build, prepare
    bundle = build(prepare(Request("./lora", quants=("Q5_K_M",), name="mymodel")))

The names below are the library's contract; they are imported when they are first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"
__all__ = ["Bundle", "FtpackError", "Package", "Plan", "Request", "__version__", "build", "prepare"]

_HOME = {
    "Bundle": "packager.verbs.build",
    "FtpackError": "packager.errors",
    "Package": "packager.package.prepare",
    "Plan": "packager.package.plan",
    "Request": "packager.package.plan",
    "build": "packager.verbs.build",
    "prepare": "packager.package.prepare",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
