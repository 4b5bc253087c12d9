"""A source is recognised, chosen with a reason, or refused with an alternative."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from packager.errors import (
    BaseNotFoundError,
    CorruptFileError,
    MissingWeightsError,
    NotAModelError,
    SourceNotFoundError,
    UnsupportedError,
)
from packager.model.model_file import ModelFile
from packager.progress import Silent
from packager.source.base.find import find_base
from packager.source.open import Source, list_adapters, open_source
from packager.source.run.checkpoints import list_checkpoints
from packager.source.run.record import training_length


def open_(path: Path, checkpoint: str | None = None) -> Source:
    return open_source(str(path), checkpoint, None, Silent())


@pytest.fixture
def trainer_output(adapter: Callable[..., Path], tmp_path: Path) -> Path:
    """A Trainer's folder with three training checkpoints; the second is the best."""
    folder = tmp_path / "outputs"
    history = [
        {"step": 10, "loss": 2.0}, {"step": 10, "eval_loss": 2.1},
        {"step": 20, "loss": 1.0}, {"step": 20, "eval_loss": 1.1},
        {"step": 30, "loss": 0.5}, {"step": 30, "eval_loss": 1.4},
    ]  # fmt: skip
    state = {
        "best_model_checkpoint": "/home/trainer/run7/outputs/checkpoint-20",
        "log_history": history,
    }
    for step in (10, 20, 30):
        shutil.copytree(adapter("llama"), folder / f"checkpoint-{step}")
        (folder / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(
    ("wanted", "step"), [(None, "30"), ("last", "30"), ("best", "20"), ("10", "10")]
)
def test_chooses_a_training_checkpoint(trainer_output: Path, wanted: str | None, step: str) -> None:
    assert open_(trainer_output, wanted).folder.name == f"checkpoint-{step}"


def test_the_final_save_precedes_the_training_checkpoints(
    trainer_output: Path, adapter: Callable[..., Path]
) -> None:
    shutil.copytree(adapter("llama"), trainer_output, dirs_exist_ok=True)

    source = open_(trainer_output)

    assert source.folder == trainer_output
    assert "3 training checkpoints" in source.reason


def test_lists_training_checkpoints_with_their_losses(trainer_output: Path) -> None:
    checkpoints = list_checkpoints(trainer_output)

    assert [(c.step, c.loss, c.eval_loss, c.is_best) for c in checkpoints] == [
        (10, 2.0, 2.1, False),
        (20, 1.0, 1.1, True),
        (30, 0.5, 1.4, False),
    ]


def test_a_missing_training_checkpoint_lists_the_existing_ones(trainer_output: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="10, 20, 30"):
        open_(trainer_output, "15")


def test_best_without_a_record_is_refused(trainer_output: Path) -> None:
    for state in trainer_output.rglob("trainer_state.json"):
        state.unlink()

    with pytest.raises(SourceNotFoundError, match="best_model_checkpoint"):
        open_(trainer_output, "best")


def test_a_full_model_needs_no_base(small_model: Callable[..., Path]) -> None:
    source = open_(small_model("llama"))

    assert source.adapter is None
    assert source.model is not None


def test_the_base_is_the_recorded_path(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    opened = open_(adapter("llama")).adapter
    assert opened is not None

    base = find_base(opened, None, None, Silent())

    assert base.checkpoint.folder == small_model("llama")
    assert "recorded in adapter_config.json" in base.reason


def test_the_base_option_overrides_the_recorded_base(
    small_model: Callable[..., Path], adapter: Callable[..., Path]
) -> None:
    opened = open_(adapter("llama")).adapter
    assert opened is not None

    base = find_base(opened, str(small_model("qwen3")), None, Silent())

    assert base.checkpoint.folder == small_model("qwen3")
    assert "--base" in base.reason


def test_the_base_is_found_in_the_hugging_face_cache(
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    # The layout that huggingface_hub documents: refs name a commit, snapshots hold its files.
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(small_model("llama"), repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    opened = open_(adapter("llama")).adapter
    assert opened is not None

    base = find_base(opened, "someone/tiny", None, Silent())

    assert (base.model_id, base.revision) == ("someone/tiny", commit)
    assert "Hugging Face cache" in base.reason


def test_a_hub_id_is_a_source(
    small_model: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    commit = "89abcdef0123456789abcdef0123456789abcdef"
    repository = tmp_path / "models--someone--tuned"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(small_model("llama"), repository / "snapshots" / commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    source = open_source("someone/tuned", None, None, Silent())

    assert (source.model_id, source.revision) == ("someone/tuned", commit)
    assert source.model is not None


def test_a_missing_base_names_the_places_that_were_searched(adapter: Callable[..., Path]) -> None:
    opened = open_(adapter("llama")).adapter
    assert opened is not None

    with pytest.raises(BaseNotFoundError) as error:
        find_base(opened, "someone/not-there-bnb-4bit", None, Silent())

    assert "not in the Hugging Face cache" in error.value.message
    assert "--base someone/not-there" in error.value.next_step


def test_a_training_machines_path_is_refused_as_a_base(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(adapter("llama"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/mnt/trainer/models/base"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    opened = open_(folder).adapter
    assert opened is not None

    with pytest.raises(BaseNotFoundError, match="/mnt/trainer/models/base"):
        find_base(opened, None, None, Silent())


def test_a_base_quantized_in_an_unknown_way_is_refused_by_name(
    small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(small_model("llama"), base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))
    opened = open_(adapter("llama")).adapter
    assert opened is not None

    with pytest.raises(UnsupportedError, match="hqq"):
        find_base(opened, str(base), None, Silent())


@pytest.mark.parametrize(
    ("change", "method", "rank"),
    [
        ({}, "LoRA", 16),
        ({"use_rslora": True}, "rsLoRA", 16),
        ({"use_dora": True}, "DoRA", 16),
        ({"init_lora_weights": "pissa"}, "PiSSA", 16),
        ({"peft_type": "LOHA", "r": 4}, "LoHa", 4),
        ({"peft_type": "ADALORA", "target_r": 3}, "AdaLoRA", 3),
        ({"peft_type": "OFT", "r": 0}, "OFT", None),
        ({"peft_type": "IA3", "r": None}, "IA3", None),
    ],
)
def test_a_method_has_its_usual_name(
    change: dict[str, object],
    method: str,
    rank: int | None,
    adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "lora"
    shutil.copytree(adapter("llama"), folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))

    opened = open_(folder).adapter

    assert opened is not None
    assert (opened.config.method, opened.config.rank) == (method, rank)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="nothing-here"):
        open_(tmp_path / "nothing-here")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    with pytest.raises(NotAModelError) as error:
        open_(tmp_path)

    assert str(tmp_path / "model") in error.value.next_step


def test_a_configuration_without_weights(adapter: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(adapter("llama") / "adapter_config.json", tmp_path)

    with pytest.raises(MissingWeightsError, match="adapter_model"):
        open_(tmp_path)


def test_a_configuration_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")

    with pytest.raises(CorruptFileError, match="adapter_config"):
        open_(tmp_path)


def test_the_training_length_is_the_value_that_the_trainer_set(tmp_path: Path) -> None:
    own, base = tmp_path / "own.json", tmp_path / "base.json"
    own.write_text(json.dumps({"model_max_length": 2048}))
    base.write_text(json.dumps({"model_max_length": 131072}))
    name = "tokenizer_config.json"

    assert training_length({name: ModelFile(own)}, {name: ModelFile(base)}) == 2048
    assert training_length({name: ModelFile(base)}, {name: ModelFile(base)}) is None
    own.write_text(json.dumps({"model_max_length": 10**30}))
    assert training_length({name: ModelFile(own)}, {name: ModelFile(base)}) is None


def test_the_only_named_adapter_in_a_folder_is_chosen_with_a_reason(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT saves an adapter that is not called `default` in a folder of its name."""
    shutil.copytree(adapter("llama"), tmp_path / "outputs" / "style")

    source = open_(tmp_path / "outputs")

    assert source.folder == tmp_path / "outputs" / "style"
    assert "the only adapter in the folder" in source.reason


def test_several_named_adapters_need_a_choice(adapter: Callable[..., Path], tmp_path: Path) -> None:
    for name in ("style", "facts"):
        shutil.copytree(adapter("llama"), tmp_path / "outputs" / name)

    with pytest.raises(NotAModelError, match="2 adapters: facts, style") as caught:
        open_(tmp_path / "outputs")

    assert str(tmp_path / "outputs" / "facts") in caught.value.next_step


def test_a_named_adapter_in_a_training_checkpoint_is_found(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(adapter("llama"), tmp_path / "outputs" / "checkpoint-7" / "style")

    assert open_(tmp_path / "outputs").folder.name == "style"


def test_adapters_beside_the_default_one_are_listed(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(adapter("llama"), tmp_path / "outputs")
    shutil.copytree(adapter("llama"), tmp_path / "outputs" / "style")

    source = open_(tmp_path / "outputs")

    assert source.folder == tmp_path / "outputs"
    assert "style" in source.reason
    assert list_adapters(source.folder) == ["style"]


@pytest.mark.parametrize("left", ["adapter_config.json", "config.json"])
def test_an_interrupted_run_names_its_training_checkpoints(
    left: str, trainer_output: Path, adapter: Callable[..., Path], small_model: Callable[..., Path]
) -> None:
    """axolotl writes the configuration before the first step."""
    folder = adapter("llama") if left == "adapter_config.json" else small_model("llama")
    shutil.copy(folder / left, trainer_output)

    with pytest.raises(
        MissingWeightsError, match="checkpoint-10, checkpoint-20, checkpoint-30"
    ) as (error):
        open_(trainer_output)
    assert "--checkpoint last" in error.value.next_step
    assert "--checkpoint best" in error.value.next_step

    assert [item.step for item in list_checkpoints(trainer_output)] == [10, 20, 30]
    assert open_(trainer_output, "last").folder.name == "checkpoint-30"


def test_an_incomplete_training_checkpoint_names_the_others(trainer_output: Path) -> None:
    (trainer_output / "checkpoint-30" / "adapter_model.safetensors").unlink()

    with pytest.raises(MissingWeightsError, match="checkpoint-10, checkpoint-20") as error:
        open_(trainer_output)

    assert "--checkpoint 20" in error.value.next_step


def write_state(folder: Path, **state: object) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [], **state}))


def test_a_deleted_best_training_checkpoint_is_named(
    trainer_output: Path, adapter: Callable[..., Path]
) -> None:
    shutil.rmtree(trainer_output / "checkpoint-20")

    with pytest.raises(SourceNotFoundError, match=r"checkpoint-20 .*10 .*2\.1.*30 ") as (error):
        open_(trainer_output, "best")
    assert "--checkpoint N" in error.value.next_step

    shutil.copytree(adapter("llama"), trainer_output, dirs_exist_ok=True)
    assert "checkpoint-20, the best by trainer_state.json, does not exist" in (
        open_(trainer_output).reason
    )


@pytest.mark.parametrize("path", [None, "/mnt/run7/renamed"])
def test_the_best_step_is_used_if_the_best_path_is_not(
    path: str | None, trainer_output: Path
) -> None:
    write_state(trainer_output, best_model_checkpoint=path, best_global_step=10)

    assert open_(trainer_output, "best").folder.name == "checkpoint-10"


def test_an_unreadable_record_prevents_only_the_choice_of_the_best(
    trainer_output: Path, adapter: Callable[..., Path]
) -> None:
    (trainer_output / "checkpoint-30" / "trainer_state.json").write_text('{"best')
    shutil.copytree(adapter("llama"), trainer_output, dirs_exist_ok=True)

    final, last = open_(trainer_output), open_(trainer_output, "last")

    assert (final.folder, last.folder) == (trainer_output, trainer_output / "checkpoint-30")
    for source in (final, last):
        assert "checkpoint-30/trainer_state.json cannot be read" in source.reason
    # An older record names another one, which was the best at that time.
    assert not any(item.is_best for item in list_checkpoints(trainer_output))
    with pytest.raises(CorruptFileError, match=r"checkpoint-30/trainer_state\.json") as error:
        open_(trainer_output, "best")
    assert "--checkpoint N" in error.value.next_step


def test_an_adapter_in_pieces_is_refused_with_a_command_that_joins_them(
    small_model: Callable[..., Path], tmp_path: Path
) -> None:
    """transformers writes pieces of an adapter, which PEFT does not read."""
    model = AutoModelForCausalLM.from_pretrained(small_model("llama"), dtype="auto")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "pieces", max_shard_size="2KB")

    with pytest.raises(UnsupportedError, match="pieces") as error:
        open_(tmp_path / "pieces")
    _, _, code = shlex.split(error.value.next_step.split("`")[1])
    exec(code, {})

    joined, whole = (open_(tmp_path / name).adapter for name in ("pieces", "whole"))
    assert joined is not None
    assert whole is not None
    assert joined.weights.tensors.keys() == whole.weights.tensors.keys()
    for name in whole.weights.tensors:
        assert torch.equal(joined.weights.load(name), whole.weights.load(name))


def test_an_adapter_of_mlx_lm_is_refused_with_a_command_that_fuses_it(tmp_path: Path) -> None:
    config = {"fine_tune_type": "lora", "model": "mlx-community/Llama-3.2-1B-Instruct-4bit",
              "lora_parameters": {"rank": 8, "scale": 20.0}}  # fmt: skip
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapters.safetensors").touch()

    with pytest.raises(UnsupportedError, match="mlx-lm") as error:
        open_(tmp_path)

    assert (
        "mlx_lm.fuse --model mlx-community/Llama-3.2-1B-Instruct-4bit "
        f"--adapter-path {tmp_path} --save-path {tmp_path}-fused"
    ) in error.value.next_step
