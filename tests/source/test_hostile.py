"""What a stranger's folder can hold: refused by name; nothing outside is read, nothing is run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from packager.errors import BaseNotFoundError, CorruptFileError, MissingWeightsError
from packager.files import read_json
from packager.gguf.staging import link_files
from packager.model.checkpoint import FolderCheckpoint, describing_files
from packager.model.config import read_config
from packager.model.tensor_file import PickleFile, SafetensorsFile
from packager.progress import Silent
from packager.source.base.find import find_base
from packager.source.open import open_source


def safetensors(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: list[object], start: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data_bytes"),
    [
        (b"[" * 100_000, 0),
        (b'{"a": ' + b"9" * 5000 + b"}", 0),
        ({"a": entry([-1, -1], 0, 4)}, 4),
        ({"a": entry([1e300], 0, 4)}, 4),
        ({"a": entry([1.0], 0, 4)}, 4),
        ({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, 4),
        # Two names for the same bytes, and a gap.
        ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, 8),
        ({"a": entry([1], 4, 8)}, 8),
    ],
    ids=["nested", "digits", "negative", "infinite", "fraction", "dtype", "shared", "gap"],
)
def test_a_header_made_to_deceive(header: object, data_bytes: int, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "model.safetensors", header, bytes(data_bytes))

    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        SafetensorsFile(path)


def test_a_header_larger_than_its_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}")

    with pytest.raises(CorruptFileError, match="10 bytes"):
        SafetensorsFile(path)


@pytest.mark.parametrize("outside", ["../secret.safetensors", "/etc/passwd", "a/../../b", ".."])
def test_an_index_that_leaves_the_folder(outside: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "secret.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": outside}}))

    with pytest.raises(CorruptFileError, match="names"):
        FolderCheckpoint(folder)


def test_an_index_that_lists_a_tensor_that_no_shard_holds(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "one.safetensors", "lost": "one.safetensors"}})
    )

    with pytest.raises(CorruptFileError, match="lost"):
        FolderCheckpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json"])
def test_a_link_out_of_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret")

    open_ = FolderCheckpoint if name == "model.safetensors" else describing_files
    with pytest.raises(CorruptFileError, match=f"{name} .*{tmp_path / 'secret'}"):
        open_(folder)


def test_a_folder_that_is_a_link_out_of_the_folder(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(adapter("llama"), tmp_path / "outside")
    shutil.copytree(adapter("llama"), tmp_path / "lora")
    (tmp_path / "outside" / "tool.jinja").touch()
    for folder, name in (("run", "checkpoint-5"), ("run2", "style"),
                         ("lora", "additional_chat_templates")):  # fmt: skip
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).symlink_to(tmp_path / "outside")

        with pytest.raises(CorruptFileError, match=f"{name}.* outside"):
            open_source(str(tmp_path / folder), None, None, Silent())


def test_a_link_that_was_given_is_followed(adapter: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "newest").symlink_to(adapter("llama"))

    assert open_source(str(tmp_path / "newest"), None, None, Silent()).adapter is not None


def test_an_unused_link_out_of_the_folder_is_ignored(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(adapter("llama"), folder)
    (tmp_path / "secret").write_text("{}")
    for name in ("train.log", "README.md", "trainer_log.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "secret")

    files = open_source(str(folder), None, None, Silent()).files

    assert "tokenizer.json" in files
    assert files.keys().isdisjoint({"train.log", "README.md", "trainer_log.jsonl"})


def test_a_run_in_the_hub_cache(adapter: Callable[..., Path], tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--style"
    named = repository / "snapshots" / ("0" * 40) / "style"
    named.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in adapter("llama").iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        is_own = path.name.startswith("adapter_")
        place = named if is_own else named.parent
        up = "../../../blobs" if is_own else "../../blobs"
        (place / path.name).symlink_to(f"{up}/{path.name}")

    source = open_source(str(named.parent), None, None, Silent())

    assert source.folder == named
    assert source.files["tokenizer.json"].path.parent == named.parent


@pytest.mark.parametrize("target", ["gone.json", "tokenizer_config.json", "/dev/zero", None])
def test_a_file_that_cannot_be_read(target: str | None, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)

    with pytest.raises(CorruptFileError, match=r"tokenizer_config\.json"):
        describing_files(tmp_path)


def test_a_caches_own_links_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "b10b").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/b10b")

    assert set(describing_files(snapshot)) == {"tokenizer.json"}


def test_a_bin_file_whose_tensor_repeats_a_few_bytes(tmp_path: Path) -> None:
    torch.save({"bomb": torch.zeros(1).expand(1 << 40)}, tmp_path / "model.bin")

    with pytest.raises(CorruptFileError, match="bomb"):
        PickleFile(tmp_path / "model.bin")


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=torch.complex64), torch.eye(2).to_sparse()])
def test_a_bin_file_of_other_than_plain_tensors(value: torch.Tensor, tmp_path: Path) -> None:
    torch.save({"odd": value}, tmp_path / "model.bin")

    with pytest.raises(CorruptFileError, match="odd"):
        PickleFile(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": ' + "9" * 400 + "}", r'{"a": "\ud800"}'],
)
def test_json_that_attacks_its_reader(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(CorruptFileError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_code_is_neither_a_models_file_nor_passed_to_the_converter(tmp_path: Path) -> None:
    model, scratch = tmp_path / "model", tmp_path / "scratch"
    model.mkdir()
    scratch.mkdir()
    (model / "tokenization_evil.py").write_text("raise SystemExit")
    auto_map = {"AutoTokenizer": ["someone/repository--evil.Tokenizer", None]}
    for name in ("config.json", "tokenizer_config.json"):
        (model / name).write_text(json.dumps({"kept": 1, "auto_map": auto_map}))

    link_files(describing_files(model), read_config(model / "config.json"), scratch)

    assert sorted(path.name for path in scratch.iterdir()) == [
        "config.json", "tokenizer_config.json",
    ]  # fmt: skip
    for path in scratch.iterdir():
        assert json.loads(path.read_text()) == {"kept": 1}


@pytest.mark.parametrize("name", ["/x" * 5000, "a\0b", "~nobody-of-this-name/model"])
def test_a_recorded_base_that_cannot_be_a_path(
    name: str, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(adapter("llama"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": name})
    )
    opened = open_source(str(folder), None, None, Silent()).adapter
    assert opened is not None

    with pytest.raises(BaseNotFoundError):
        find_base(opened, None, None, Silent())


def test_placeholders_of_zero_3_are_recognised(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(adapter("llama"), tmp_path / "lora")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.empty(0)}, tmp_path / "lora" / "adapter_model.safetensors")

    with pytest.raises(MissingWeightsError, match="ZeRO-3"):
        open_source(str(tmp_path / "lora"), None, None, Silent())


def test_a_character_escaped_in_two_halves_is_one_character(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(r'{"a": "\ud83d\ude00"}')

    assert read_json(tmp_path / "config.json") == {"a": "\N{GRINNING FACE}"}
