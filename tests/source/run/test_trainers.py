"""The folders that each trainer leaves are recognised, and its records are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import UnsupportedError
from packager.progress import Silent
from packager.source.open import open_source
from packager.source.run.checkpoints import list_checkpoints
from packager.source.run.record import Training, read_training


@pytest.fixture
def lora(adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """An adapter as `save_pretrained` leaves it, in a folder of its own."""
    shutil.copytree(adapter("llama"), tmp_path / "outputs")
    return tmp_path / "outputs"


@pytest.fixture
def llamafactory(lora: Path, adapter: Callable[..., Path]) -> Callable[[str], Path]:
    """LLaMA-Factory's output, trained with the chat template of that name."""

    def make(template: str) -> Path:
        for step in (10, 20):
            shutil.copytree(adapter("llama"), lora / f"checkpoint-{step}")
        log = [
            {"current_steps": 10, "total_steps": 20, "loss": 1.5, "epoch": 0.5},
            {"current_steps": 10, "total_steps": 20, "eval_loss": 1.25, "epoch": 0.5},
            {"current_steps": 20, "total_steps": 20, "loss": 0.75, "epoch": 1.0},
        ]
        lines = [json.dumps(entry) for entry in log]
        (lora / "trainer_log.jsonl").write_text("\n".join([*lines, '{"current_st']))
        (lora / "all_results.json").write_text('{"train_loss": 1.125}')
        (lora / "added_tokens.json").write_text("{}")
        (lora / "training_args.yaml").write_text(
            "cutoff_len: 2048\nfinetuning_type: lora\nmodel_name_or_path: meta-llama/Llama-3.2-1B\n"
            f"stage: sft\ntemplate: {template}\n"
        )
        return lora

    return make


def test_llamafactory_records_base_template_and_length(
    llamafactory: Callable[[str], Path],
) -> None:
    folder = llamafactory("llama3")
    training = Training(
        "LLaMA-Factory", folder / "training_args.yaml", "meta-llama/Llama-3.2-1B", "llama3", 2048
    )

    assert read_training(folder) == training
    assert read_training(folder / "checkpoint-20") == training


def test_llamafactorys_log_has_the_losses_if_there_is_no_trainer_state(
    llamafactory: Callable[[str], Path],
) -> None:
    checkpoints = list_checkpoints(llamafactory("llama3"))

    assert [(c.step, c.loss, c.eval_loss) for c in checkpoints] == [
        (10, 1.5, 1.25),
        (20, 0.75, 1.25),
    ]


def test_axolotl(lora: Path, small_model: Callable[..., Path]) -> None:
    config = lora / "config.yaml"
    config.write_text(
        "base_model: meta-llama/Llama-3.2-1B\nadapter: lora\nsequence_len: 4096\n"
        "datasets:\n  - path: data.jsonl\n    type: chat_template\n"
    )
    shutil.copytree(small_model("llama"), lora / "merged")

    source = open_source(str(lora), None, None, Silent())

    assert read_training(lora) == Training("axolotl", config, "meta-llama/Llama-3.2-1B", None, 4096)
    assert source.adapter is not None
    assert "a merged model is in" in source.reason
    assert open_source(str(lora / "merged"), None, None, Silent()).model is not None


def test_torchtune_epochs_are_training_checkpoints(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    for epoch in (0, 1):
        folder = tmp_path / f"epoch_{epoch}"
        shutil.copytree(adapter("llama"), folder)
        (folder / "adapter_model.pt").touch()

    last = open_source(str(tmp_path), None, None, Silent())
    first = open_source(str(tmp_path), "0", None, Silent())

    assert (last.folder.name, first.folder.name) == ("epoch_1", "epoch_0")
    training = read_training(last.folder)
    assert training is not None
    assert training.trainer == "torchtune"


def test_torchtunes_own_format_is_refused_with_an_alternative(lora: Path) -> None:
    (lora / "adapter_model.safetensors").rename(lora / "adapter_model.pt")

    with pytest.raises(UnsupportedError) as error:
        open_source(str(lora), None, None, Silent())

    assert "FullModelHFCheckpointer" in error.value.next_step


def test_unsloths_merged_16bit_is_a_full_model(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tmp_path / "merged_16bit"
    shutil.copytree(small_model("llama"), model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"unsloth_version": "2025.9.1"}))

    assert open_source(str(model), None, None, Silent()).model is not None
    training = read_training(model)
    assert training is not None
    assert training.trainer == "Unsloth 2025.9.1"


def test_the_final_save_is_compared_with_the_best_checkpoint(
    lora: Path, adapter: Callable[..., Path]
) -> None:
    shutil.copytree(adapter("llama"), lora / "checkpoint-10")
    shutil.copytree(adapter("llama", seed=7), lora / "checkpoint-20")
    state = {"best_model_checkpoint": "outputs/checkpoint-10", "log_history": []}
    (lora / "trainer_state.json").write_text(json.dumps(state))

    # With load_best_model_at_end the final save is the best one.
    assert "the weights of checkpoint-10, the best" in (
        open_source(str(lora), None, None, Silent()).reason
    )

    state["best_model_checkpoint"] = "outputs/checkpoint-20"
    (lora / "trainer_state.json").write_text(json.dumps(state))

    assert "--checkpoint best" in open_source(str(lora), None, None, Silent()).reason


def test_invalid_log_entries_are_skipped(lora: Path) -> None:
    (lora / "checkpoint-10").mkdir()
    history = [3, {"step": "x", "loss": 1}, {"step": 1, "loss": "high"}, {"step": 2, "loss": 2.5},
               {"step": 3, "loss": float("nan")}]  # fmt: skip
    (lora / "trainer_state.json").write_text(json.dumps({"log_history": history}))

    assert [(c.loss, c.eval_loss) for c in list_checkpoints(lora)] == [(2.5, None)]


@pytest.mark.parametrize("name", ["training_args.yaml", "config.json"])
def test_an_unreadable_record_does_not_raise(name: str, lora: Path) -> None:
    (lora / name).write_text("{: ]")

    source = open_source(str(lora), None, None, Silent())

    assert source.adapter is not None
    if name == "training_args.yaml":
        assert source.training is not None
        assert "training_args.yaml cannot be read" in str(source.training.problem)
