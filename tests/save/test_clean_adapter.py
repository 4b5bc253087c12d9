"""An adapter for publishing: PEFT loads the same from it, and the run has left no trace."""

from __future__ import annotations

import json
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
from packager.package.plan import Request
from packager.progress import Silent
from packager.save.clean_adapter import publish_adapter
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, make_base, merge_with_peft

BASE_ID = "somebody/tiny-base"


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, Path]:
    """A base, and an adapter as a Trainer leaves it beside what it needs to go on."""
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


def test_peft_makes_the_same_model_of_it(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = run

    publish_adapter(Request(str(lora), base=BASE_ID), tmp_path / "clean", Silent())

    wanted, found = (
        FolderCheckpoint(merge_with_peft(base, "biased", folder, tmp_path / f"of-{folder.name}"))
        for folder in (lora, tmp_path / "clean")
    )
    assert all(torch.equal(found.load(name), wanted.load(name)) for name in wanted.tensors)


def test_only_what_others_need_is_written_and_no_path_of_this_machine(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    _, lora = run

    published = publish_adapter(Request(str(lora), base=BASE_ID), tmp_path / "clean", Silent())

    names = sorted(path.name for path in (tmp_path / "clean").iterdir())
    assert names == sorted(path.name for path in published.files)
    assert names == [
        "LICENSE", "README.md", "adapter_config.json", "adapter_model.safetensors",
        "chat_template.jinja", "tokenizer_config.json",
    ]  # fmt: skip
    for path in published.files:
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    config = json.loads((tmp_path / "clean" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE_ID
    tokenizer = json.loads((tmp_path / "clean" / "tokenizer_config.json").read_text())
    assert tokenizer == {"eos_token": "</s>"}


def test_the_card_names_base_and_method_where_nobody_has_written_one(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    from huggingface_hub import ModelCard

    publish_adapter(Request(str(run[1]), base=BASE_ID), tmp_path / "clean", Silent())

    card = ModelCard.load(tmp_path / "clean" / "README.md")
    assert (card.data.base_model, card.data.library_name) == (BASE_ID, "peft")
    assert "rank 4" in card.text


def test_a_card_that_somebody_has_written_stays(run: tuple[Path, Path], tmp_path: Path) -> None:
    base, lora = run
    (lora / "README.md").write_text(f"---\nbase_model: {base}\n---\nMy model of birds.\n")

    publish_adapter(Request(str(lora), base=BASE_ID), tmp_path / "clean", Silent())

    text = (tmp_path / "clean" / "README.md").read_text()
    assert text == f"---\nbase_model: {BASE_ID}\n---\nMy model of birds.\n"


def test_of_a_card_only_what_names_the_base_is_changed(
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

    publish_adapter(
        Request(str(lora), base="meta-llama/Llama-3.2-1B"), tmp_path / "clean", Silent()
    )

    text = (tmp_path / "clean" / "README.md").read_text()
    assert text == card.format(base="meta-llama/Llama-3.2-1B")


def test_a_bare_name_is_no_hub_id_but_of_a_model_in_the_hubs_cache(
    run: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = run[1]
    path = lora / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "llama"}))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    with pytest.raises(BaseNotFoundError, match="'llama': no Hub id") as caught:
        publish_adapter(Request(str(lora)), tmp_path / "clean", Silent())
    assert "--base" in caught.value.next_step
    assert not (tmp_path / "clean").exists()

    repository = tmp_path / "cache" / "models--llama"
    (repository / "snapshots" / "0123abcd").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    publish_adapter(Request(str(lora)), tmp_path / "clean", Silent())

    config = json.loads((tmp_path / "clean" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "llama"


def test_the_id_is_read_from_the_path_of_the_hubs_cache(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    path = run[1] / "adapter_config.json"
    cached = "/home/me/.cache/huggingface/hub/models--somebody--tiny-base/snapshots/0123abcd"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": cached}))

    publish_adapter(Request(str(run[1])), tmp_path / "clean", Silent())

    config = json.loads((tmp_path / "clean" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE_ID, "0123abcd")


def test_pickled_weights_become_safetensors(run: tuple[Path, Path], tmp_path: Path) -> None:
    lora = run[1]
    tensors = load_file(lora / "adapter_model.safetensors")
    torch.save(tensors, lora / "adapter_model.bin")
    (lora / "adapter_model.safetensors").unlink()

    publish_adapter(Request(str(lora), base=BASE_ID), tmp_path / "clean", Silent())

    found = load_file(tmp_path / "clean" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_what_cannot_be_published_is_refused_with_nothing_written(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    base, lora = run
    broken = shutil.copytree(lora, tmp_path / "broken")
    weights = bytearray((broken / "adapter_model.safetensors").read_bytes())
    weights[-4:] = b"\xff\xff\xff\xff"
    (broken / "adapter_model.safetensors").write_bytes(weights)
    cases = [
        (Request(str(lora)), BaseNotFoundError, "no Hub id"),
        (Request(str(lora), base=str(base)), BaseNotFoundError, "--base is"),
        (Request(str(base), base=BASE_ID), UsageError, "full model"),
        (Request(str(lora), adapters=(str(lora),)), UsageError, "SOURCE alone"),
        (Request(str(broken), base=BASE_ID), NonFiniteError, "NaN or Inf"),
    ]
    for request, error, named in cases:
        with pytest.raises(error, match=named) as caught:
            publish_adapter(request, tmp_path / "clean", Silent())
        assert caught.value.next_step
        assert not (tmp_path / "clean").exists()


def test_an_adapter_is_overwritten_only_with_force_and_never_its_source(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    request = Request(str(run[1]), base=BASE_ID)
    publish_adapter(request, tmp_path / "clean", Silent())

    with pytest.raises(OutputExistsError, match="already"):
        publish_adapter(request, tmp_path / "clean", Silent())
    with pytest.raises(OutputExistsError, match="read from"):
        publish_adapter(Request(str(run[1]), base=BASE_ID, force=True), run[1], Silent())


def test_a_card_that_is_no_text_is_refused_before_anything_is_written(
    run: tuple[Path, Path], tmp_path: Path
) -> None:
    (run[1] / "README.md").write_bytes(b"\xff\xfe")

    with pytest.raises(CorruptFileError, match=r"README\.md"):
        publish_adapter(Request(str(run[1]), base=BASE_ID), tmp_path / "clean", Silent())

    assert not (tmp_path / "clean").exists()
