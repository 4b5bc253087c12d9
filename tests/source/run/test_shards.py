"""A parallel run's shards are refused with the command that joins them."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from packager.errors import UnsupportedError
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.source.open import open_source


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def next_step(folder: Path) -> str:
    with pytest.raises(UnsupportedError) as error:
        open_source(str(folder), None, None, Silent())
    return error.value.next_step


@pytest.fixture
def fsdp(tmp_path: Path) -> Path:
    """A checkpoint as accelerate leaves it with SHARDED_STATE_DICT."""
    return touch(
        tmp_path / "out" / "checkpoint-20",
        "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp",
        "pytorch_model_fsdp_0/__1_0.distcp", "optimizer_0/__0_0.distcp", "rng_state_0.pth",
    )  # fmt: skip


@pytest.fixture
def deepspeed(tmp_path: Path) -> Path:
    """A checkpoint of ZeRO-3 without gathered weights."""
    folder = touch(
        tmp_path / "out" / "checkpoint-20",
        "global_step20/zero_pp_rank_0_mp_rank_00_model_states.pt",
        "global_step20/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest",
        "zero_to_fp32.py",
    )  # fmt: skip
    (folder / "config.json").write_text("{}")
    return folder


def test_fsdp(fsdp: Path) -> None:
    command = f"accelerate merge-weights {fsdp / 'pytorch_model_fsdp_0'} {fsdp}"
    # The checkpoint, the run's folder, and the folder of the shards itself.
    assert command in next_step(fsdp)
    assert command in next_step(fsdp.parent)
    assert command in next_step(fsdp / "pytorch_model_fsdp_0")


def test_deepspeed(deepspeed: Path) -> None:
    command = f"python {deepspeed / 'zero_to_fp32.py'} {deepspeed} {deepspeed} --safe_serialization"
    assert command in next_step(deepspeed)
    assert command in next_step(deepspeed.parent)
    assert command in next_step(deepspeed / "global_step20")


def test_optimizer_states_beside_complete_weights_are_accepted(
    fsdp: Path, adapter: Callable[..., Path]
) -> None:
    shutil.copytree(adapter("llama"), fsdp, dirs_exist_ok=True)

    assert open_source(str(fsdp), None, None, Silent()).adapter is not None


@pytest.fixture
def full_state(tmp_path: Path) -> Path:
    """A checkpoint's folder for what accelerate saves with FULL_STATE_DICT."""
    return touch(tmp_path / "out" / "checkpoint-20", "optimizer.bin", "trainer_state.json")


def run_python(step: str, base: Path, **names: object) -> None:
    """Run the command of a next step, with the base's path in its place."""
    program, option, code = shlex.split(step.split("`")[1])
    assert (program, option) == ("python", "-c")
    exec(code.replace("BASE", str(base)), dict(names))


def test_fsdps_full_state_of_a_model(full_state: Path, small_model: Callable[..., Path]) -> None:
    base = small_model("llama")
    trained = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    with torch.no_grad():
        trained.model.norm.weight.fill_(0.25)
    torch.save(trained.state_dict(), full_state / "pytorch_model_fsdp.bin")

    run_python(next_step(full_state.parent), base)

    model = open_source(str(full_state.parent), None, None, Silent()).model
    assert model is not None
    assert model.load("model.norm.weight").unique().tolist() == [0.25]
    assert model.tensors.keys() == FolderCheckpoint(base).tensors.keys()


@pytest.mark.parametrize("form", ["wrapped", "wrapped, with its configuration", "PEFT's"])
def test_fsdps_full_state_of_an_adapter(
    form: str, full_state: Path, small_model: Callable[..., Path]
) -> None:
    base = small_model("llama")
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), config)
    expected = get_peft_model_state_dict(tuned)
    state = expected if form == "PEFT's" else tuned.state_dict()
    torch.save(state, full_state / "pytorch_model_fsdp.bin")
    if form != "wrapped":
        tuned.peft_config["default"].save_pretrained(full_state)

    step = next_step(full_state)
    if form == "PEFT's":
        subprocess.run(shlex.split(step.split("`")[1]), check=True)
    else:
        run_python(step, base, CONFIG=config)

    adapter = open_source(str(full_state), None, None, Silent()).adapter
    assert adapter is not None
    assert adapter.weights.tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(adapter.weights.load(name), tensor)


def test_the_separate_states_of_the_processes(full_state: Path) -> None:
    touch(full_state, "pytorch_model_fsdp_rank0.bin", "pytorch_model_fsdp_rank1.bin")

    assert "FULL_STATE_DICT" in next_step(full_state)
