"""An adapter for publishing: PEFT loads the same model, without traces of the training run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from packager.errors import (
    BaseNotFoundError,
    CorruptFileError,
    NonFiniteError,
    OutputExistsError,
    UsageError,
)
from packager.model.checkpoint import FolderCheckpoint
from packager.verbs.merge import save_adapter
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, make_base, merge_with_peft
from tests.requests import request_for

BASE_ID = "somebody/tiny-base"


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an adapter as a Trainer leaves it, with the files for resuming."""
    base = make_base("biased", tmp_path / "base")
    lora = make_adapter(base, "biased", METHODS["lora"], tmp_path / "lora")
    for name in ("optimizer.pt", "rng_state.pth", "training_args.bin", "trainer_state.json"):
        (lora / name).write_bytes(b"private")
    (lora / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": str(base), "eos_token": "</s>"})
    )
    (lora / "chat_template.jinja").write_text("{{ messages }}")
    (lora / "LICENSE").write_text("free")
    return base, lora


def test_peft_merges_the_saved_adapter_to_the_same_model(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, lora = run

    save_adapter(request_for(lora, base=BASE_ID), tmp_path / "clean")

    wanted, saved = (
        FolderCheckpoint(merge_with_peft(base, "biased", folder, tmp_path / f"of-{folder.name}"))
        for folder in (lora, tmp_path / "clean")
    )
    assert all(torch.equal(saved.load(name), wanted.load(name)) for name in wanted.tensors)


def test_only_files_that_others_need_are_written_without_paths_of_this_machine(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    _, lora = run

    saved = save_adapter(request_for(lora, base=BASE_ID), tmp_path / "clean")

    names = sorted(path.name for path in (tmp_path / "clean").iterdir())
    assert names == sorted(path.name for path in saved.files)
    assert names == [
        "LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors",
        "chat_template.jinja", "tokenizer_config.json",
    ]  # fmt: skip
    for path in saved.files:
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    config = json.loads((tmp_path / "clean" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE_ID
    tokenizer = json.loads((tmp_path / "clean" / "tokenizer_config.json").read_text())
    assert tokenizer == {"eos_token": "</s>"}


def test_without_a_model_card_a_new_one_names_base_and_method(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    save_adapter(request_for(run[1], base=BASE_ID), tmp_path / "clean")

    card = ModelCard.load(tmp_path / "clean" / "README.md")
    assert (card.data.base_model, card.data.library_name) == (BASE_ID, "peft")
    assert "rank 4" in card.text


def test_a_model_card_that_the_author_wrote_stays(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = run
    (lora / "README.md").write_text(f"---\nbase_model: {base}\n---\nMy model of birds.\n")

    save_adapter(request_for(lora, base=BASE_ID), tmp_path / "clean")

    text = (tmp_path / "clean" / "README.md").read_text()
    assert text == f"---\nbase_model: {BASE_ID}\n---\nMy model of birds.\n"


def test_only_the_names_of_the_base_in_a_model_card_are_changed(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    lora = run[1]
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "llama"}))
    card = """---
base_model: {base}  # as in training
license: llama3.2
language: [no, en]
tags:
- base_model:adapter:{base}
- llama-factory
- llama
---
# A llama tuned with llama-factory
"""
    (lora / "README.md").write_text(card.format(base="llama"))

    save_adapter(request_for(lora, base="meta-llama/Llama-3.2-1B"), tmp_path / "clean")

    text = (tmp_path / "clean" / "README.md").read_text()
    assert text == card.format(base="meta-llama/Llama-3.2-1B")


def test_a_name_without_owner_is_a_hub_id_only_if_the_hubs_cache_has_the_model(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = run[1]
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "llama"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    with pytest.raises(BaseNotFoundError, match="'llama'") as caught:
        save_adapter(request_for(lora), tmp_path / "clean")
    assert "--base" in caught.value.next_step
    assert not (tmp_path / "clean").exists()

    repository = tmp_path / "cache" / "models--llama"
    (repository / "snapshots" / "0123abcd").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    save_adapter(request_for(lora), tmp_path / "clean")

    config = json.loads((tmp_path / "clean" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"


def test_the_id_is_read_from_the_path_of_the_hubs_cache(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    path = run[1] / "adapter_config.json"
    cached = "/home/me/.cache/huggingface/hub/models--somebody--tiny-base/snapshots/0123abcd"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": cached}))

    save_adapter(request_for(run[1]), tmp_path / "clean")

    config = json.loads((tmp_path / "clean" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE_ID, "0123abcd")


def test_pickled_weights_become_safetensors(run: tuple[Path, Path], tmp_path: Path) -> None:
    lora = run[1]
    tensors = load_file(lora / "adapter_model.safetensors")
    torch.save(tensors, lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()

    save_adapter(request_for(lora, base=BASE_ID), tmp_path / "clean")

    saved = load_file(tmp_path / "clean" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors.items())


def test_an_adapter_that_cannot_be_published_is_refused_before_anything_is_written(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, lora = run
    broken = shutil.copytree(lora, tmp_path / "broken")
    weights = bytearray((broken / "adapter_model.safetensors").read_bytes())
    weights[-4:] = b"\xff\xff\xff\xff"
    (broken / "adapter_model.safetensors").write_bytes(weights)
    cases = [
        (request_for(lora), BaseNotFoundError, "base_model_name_or_path"),
        (request_for(lora, base=base), BaseNotFoundError, f"--base .*{re.escape(str(base))}"),
        (request_for(base, base=BASE_ID), UsageError, re.escape(str(base))),
        (request_for(lora, adapters=(lora,)), UsageError, "--adapter"),
        (request_for(broken, base=BASE_ID), NonFiniteError, re.escape(str(broken))),
    ]
    for request, error, named in cases:
        with pytest.raises(error, match=named) as caught:
            save_adapter(request, tmp_path / "clean")
        assert caught.value.next_step
        assert not (tmp_path / "clean").exists()


def test_an_adapter_is_overwritten_only_with_force_and_never_its_source(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    request = request_for(run[1], base=BASE_ID)
    save_adapter(request, tmp_path / "clean")

    with pytest.raises(OutputExistsError, match=r"adapter_config\.json"):
        save_adapter(request, tmp_path / "clean")
    with pytest.raises(OutputExistsError, match=re.escape(str(run[1]))):
        save_adapter(request_for(run[1], base=BASE_ID, force=True), run[1])


def test_a_model_card_that_is_not_text_is_refused_before_anything_is_written(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    (run[1] / "README.md").write_bytes(b"\xff\xfe")

    with pytest.raises(CorruptFileError, match=r"README\.md"):
        save_adapter(request_for(run[1], base=BASE_ID), tmp_path / "clean")

    assert not (tmp_path / "clean").exists()
