"""A bundle describes its files and their origin, and detects later changes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from packager.bundle.bundle import Bundle, read_bundle, verify_bundle, write_bundle
from packager.bundle.manifest import (
    AdapterIdentity,
    BaseIdentity,
    GgufFile,
    Manifest,
    PromptRecord,
    TrainedTemplate,
)
from packager.errors import CorruptFileError, NotAModelError, SourceNotFoundError
from packager.progress import Silent

MODELFILE = "FROM ./model-Q5_K_M.gguf\nSYSTEM ahoy ⚓\n"
CONTENT = {"model-Q5_K_M.gguf": b"five" * 1000, "model-Q8_0.gguf": b"eight" * 1000}


def gguf_file(name: str, quant: str) -> GgufFile:
    content = CONTENT[name]
    return GgufFile(
        name=name,
        quant=quant,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        bits_per_weight=5.69,
        fallbacks=("blk.0.ffn_down.weight: Q5_K -> Q5_1",),
    )


MANIFEST = Manifest(
    schema=4,
    name="mymodel",
    fingerprint="f" * 64,
    base=BaseIdentity(id="org/base", revision="a" * 40, config_sha256="c" * 64),
    adapters=(AdapterIdentity(name="lora", sha256="d" * 64, method="LORA", rank=16),),
    combination=None,
    tools={"torch": "2.15.0", "ftpack": "0.1.0"},
    ggufs=(gguf_file("model-Q8_0.gguf", "Q8_0"), gguf_file("model-Q5_K_M.gguf", "Q5_K_M")),
    projector=None,
    prompt=PromptRecord(
        renderer="TEMPLATE",
        family="chatml",
        reason="It renders as ChatML.",
        template_origin="chat_template.jinja of the adapter",
        template='{{ .Prompt }} "⚓"\n',
        system=None,
        stops=("<|im_end|>", "\n"),
        parameters={"top_k": 20, "temperature": 0.6, "penalize": True},
        pins={"enable_thinking": "false"},
        trained=TrainedTemplate(
            source="{{ messages }}\n⚓",
            tool_use=None,
            tokens={"bos_token": "<s>"},
            variables={"enable_thinking": False},
        ),
    ),
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    for name, content in CONTENT.items():
        (tmp_path / name).write_bytes(content)
    write_bundle(tmp_path, MANIFEST, MODELFILE)
    return tmp_path


def record() -> dict[str, Any]:
    value = json.loads(MANIFEST.to_json())
    assert isinstance(value, dict)
    return value


def verify(folder: Path) -> None:
    verify_bundle(read_bundle(folder), Silent())


def test_a_bundle_is_read_as_it_was_written(bundle: Path) -> None:
    assert read_bundle(bundle) == Bundle(bundle, MANIFEST, MANIFEST.ggufs)
    verify(bundle)
    assert (bundle / "Modelfile").read_text(encoding="utf-8") == MODELFILE


def test_values_that_may_be_absent_are_null() -> None:
    bare = dataclasses.replace(
        MANIFEST,
        adapters=(),
        base=dataclasses.replace(MANIFEST.base, revision=None),
        prompt=dataclasses.replace(MANIFEST.prompt, family=None, template=None),
    )
    assert Manifest.from_json(json.loads(bare.to_json())) == bare


def test_equal_manifests_are_equal_bytes() -> None:
    reordered = dataclasses.replace(MANIFEST, tools=dict(reversed(list(MANIFEST.tools.items()))))
    assert reordered.to_json() == MANIFEST.to_json()


def test_writing_again_changes_nothing(bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    write_bundle(bundle, MANIFEST, MODELFILE)
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


def test_quants_are_selected_in_the_order_of_the_manifest(bundle: Path) -> None:
    whole = read_bundle(bundle)

    assert whole.select(["Q5_K_M", "Q8_0"]) == whole.select([]) == whole
    assert [file.quant for file in whole.select(["Q5_K_M"]).ggufs] == ["Q5_K_M"]
    with pytest.raises(SourceNotFoundError, match="Q2_K"):
        whole.select(["Q2_K"])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum here")
def test_sha256sum_checks_a_bundle(bundle: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [
        "Modelfile: OK",
        "manifest.json: OK",
        "model-Q5_K_M.gguf: OK",
        "model-Q8_0.gguf: OK",
    ]


@pytest.mark.parametrize("name", [*CONTENT, "Modelfile", "SHA256SUMS"])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(CorruptFileError, match=name):
        verify(bundle)


@pytest.mark.parametrize("name", [*CONTENT, "Modelfile", "manifest.json"])
def test_a_changed_file_is_named(bundle: Path, name: str) -> None:
    path = bundle / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(CorruptFileError, match=rf"{name} .*[0-9a-f]{{64}}"):
        verify(bundle)


def test_a_gguf_without_a_checksum_is_checked_too(bundle: Path) -> None:
    sums = bundle / "SHA256SUMS"
    kept = [line for line in sums.read_text().splitlines(keepends=True) if "Q8_0" not in line]
    sums.write_text("".join(kept))
    (bundle / "model-Q8_0.gguf").write_bytes(b"other")
    with pytest.raises(CorruptFileError, match="Q8_0"):
        verify(bundle)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotAModelError, match=r"manifest\.json"):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (("name",), 3, "name is 3: Input should be a valid string"),
        (("schema",), 1, "schema is 1"),
        (("schema",), "4", 'schema is "4": Input should be a valid integer'),
        (("base",), None, "base is null: Input should be an object"),
        (("base", "id"), [], r"base\.id is \[\]: Input should be a valid string"),
        (
            ("adapters", 0, "rank"),
            True,
            r"adapters\[0\]\.rank is true: Input should be a valid integer",
        ),
        (("ggufs",), {}, "ggufs is {}: Input should be a valid array"),
        (("ggufs", 1, "size_bytes"), "1", r"ggufs\[1\]\.size_bytes"),
        (("ggufs", 0, "bits_per_weight"), None, r"ggufs\[0\]\.bits_per_weight"),
        (("prompt", "trained", "source"), None, r"prompt\.trained\.source"),
        (("prompt", "stops"), ["a", 1], r"prompt\.stops"),
        (
            ("prompt", "parameters", "top_k"),
            [],
            r"prompt\.parameters\.top_k is \[\]: Input should be",
        ),
        (("tools", "torch"), None, r"tools\.torch"),
    ],
)
def test_a_wrong_value_is_named_by_its_key(
    keys: tuple[str | int, ...], value: object, named: str
) -> None:
    manifest = record()
    inner: Any = manifest
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    with pytest.raises(CorruptFileError, match=named):
        Manifest.from_json(manifest)


@pytest.mark.parametrize("key", list(record()))
def test_a_missing_key_is_named(key: str) -> None:
    manifest = record()
    del manifest[key]
    with pytest.raises(CorruptFileError, match=rf"\b{key}\b"):
        Manifest.from_json(manifest)


@pytest.mark.parametrize("name", ["../other.gguf", "/etc/passwd", "a\\b", "..", ""])
def test_a_manifest_that_names_a_file_outside_the_bundle_is_refused(name: str) -> None:
    manifest = record()
    manifest["ggufs"][0]["name"] = name
    with pytest.raises(CorruptFileError, match=re.escape(repr(name))):
        Manifest.from_json(manifest)
