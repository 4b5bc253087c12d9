"""What every test can ask for: llama.cpp's sources, small real-vocabulary models, a daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from packager.gguf.toolchain import find_toolchain

if TYPE_CHECKING:
    from tests.vision import VisionKind

pytest_plugins = ["tests.daemon"]

# Tests must not ask the network for anything, whatever they are given.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def llama_cpp_source() -> Path:
    """llama.cpp's staged sources: converter, vocabularies, real chat templates."""
    return find_toolchain().folder


@pytest.fixture(scope="session")
def small_model(llama_cpp_source: Path) -> Callable[..., Path]:
    """A small random model of a kind (`llama`, `qwen3`, ...), made once."""
    from tests.models import cached_model

    return lambda kind, **options: cached_model(kind, llama_cpp_source, **options)


@pytest.fixture(scope="session")
def adapter(
    small_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """An adapter for `small_model(kind)`, made once per options."""
    from tests.models import make_adapter

    made: dict[str, Path] = {}

    def make(kind: str, model: Path | None = None, **options: object) -> Path:
        key = repr((kind, model, sorted(options.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("adapter") / f"{kind}-lora"
            made[key] = make_adapter(model or small_model(kind), folder, **options)
        return made[key]

    return make


@pytest.fixture(scope="session")
def vision_model(
    llama_cpp_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[VisionKind], Path]:
    """A small random multimodal model of a kind (`gemma3`, `qwen3_vl`, ...), made once."""
    from tests.vision import make_vision_model

    folders: dict[VisionKind, Path] = {}

    def make(kind: VisionKind) -> Path:
        if kind not in folders:
            folder = tmp_path_factory.mktemp("vision") / kind
            folders[kind] = make_vision_model(kind, folder, llama_cpp_source)
        return folders[kind]

    return make
