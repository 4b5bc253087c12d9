"""Where a base comes from, how it is identified, and what is offered if it is missing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from packager.errors import BaseNotFoundError, SourceNotFoundError, ToolchainError
from packager.model.adapter import Adapter
from packager.progress import Silent
from packager.source.adapter_folder import open_adapter
from packager.source.base.find import find_base
from packager.source.base.foresee import foresee_base
from packager.source.hub.identity import ModelIdentity, cached_identity
from tests.source.base.test_full_precision import quantized_copy
from tests.source.hub.fake_hub import Hub, hub
from tests.source.hub.test_modelscope import Files

__all__ = ["hub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Lora = Callable[[str], Path]


@pytest.fixture
def lora(adapter: Callable[..., Path], tmp_path: Path) -> Lora:
    """A LoRA for the small Llama that records this base."""

    def make(recorded: str) -> Path:
        folder = tmp_path / "runs" / "lora"
        shutil.copytree(adapter("llama"), folder)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = recorded
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def put(cache: Path, model_id: str, model: Path) -> Path:
    repository = cache / f"models--{model_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(model, repository / "snapshots" / COMMIT)
    return repository / "snapshots" / COMMIT


def location(folder: Path) -> str:
    """Where packaging would find the base of the adapter in a folder."""
    return foresee_base(open_adapter(folder)).location


def refusal(opened: Adapter) -> BaseNotFoundError:
    with pytest.raises(BaseNotFoundError) as error:
        find_base(opened, None, None, Silent())
    return error.value


def test_models_that_fit_a_missing_base_are_offered_and_not_chosen(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    put(cache, "someone/other", small_model("llama", hidden_size=192))
    put(cache, "someone/twin", small_model("llama"))

    error = refusal(open_adapter(lora("/mnt/trainer/models/base")))

    assert "someone/twin (its shapes fit)" in error.message
    assert "someone/other" not in error.message
    assert "--base someone/twin" in error.next_step


def test_a_model_with_the_recorded_name_is_offered_first(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    put(cache, "a/twin", small_model("llama"))
    put(cache, "z/Base-1B", small_model("llama"))

    error = refusal(open_adapter(lora("/mnt/trainer/models/base-1b/")))

    assert error.message.index("z/Base-1B") < error.message.index("a/twin")
    assert "its shapes fit and it has the recorded name" in error.message


def test_a_base_beside_the_adapter_is_offered_by_its_path(
    small_model: Callable[..., Path], lora: Lora, cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_model("llama"), tmp_path / "runs" / "model")

    error = refusal(open_adapter(lora("/mnt/trainer/models/base")))

    assert f"--base {(tmp_path / 'runs' / 'model').resolve()}" in error.next_step


@pytest.mark.parametrize(
    ("path", "identity"),
    [
        (f"/home/someone/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/{COMMIT}",
         ModelIdentity("Qwen/Qwen3-0.6B", COMMIT)),
        ("C:\\cache\\models--gpt2\\snapshots\\main", ModelIdentity("gpt2")),
        ("/home/someone/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B-Instruct",
         ModelIdentity("Qwen/Qwen2.5-7B-Instruct")),
        ("/home/someone/.cache/modelscope/hub/LLM-Research/Meta-Llama-3-8B",
         ModelIdentity("LLM-Research/Meta-Llama-3-8B")),
        ("/data/models/llama", None),
    ],
)  # fmt: skip
def test_a_cache_path_contains_the_id(path: str, identity: ModelIdentity | None) -> None:
    assert cached_identity(path) == identity


def test_a_cache_path_of_the_training_machine_is_read_as_an_id(lora: Lora, cache: Path) -> None:
    recorded = f"/home/trainer/.cache/huggingface/hub/models--a--b/snapshots/{COMMIT}"

    assert "--base a/b" in refusal(open_adapter(lora(recorded))).next_step


def test_the_base_in_the_trainers_configuration_is_offered(lora: Lora, cache: Path) -> None:
    folder = lora("/mnt/trainer/models/base")
    (folder / "training_args.yaml").write_text("model_name_or_path: someone/tiny\n")

    error = refusal(open_adapter(folder))

    assert "someone/tiny (named in training_args.yaml)" in error.message
    assert "--base someone/tiny" in error.next_step


def test_a_path_of_the_training_machine_in_the_configuration_is_not_offered(
    lora: Lora, cache: Path
) -> None:
    folder = lora("/mnt/trainer/models/base")
    (folder / "training_args.yaml").write_text("model_name_or_path: /mnt/trainer/other\n")

    assert "--base PATH_OR_ID" in refusal(open_adapter(folder)).next_step


@pytest.mark.parametrize(
    ("value", "phrase"), [(None, "is null"), ("", 'is ""'), (5, "is 5"), (..., "is missing")]
)
def test_without_a_recorded_base_the_error_has_the_value_and_offers_models(
    value: object, phrase: str, small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    put(cache, "someone/twin", small_model("llama"))
    folder = lora("")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = value
    if value is ...:
        del config["base_model_name_or_path"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "training_args.yaml").write_text("model_name_or_path: someone/tiny\n")

    error = refusal(open_adapter(folder))

    assert f"adapter_config.json records no base (`base_model_name_or_path` {phrase})" in (
        error.message
    )
    assert "someone/tiny (named in training_args.yaml)" in error.message
    assert "someone/twin (its shapes fit)" in error.message
    assert "--base someone/tiny" in error.next_step
    assert "someone/twin (its shapes fit)" in location(folder)


# From the working directory, `Tiny-1B` is the recorded path itself.
@pytest.mark.parametrize(
    ("recorded", "place"),
    [
        ("Tiny-1B", "runs"), ("Tiny-1B", "."),
        ("models/Tiny-1B", "runs"), ("models/Tiny-1B", "."), ("models/Tiny-1B", "work"),
        ("./out/models/Tiny-1B", "runs"), ("./out/models/Tiny-1B", "work"),
    ],
)  # fmt: skip
def test_a_relative_path_of_the_training_machine_is_offered_and_not_downloaded(
    recorded: str,
    place: str,
    small_model: Callable[..., Path],
    lora: Lora,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.put_folder("Tiny-1B", small_model("llama"))
    model = tmp_path / place / "Tiny-1B"
    shutil.copytree(small_model("llama"), model)
    (tmp_path / "work").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "work")

    error = refusal(open_adapter(lora(recorded)))

    assert f"{model} (its shapes fit and it has the recorded name)" in error.message
    assert f"--base {model}" in error.next_step
    assert hub.downloaded == []


def test_the_foreseen_base_offers_the_folder_that_a_relative_path_may_mean(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    shutil.copytree(small_model("llama"), tmp_path / "Tiny-1B")

    foreseen = location(lora("Tiny-1B"))

    assert foreseen.startswith("no: neither a folder on this machine nor a Hub id with an owner")
    assert "--base" in foreseen
    assert f"{tmp_path / 'Tiny-1B'} (its shapes fit" in foreseen


def test_the_end_of_the_recorded_path_is_searched_above_the_adapter(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    model = tmp_path / "models" / "llama" / "Tiny-1B"
    shutil.copytree(small_model("llama"), model)

    assert f"--base {model}" in refusal(open_adapter(lora("models/llama/Tiny-1B"))).next_step


def test_an_id_without_an_owner_is_downloaded_if_no_such_folder_fits(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    hub.put_folder("tiny", small_model("llama"))
    shutil.copytree(small_model("llama", hidden_size=192), tmp_path / "runs" / "tiny")

    assert find_base(open_adapter(lora("tiny")), None, None, Silent()).model_id == "tiny"


def test_an_id_without_an_owner_as_option_is_the_hubs(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    hub.put_folder("tiny", small_model("llama"))
    shutil.copytree(small_model("llama"), tmp_path / "runs" / "tiny")

    assert find_base(open_adapter(lora("/gone")), "tiny", None, Silent()).model_id == "tiny"


def test_the_foreseen_base_is_relative_to_the_adapters_folder_as_in_packaging(
    small_model: Callable[..., Path], lora: Lora, tmp_path: Path
) -> None:
    shutil.copytree(small_model("llama"), tmp_path / "runs" / "tiny")
    folder = lora("../tiny")

    base = find_base(open_adapter(folder), None, None, Silent())

    assert location(folder) == f"the folder {folder / '../tiny'}"
    assert base.checkpoint.folder == folder / "../tiny"


def test_the_foreseen_base_of_a_quantized_id_is_its_16_bit_original(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    folder = lora("un/m-unsloth-bnb-4bit")

    foreseen = location(folder)
    assert "16-bit original un/m, if it is available and fits: not on this machine" in foreseen
    assert "--keep-base-quantized takes un/m-unsloth-bnb-4bit itself: not on this" in foreseen

    snapshot = put(cache, "un/m", small_model("llama"))
    assert f"fits: in the Hugging Face cache, {snapshot} (" in location(folder)

    (snapshot / "model.safetensors").unlink()
    assert f"partly in the Hugging Face cache, {snapshot}; the rest" in location(folder)


def test_the_foreseen_base_of_a_quantized_folder_is_the_16_bit_original_beside_it(
    small_model: Callable[..., Path], lora: Lora, tmp_path: Path
) -> None:
    quantized = quantized_copy(small_model("llama"), tmp_path / "tiny-bnb-4bit")
    folder = lora(str(quantized))

    alone = location(folder)
    shutil.copytree(small_model("llama"), tmp_path / "tiny")
    beside = location(folder)

    assert alone.startswith(f"the folder {quantized}, as it is: ")
    assert "no matching 16-bit original" in alone
    assert beside.startswith(
        f"the folder {tmp_path / 'tiny'}, the 16-bit original of {quantized} ("
    )
    assert f"--keep-base-quantized takes {quantized} itself" in beside


def test_a_recorded_path_in_a_cache_has_the_id_and_commit(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    snapshot = put(cache, "someone/tiny", small_model("llama"))

    base = find_base(open_adapter(lora(str(snapshot))), None, None, Silent())

    assert (base.model_id, base.revision) == ("someone/tiny", COMMIT)
    assert "someone/tiny" in base.reason


def test_a_folder_is_identified_by_its_configuration(
    small_model: Callable[..., Path], lora: Lora, tmp_path: Path
) -> None:
    folder = tmp_path / "copied"
    shutil.copytree(small_model("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_name_or_path": "someone/tiny"}))

    assert find_base(open_adapter(lora(str(folder))), None, None, Silent()).model_id == (
        "someone/tiny"
    )


def test_modelscope_is_asked_by_its_client(
    small_model: Callable[..., Path], lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []

    def snapshot_download(model_id: str, revision: str | None, **_: object) -> str:
        asked.append((model_id, revision))
        return str(small_model("llama"))

    client = SimpleNamespace(snapshot_download=snapshot_download, HubApi=Files())
    monkeypatch.setitem(sys.modules, "modelscope", client)

    base = find_base(open_adapter(lora("/gone")), "modelscope://someone/tiny", "v1", Silent())

    assert asked == [("someone/tiny", "v1")]
    assert (base.model_id, base.revision) == ("modelscope://someone/tiny", "v1")


def test_a_missing_modelscope_is_named_with_its_command(
    lora: Lora, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)

    with pytest.raises(ToolchainError) as error:
        find_base(open_adapter(lora("/gone")), "modelscope://someone/tiny", None, Silent())

    assert "pip install 'ftpack[modelscope]'" in error.value.next_step


def test_the_error_has_modelscopes_answer(lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise RuntimeError("404 not found")

    client = SimpleNamespace(snapshot_download=snapshot_download, HubApi=Files())
    monkeypatch.setitem(sys.modules, "modelscope", client)

    with pytest.raises(SourceNotFoundError, match="404 not found"):
        find_base(open_adapter(lora("/gone")), "modelscope://someone/tiny", None, Silent())
