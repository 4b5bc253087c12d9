"""The special tokens of a tokenizer, and the ids that end an answer, are read from its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from packager.errors import CorruptFileError
from packager.model.config import parse_config
from packager.model.model_file import ModelFile
from packager.model.tokenizer import Vocabulary, load_vocabulary


def write_files(folder: Path, contents: Mapping[str, object]) -> dict[str, ModelFile]:
    folder.mkdir(exist_ok=True)
    for name, values in contents.items():
        (folder / name).write_text(json.dumps(values))
    return {name: ModelFile(folder / name) for name in contents}


def read_vocabulary(files: Mapping[str, ModelFile]) -> Vocabulary:
    file = files.get("config.json")
    return load_vocabulary(files, parse_config(file) if file else None)


def test_the_vocabulary_is_read_from_the_tokenizer_and_the_generation_config(
    tmp_path: Path,
) -> None:
    files = write_files(
        tmp_path,
        {
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    "5": {"content": "<old>", "special": True},
                    "6": {"content": "<tool>", "special": False},
                }
            },
            "tokenizer.json": {
                "added_tokens": [{"id": 5, "content": "<end>", "special": True}],
                "model": {"vocab": {"a": 0, "</s>": 2}},
            },
            "generation_config.json": {"eos_token_id": [5, 2]},
            "config.json": {"eos_token_id": 9},
        },
    )
    vocabulary = read_vocabulary(files)
    assert vocabulary.eos_token_ids == (5, 2)
    assert vocabulary.token_of == {5: "<end>", 6: "<tool>", 2: "</s>"}
    assert vocabulary.control_tokens == {"<end>"}


@pytest.mark.parametrize("value", [-1, 10**30, True, "2", [[2]], {"a": 2}])
def test_an_eos_token_id_that_is_not_a_token_id_is_a_corrupt_file(
    value: object, tmp_path: Path
) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": value}))

    with pytest.raises(CorruptFileError, match="eos_token_id"):
        read_vocabulary({path.name: ModelFile(path)})


@pytest.mark.parametrize(
    "config", [{"eos_token_id": 9}, {"eos_token_id": [9]}, {"text_config": {"eos_token_id": 9}}]
)
def test_without_a_generation_config_the_config_has_the_eos_token_ids(
    config: dict[str, object], tmp_path: Path
) -> None:
    files = write_files(tmp_path, {"config.json": config, "generation_config.json": {}})
    files["tokenizer.json"] = write_files(
        tmp_path / "t", {"tokenizer.json": {"model": {"vocab": [[f"p{i}", 0] for i in range(12)]}}}
    )["tokenizer.json"]
    assert read_vocabulary(files) == Vocabulary((9,), {9: "p9"}, frozenset())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("config.json", {"eos_token_id": "two"}),
        ("tokenizer.json", {"added_tokens": [{"id": "x", "content": "<s>"}]}),
        ("tokenizer.json", {"added_tokens": 3}),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}),
    ],
)
def test_a_file_with_an_invalid_value_is_refused_by_name(
    name: str, values: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(CorruptFileError, match=name):
        read_vocabulary(write_files(tmp_path, {name: values}))
