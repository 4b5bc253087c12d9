"""Tiny models for the tests of merging."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.merge.methods import METHODS
from tests.merge.tiny import Kind, make_adapter, make_base


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny random model of a kind, made once."""
    bases: dict[object, Path] = {}

    def make(kind: Kind, dtype: torch.dtype = torch.bfloat16) -> Path:
        if (kind, dtype) not in bases:
            bases[kind, dtype] = make_base(kind, tmp_path_factory.mktemp("base"), dtype)
        return bases[kind, dtype]

    return make


@pytest.fixture
def two(tiny_base: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, and two LoRAs of equal rank for it, on modules that partly overlap."""
    base = tiny_base("biased")
    other = replace(
        METHODS["lora"],
        options={"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"]},
    )
    first = make_adapter(base, "biased", METHODS["lora"], tmp_path / "first")
    second = make_adapter(base, "biased", other, tmp_path / "second")
    return base, first, second


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same number of threads for PEFT and ftpack: factors of a matrix depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
