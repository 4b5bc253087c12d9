"""What every test can ask for: llama.cpp's sources, small real-vocabulary models, a daemon."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.gguf.toolchain import find_toolchain

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
