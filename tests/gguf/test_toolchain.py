"""The converter is there and unchanged before any work starts, or an error says how to get it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from packager.errors import ToolchainError
from packager.gguf.toolchain import find_toolchain, installed_version


def test_a_missing_toolchain_names_the_command_that_stages_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTPACK_LLAMA_CPP", raising=False)
    monkeypatch.setenv("FTPACK_CACHE", str(tmp_path))

    with pytest.raises(ToolchainError) as error:
        find_toolchain()

    assert "ftpack doctor --install-toolchain" in error.value.next_step


def test_a_changed_converter_is_noticed(
    llama_cpp_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FTPACK_LLAMA_CPP", raising=False)
    copy = tmp_path / llama_cpp_source.name
    shutil.copytree(llama_cpp_source, copy, ignore=shutil.ignore_patterns("models"))
    monkeypatch.setenv("FTPACK_CACHE", str(tmp_path))
    assert find_toolchain().folder == copy

    with (copy / "conversion" / "llama.py").open("a") as file:
        file.write("# changed\n")

    with pytest.raises(ToolchainError, match=re.escape(str(copy))) as error:
        find_toolchain()
    assert "ftpack doctor --install-toolchain" in error.value.next_step


def test_a_checkout_of_llama_cpp_can_be_named(
    llama_cpp_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTPACK_LLAMA_CPP", str(llama_cpp_source))
    assert find_toolchain().version == "checkout"

    monkeypatch.setenv("FTPACK_LLAMA_CPP", str(tmp_path))
    with pytest.raises(ToolchainError, match=re.escape(str(tmp_path))):
        find_toolchain()


def test_the_toolchain_belongs_to_the_installed_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FTPACK_LLAMA_CPP", raising=False)
    assert find_toolchain().version == installed_version()
