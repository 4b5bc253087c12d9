"""A parallel run's pieces are refused with the command that joins them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from packager.errors import UnsupportedError
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


def test_optimizer_states_beside_whole_weights_do_no_harm(
    fsdp: Path, adapter: Callable[..., Path]
) -> None:
    shutil.copytree(adapter("llama"), fsdp, dirs_exist_ok=True)

    assert open_source(str(fsdp), None, None, Silent()).adapter is not None
