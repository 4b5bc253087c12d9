"""Tensors are read unchanged into the caller's own memory; damaged files are refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from packager.errors import CorruptFileError, MissingWeightsError
from packager.model.checkpoint import FolderCheckpoint
from packager.model.tensor_file import PickleFile, SafetensorsFile

DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int64,
    torch.bool,
]  # fmt: skip


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): torch.randn(5, 3, 2, generator=generator).mul(9).to(dtype) for dtype in DTYPES
    }
    tensors["empty"] = torch.empty(0, 4)
    tensors["scalar"] = torch.tensor(2.5)
    return tensors


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.float(), right.float())


def test_reads_what_safetensors_wrote(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})

    file = SafetensorsFile(tmp_path / "model.safetensors")

    assert set(file.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert file.tensors[name].shape == tuple(tensor.shape)
        assert equal(file.load(name), tensor)
    assert equal(file.load_rows("torch.bfloat16", 1, 4), tensors["torch.bfloat16"][1:4])


def test_changing_a_tensor_does_not_change_the_next_read(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    file = SafetensorsFile(tmp_path / "model.safetensors")

    file.load("torch.float32").zero_()

    assert equal(file.load("torch.float32"), tensors["torch.float32"])


def test_reads_plain_bin_files(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "model.bin")

    file = PickleFile(tmp_path / "model.bin")

    assert all(equal(file.load(name), tensor) for name, tensor in tensors.items())


def test_reads_bin_files_older_than_torch_1_6(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    del tensors["torch.float8_e4m3fn"]  # younger than this form, which has no place for it
    torch.save(tensors, tmp_path / "model.bin", _use_new_zipfile_serialization=False)

    file = PickleFile(tmp_path / "model.bin")

    assert set(file.tensors) == set(tensors)
    assert all(equal(file.load(name), tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_view_in_a_bin_file_is_read_in_its_own_order_and_memory(
    is_zip: bool, tmp_path: Path
) -> None:
    values = torch.arange(24.0).reshape(4, 6)
    path = tmp_path / "model.bin"
    torch.save({"view": values.T[1:4]}, path, _use_new_zipfile_serialization=is_zip)
    file = PickleFile(path)

    whole, rows = file.load("view"), file.load_rows("view", 0, 2)

    assert whole.is_contiguous()
    assert rows.is_contiguous()
    assert whole.tolist() == [[1, 7, 13, 19], [2, 8, 14, 20], [3, 9, 15, 21]]
    assert rows.tolist() == whole.tolist()[:2]
    assert whole.untyped_storage().nbytes() == whole.nbytes


@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_bin_file_of_torch_is_refused_and_does_not_run(
    is_zip: bool, tmp_path: Path
) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (witness,))

    path = tmp_path / "model.bin"
    torch.save({"a": Evil()}, path, _use_new_zipfile_serialization=is_zip)

    with pytest.raises(CorruptFileError, match=r"model\.bin"):
        PickleFile(path)
    assert not witness.exists()


def test_a_bin_file_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (witness,))

    (tmp_path / "model.bin").write_bytes(pickle.dumps(Evil()))

    with pytest.raises(CorruptFileError, match=r"model\.bin"):
        PickleFile(tmp_path / "model.bin")
    assert not witness.exists()


@pytest.mark.parametrize("keep", [0, 5, 8, 200, -1])
def test_a_truncated_file_is_refused_by_name(
    keep: int, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:keep])

    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[]",
        json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode(),
        json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode(),
        json.dumps({"a": {"dtype": "F32"}}).encode(),
        json.dumps({"a": 3}).encode(),
    ],
)
def test_a_wrong_header_is_refused_by_name(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))

    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        SafetensorsFile(path)


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")

    with pytest.raises(CorruptFileError) as error:
        SafetensorsFile(path)

    assert "git lfs pull" in error.value.next_step


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    )

    with pytest.raises(MissingWeightsError, match="model-00001-of-00002"):
        FolderCheckpoint(tmp_path)


def test_a_single_file_and_shards_together_are_read_as_transformers_reads_them(
    tmp_path: Path,
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, vocab_size=16, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    older = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    save_file(older, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(older, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))

    checkpoint = FolderCheckpoint(tmp_path)

    loaded = LlamaForCausalLM.from_pretrained(tmp_path).state_dict()
    assert loaded["lm_head.weight"].any()
    for name, value in loaded.items():
        assert torch.equal(checkpoint.load(name), value)
    (tmp_path / "model-00001-of-00001.safetensors").unlink()
    assert FolderCheckpoint(tmp_path).index_sha256() == checkpoint.index_sha256()


def test_the_placeholders_of_zero_3_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.empty(0), "b": torch.empty(0)}, tmp_path / "model.safetensors")

    with pytest.raises(MissingWeightsError, match=r"holds 2 .*'a'"):
        FolderCheckpoint(tmp_path)
