"""Requests to the Hub: which files, at which revision, and what its refusals become."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

from packager.errors import BaseNotFoundError, SourceNotFoundError
from packager.model.adapter import Adapter
from packager.model.checkpoint import FolderCheckpoint
from packager.progress import Silent
from packager.source.base.find import find_base
from packager.source.hub.hub import download, find_cached, find_file
from packager.source.open import open_source
from tests.reports import Reports
from tests.source.base.test_full_precision import adapter_of, quantized_copy
from tests.source.hub.fake_hub import COMMIT, Hub, hub

__all__ = ["hub"]


def files(*names: str) -> Mapping[str, bytes]:
    return dict.fromkeys(names, b"{}")


def downloaded(hub: Hub) -> set[str]:
    return {name.split("/", 2)[2] for name in hub.downloaded}


SAFE = ("config.json", "model.safetensors")
BIN = ("config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json")
LORA = ("adapter_config.json", "adapter_model.bin")


@pytest.mark.parametrize(
    ("existing", "wanted"),
    [
        (SAFE, SAFE),
        (BIN, BIN),
        ((*SAFE, "pytorch_model.bin"), SAFE),
        (LORA, LORA),
        ((*LORA, "adapter_model.safetensors"),
         ("adapter_config.json", "adapter_model.safetensors")),
        # Each folder is asked by itself: named adapters lie in folders of their own.
        ((*SAFE, "fr/adapter_config.json", "fr/adapter_model.bin"),
         (*SAFE, "fr/adapter_config.json", "fr/adapter_model.bin")),
        ((*LORA, "optimizer.bin", "training_args.bin", "rng_state.pth"), LORA),
        ((*SAFE, "qwen.tiktoken", "chat_template.jinja"),
         (*SAFE, "qwen.tiktoken", "chat_template.jinja")),
        ((*LORA, "checkpoint-10/adapter_model.bin", "original/pytorch_model.bin"), LORA),
        (("config.json", "consolidated.safetensors", "pytorch_model.bin"),
         ("config.json", "pytorch_model.bin")),
    ],
)  # fmt: skip
def test_only_files_that_packaging_reads_are_downloaded_and_no_weights_twice(
    existing: tuple[str, ...], wanted: tuple[str, ...], hub: Hub
) -> None:
    hub.repositories["a/b"] = files(*existing)

    snapshot = download("a/b", None, Silent())

    assert downloaded(hub) == set(wanted)
    assert (snapshot.folder, snapshot.revision) == (hub.snapshot("a/b"), COMMIT)


def test_the_list_and_the_files_have_the_same_revision(hub: Hub) -> None:
    hub.repositories["a/b"] = files(*SAFE)

    download("a/b", "v2", Silent())

    assert hub.revisions == ["v2", "v2"]


@pytest.fixture
def lora(adapter: Callable[..., Path], tmp_path: Path) -> Adapter:
    """An adapter of `a/base`."""
    return adapter_of("a/base", adapter("llama"), tmp_path / "lora")


def refused(kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    answer: Any = SimpleNamespace(headers={}, request=None, status_code=403)
    return kind("no, says the Hub", response=answer)


@pytest.mark.parametrize(
    ("failure", "step"),
    [
        (refused(errors.GatedRepoError), "Accept the licence on the page of a/b, then `hf auth"),
        (refused(errors.RepositoryNotFoundError), "Check the id; for a private one"),
        (refused(errors.RevisionNotFoundError), "that exists with --revision"),
        (refused(errors.HfHubHTTPError), "Try again later"),
        (errors.OfflineModeIsEnabled("no, says the Hub"), "Unset HF_HUB_OFFLINE"),
        # What the HTTP client raises where there is no network: huggingface_hub passes it on.
        (errors.HfHubHTTPError.__bases__[0]("no, says the Hub"), "Check the network connection"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_refusal_says_what_to_do(failure: Exception, step: str, hub: Hub) -> None:
    hub.failure = failure

    with pytest.raises(SourceNotFoundError) as error:
        open_source("a/b", None, None, Silent())

    assert "a/b is not in the Hugging Face cache" in error.value.message
    assert "no, says the Hub" in error.value.message
    assert step in error.value.next_step


def test_the_error_of_the_offline_client_names_its_setting() -> None:
    with pytest.raises(SourceNotFoundError) as error:
        download("a/b", None, Silent())

    assert "HF_HUB_OFFLINE" in error.value.next_step


def test_a_complete_snapshot_is_used_without_the_network(
    hub: Hub, small_model: Callable[..., Path], lora: Adapter
) -> None:
    hub.put_folder("a/base", small_model("llama"))
    hub.keep("a/base", *hub.repositories["a/base"])
    hub.failure = AssertionError("the network was asked")

    base = find_base(lora, None, None, Silent())

    assert (base.checkpoint.folder, base.revision) == (hub.snapshot("a/base"), COMMIT)


def test_further_files_in_the_clients_own_list_are_not_missed(hub: Hub) -> None:
    """The client keeps the list of all files, and calls a snapshot without them incomplete."""
    hub.repositories["a/b"] = files(*SAFE)
    hub.keep("a/b", *SAFE)
    listed = {name: {"size": 2, "blob_id": "0" * 40} for name in (*SAFE, "pytorch_model.bin")}
    trees = hub.snapshot("a/b").parent.parent / "trees"
    trees.mkdir()
    (trees / f"{COMMIT}.json").write_text(json.dumps({"format_version": 1, "files": listed}))

    snapshot = find_cached("a/b", None)

    assert snapshot is not None
    assert snapshot.folder == hub.snapshot("a/b")


@pytest.mark.parametrize("cached", ["adapter_config.json", "README.md"])
def test_an_interrupted_download_of_an_adapter_resumes(
    cached: str, hub: Hub, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "trained"
    shutil.copytree(adapter("llama"), folder)
    (folder / "README.md").write_text("An adapter.")
    hub.put_folder("me/lora", folder)
    hub.keep("me/lora", cached)
    progress = Reports()

    source = open_source("me/lora", None, None, progress)

    assert source.adapter is not None
    assert f"me/lora/{cached}" not in hub.downloaded
    assert "me/lora is only partly in the Hugging Face cache" in progress.notes


def test_an_adapter_that_peft_cached_gets_its_tokenizer(
    hub: Hub, adapter: Callable[..., Path]
) -> None:
    hub.put_folder("me/lora", adapter("llama"))
    hub.keep("me/lora", "adapter_config.json", "adapter_model.safetensors")

    source = open_source("me/lora", None, None, Silent())

    assert "tokenizer_config.json" in source.files
    # At the commit of the cache: the weights stay those that were loaded.
    assert hub.revisions == [COMMIT, COMMIT]


def test_without_the_network_a_missing_tokenizer_is_a_warning(
    hub: Hub, adapter: Callable[..., Path]
) -> None:
    hub.put_folder("me/lora", adapter("llama"))
    hub.keep("me/lora", "adapter_config.json", "adapter_model.safetensors")
    hub.failure = errors.OfflineModeIsEnabled("offline")
    progress = Reports()

    source = open_source("me/lora", None, None, progress)

    assert source.adapter is not None
    assert any("cache without a tokenizer" in line for line in progress.warnings)


def sharded(small_model: Callable[..., Path], folder: Path) -> Path:
    """A model whose one weight file is called a shard, with its index."""
    shutil.copytree(small_model("llama"), folder)
    shard = folder / "model-00001-of-00001.safetensors"
    (folder / "model.safetensors").rename(shard)
    names = list(FolderCheckpoint(small_model("llama")).tensors)
    index = {"weight_map": dict.fromkeys(names, shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("is_base", [True, False], ids=["base", "source"])
def test_a_missing_shard_is_downloaded(
    is_base: bool, hub: Hub, small_model: Callable[..., Path], lora: Adapter, tmp_path: Path
) -> None:
    hub.put_folder("a/base", sharded(small_model, tmp_path / "sharded"))
    hub.keep("a/base", "config.json", "model.safetensors.index.json")

    if is_base:
        find_base(lora, None, None, Silent())
    else:
        open_source("a/base", None, None, Silent())

    assert "a/base/model-00001-of-00001.safetensors" in hub.downloaded


def test_a_partial_snapshot_that_cannot_be_completed_is_reported_as_partial(
    hub: Hub, lora: Adapter
) -> None:
    hub.repositories["a/base"] = files("config.json")
    hub.keep("a/base", "config.json")
    hub.failure = errors.OfflineModeIsEnabled("offline")

    with pytest.raises(BaseNotFoundError) as error:
        find_base(lora, None, None, Silent())

    assert "a/base is only partly in the Hugging Face cache" in error.value.message
    assert "HF_HUB_OFFLINE" in error.value.next_step
    assert "--base a/base" not in error.value.next_step


def test_a_16_bit_original_that_is_partly_in_the_cache_is_completed(
    hub: Hub, small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    hub.put_folder("un/m", small_model("llama"))
    hub.put_folder("un/m-bnb-4bit", quantized_copy(small_model("llama"), tmp_path / "quantized"))
    hub.keep("un/m", "config.json")
    hub.keep("un/m-bnb-4bit", "config.json")
    lora = adapter_of("un/m-bnb-4bit", adapter("llama"), tmp_path / "lora")

    base = find_base(lora, None, None, Silent())

    assert base.model_id == "un/m"
    assert "un/m/model.safetensors" in hub.downloaded
    assert "un/m-bnb-4bit/model.safetensors" not in hub.downloaded


def test_an_interrupted_download_of_a_16_bit_original_resumes_in_the_next_run(
    hub: Hub, small_model: Callable[..., Path], adapter: Callable[..., Path], tmp_path: Path
) -> None:
    hub.put_folder("un/m-bnb-4bit", quantized_copy(small_model("llama"), tmp_path / "quantized"))
    hub.put_folder("un/m", small_model("llama"))
    lora = adapter_of("un/m-bnb-4bit", adapter("llama"), tmp_path / "lora")
    # The first run gets as far as the configurations.
    hub.keep("un/m-bnb-4bit", *hub.repositories["un/m-bnb-4bit"])
    assert find_file("un/m", "config.json", None) is not None

    assert find_base(lora, None, None, Silent()).model_id == "un/m"


def test_an_adapter_in_a_folder_of_its_name_is_opened_in_the_cache(
    hub: Hub, adapter: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(adapter("llama"), tmp_path / "named" / "fr")
    hub.put_folder("me/named", tmp_path / "named")

    assert open_source("me/named", None, None, Silent()).folder == hub.snapshot("me/named") / "fr"


@pytest.fixture
def run(hub: Hub, adapter: Callable[..., Path], tmp_path: Path) -> Hub:
    """`me/run`: a repository with a final save and three training checkpoints; 10 is the best."""
    top = tmp_path / "run"
    shutil.copytree(adapter("llama"), top)
    for step in (5, 10, 20):
        shutil.copytree(adapter("llama"), top / f"checkpoint-{step}")
        state = {"best_model_checkpoint": "/there/run/checkpoint-10", "log_history": []}
        (top / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
        (top / f"checkpoint-{step}" / "optimizer.pt").write_bytes(b"")
    hub.put_folder("me/run", top)
    return hub


@pytest.mark.parametrize(("wanted", "step"), [("5", 5), ("best", 10), ("last", 20)])
def test_only_the_wanted_training_checkpoint_of_a_repository_is_downloaded(
    wanted: str, step: int, run: Hub
) -> None:
    source = open_source("me/run", wanted, None, Silent())

    assert source.folder == run.snapshot("me/run") / f"checkpoint-{step}"
    assert source.adapter is not None
    assert "tokenizer.json" in source.files
    weights = [name for name in downloaded(run) if name.endswith((".safetensors", ".pt"))]
    assert weights == [f"checkpoint-{step}/adapter_model.safetensors"]


def test_without_checkpoint_only_the_final_save_is_downloaded(run: Hub) -> None:
    assert open_source("me/run", None, None, Silent()).folder == run.snapshot("me/run")
    assert not [name for name in downloaded(run) if name.startswith("checkpoint-")]


def test_a_training_checkpoint_in_the_cache_is_used_without_the_network(run: Hub) -> None:
    open_source("me/run", "5", None, Silent())
    run.failure = AssertionError("the network was asked")

    again = open_source("me/run", "5", None, Silent())

    assert again.folder == run.snapshot("me/run") / "checkpoint-5"


def test_the_final_save_is_still_downloaded_after_a_training_checkpoint(run: Hub) -> None:
    repository = run.repositories["me/run"]
    others = ("checkpoint-10/", "checkpoint-20/")
    run.repositories["me/run"] = {
        name: repository[name] for name in repository if not name.startswith(others)
    }
    open_source("me/run", "5", None, Silent())

    assert open_source("me/run", None, None, Silent()).folder == run.snapshot("me/run")


def test_a_partly_downloaded_training_checkpoint_is_completed(run: Hub) -> None:
    run.keep("me/run", "checkpoint-5/adapter_config.json")

    open_source("me/run", "5", None, Silent())

    assert "me/run/checkpoint-5/adapter_model.safetensors" in run.downloaded


def test_a_missing_training_checkpoint_lists_the_existing_ones(run: Hub) -> None:
    with pytest.raises(SourceNotFoundError, match="5, 10, 20"):
        open_source("me/run", "7", None, Silent())


def test_a_repository_without_training_checkpoints_is_refused(hub: Hub) -> None:
    hub.repositories["a/b"] = files(*LORA)

    with pytest.raises(SourceNotFoundError, match="checkpoint-N") as error:
        open_source("a/b", "7", None, Silent())

    assert "Omit --checkpoint" in error.value.next_step
