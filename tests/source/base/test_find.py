"""Where a base comes from, who it is, and what is offered where it is gone."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from packager.package.fingerprint import base_identity

from packager.errors import BaseNotFoundError, SourceNotFoundError, ToolchainError
from packager.model.adapter import Adapter
from packager.progress import Silent
from packager.source.adapter_folder import open_adapter
from packager.source.base.find import find_base
from packager.source.hub.identity import cached_identity
from packager.source.inputs import Inputs
from packager.source.open import open_source
from packager.verbs.inspect import inspect
from tests.source.base.test_full_precision import quantized_copy
from tests.source.hub.fake_hub import Hub, hub
from tests.source.hub.test_modelscope import Files

__all__ = ["hub"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Lora = Callable[[str], Path]


@pytest.fixture
def lora(adapter: Callable[..., Path], tmp_path: Path) -> Lora:
    """A LoRA for the small Llama, which names the base that it is told to."""

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


def refusal(opened: Adapter) -> BaseNotFoundError:
    with pytest.raises(BaseNotFoundError) as error:
        find_base(opened, None, None, Silent())
    return error.value


def test_what_fits_a_base_that_is_gone_is_offered_and_not_taken(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    put(cache, "someone/other", small_model("llama", hidden_size=192))
    put(cache, "someone/twin", small_model("llama"))

    error = refusal(open_adapter(lora("/mnt/trainer/models/base")))

    assert "someone/twin (its shapes fit)" in error.message
    assert "someone/other" not in error.message
    assert "--base someone/twin" in error.next_step


def test_the_namesake_is_offered_first(
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
         ("Qwen/Qwen3-0.6B", COMMIT)),
        ("C:\\cache\\models--gpt2\\snapshots\\main", ("gpt2", None)),
        ("/home/someone/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B-Instruct",
         ("Qwen/Qwen2.5-7B-Instruct", None)),
        ("/home/someone/.cache/modelscope/hub/LLM-Research/Meta-Llama-3-8B",
         ("LLM-Research/Meta-Llama-3-8B", None)),
        ("/data/models/llama", None),
    ],
)  # fmt: skip
def test_a_caches_path_tells_the_id(path: str, identity: tuple[str, str | None] | None) -> None:
    assert cached_identity(path) == identity


def test_a_cache_of_the_training_machine_is_read_as_an_id(lora: Lora, cache: Path) -> None:
    gone = f"/home/trainer/.cache/huggingface/hub/models--a--b/snapshots/{COMMIT}"

    assert "--base a/b" in refusal(open_adapter(lora(gone))).next_step


def test_what_the_run_was_configured_with_is_offered(lora: Lora, cache: Path) -> None:
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
    ("value", "said"), [(None, "is null"), ("", 'is ""'), (5, "is 5"), (..., "is missing")]
)
def test_where_no_base_is_recorded_the_value_is_told_and_what_fits_is_offered(
    value: object, said: str, small_model: Callable[..., Path], lora: Lora, cache: Path
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

    assert f"adapter_config.json records no base (`base_model_name_or_path` {said})" in (
        error.message
    )
    assert "someone/tiny (named in training_args.yaml)" in error.message
    assert "someone/twin (its shapes fit)" in error.message
    assert "--base someone/tiny" in error.next_step
    assert "someone/twin (its shapes fit)" in str(
        inspect(str(folder), None, None, Silent())["base found"]
    )


# From the working directory, `Tiny-1B` is the recorded path itself.
@pytest.mark.parametrize(
    ("recorded", "place"),
    [
        ("Tiny-1B", "runs"), ("Tiny-1B", "."),
        ("models/Tiny-1B", "runs"), ("models/Tiny-1B", "."), ("models/Tiny-1B", "work"),
        ("./out/models/Tiny-1B", "runs"), ("./out/models/Tiny-1B", "work"),
    ],
)  # fmt: skip
def test_a_relative_path_of_training_is_offered_and_nothing_is_downloaded_for_it(
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


def test_inspect_offers_the_folder_that_a_relative_path_may_mean(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    shutil.copytree(small_model("llama"), tmp_path / "Tiny-1B")

    found = str(inspect(str(lora("Tiny-1B")), None, None, Silent())["base found"])

    assert found.startswith("no: neither a folder here nor a Hub id with an owner; name it")
    assert f"if it is one of: {tmp_path / 'Tiny-1B'} (its shapes fit" in found


def test_the_recorded_path_as_a_project_has_it_is_found_above_the_adapter(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    model = tmp_path / "models" / "llama" / "Tiny-1B"
    shutil.copytree(small_model("llama"), model)

    assert f"--base {model}" in refusal(open_adapter(lora("models/llama/Tiny-1B"))).next_step


def test_an_id_without_an_owner_is_asked_for_where_no_such_folder_fits(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    hub.put_folder("tiny", small_model("llama"))
    shutil.copytree(small_model("llama", hidden_size=192), tmp_path / "runs" / "tiny")

    assert find_base(open_adapter(lora("tiny")), None, None, Silent()).model_id == "tiny"


def test_an_id_without_an_owner_that_is_asked_for_is_the_hubs(
    small_model: Callable[..., Path], lora: Lora, hub: Hub, tmp_path: Path
) -> None:
    hub.put_folder("tiny", small_model("llama"))
    shutil.copytree(small_model("llama"), tmp_path / "runs" / "tiny")

    assert find_base(open_adapter(lora("/gone")), "tiny", None, Silent()).model_id == "tiny"


def test_inspect_finds_a_base_as_packaging_does_from_the_adapters_folder(
    small_model: Callable[..., Path], lora: Lora, tmp_path: Path
) -> None:
    shutil.copytree(small_model("llama"), tmp_path / "runs" / "tiny")
    folder = lora("../tiny")

    base = find_base(open_adapter(folder), None, None, Silent())
    found = inspect(str(folder), None, None, Silent())

    assert found["base found"] == f"the folder {folder / '../tiny'}"
    assert base.checkpoint.folder == folder / "../tiny"


def test_inspect_tells_of_the_twin_of_a_quantized_id(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    folder = lora("un/m-unsloth-bnb-4bit")

    found = str(inspect(str(folder), None, None, Silent())["base found"])

    assert "its 16-bit twin un/m is taken if it can be had and fits: not here" in found
    assert "--keep-base-quantized takes un/m-unsloth-bnb-4bit itself: not here" in found

    snapshot = put(cache, "un/m", small_model("llama"))
    found = str(inspect(str(folder), None, None, Silent())["base found"])
    assert f"fits: in the Hugging Face cache, {snapshot} (" in found

    (snapshot / "model.safetensors").unlink()
    found = str(inspect(str(folder), None, None, Silent())["base found"])
    assert f"partly in the Hugging Face cache, {snapshot}; the rest will be downloaded" in found


def test_inspect_tells_of_the_twin_beside_a_quantized_folder(
    small_model: Callable[..., Path], lora: Lora, tmp_path: Path
) -> None:
    quantized = quantized_copy(small_model("llama"), tmp_path / "tiny-bnb-4bit")
    folder = lora(str(quantized))

    alone = str(inspect(str(folder), None, None, Silent())["base found"])
    shutil.copytree(small_model("llama"), tmp_path / "tiny")
    beside = str(inspect(str(folder), None, None, Silent())["base found"])

    assert alone == f"the folder {quantized}, as it is: no 16-bit twin that fits is beside it"
    assert beside.startswith(f"the folder {tmp_path / 'tiny'}, the 16-bit twin of {quantized} (")
    assert f"--keep-base-quantized takes {quantized} itself" in beside


def test_the_manifest_has_the_true_base_where_a_path_is_recorded(
    small_model: Callable[..., Path], lora: Lora, cache: Path
) -> None:
    snapshot = put(cache, "someone/tiny", small_model("llama"))
    source = open_source(str(lora(str(snapshot))), None, None, Silent())
    assert source.adapter is not None

    base = find_base(source.adapter, None, None, Silent())
    identity = base_identity(Inputs(source, (), base, None, {}, {}))

    assert (identity.id, identity.revision) == ("someone/tiny", COMMIT)
    assert "which is someone/tiny" in base.reason
    config, weights = snapshot / "config.json", snapshot / "model.safetensors"
    header_bytes = int.from_bytes(weights.read_bytes()[:8], "little")
    assert identity.config_sha256 == hashlib.sha256(config.read_bytes()).hexdigest()
    header = weights.read_bytes()[: 8 + header_bytes]
    assert identity.index_sha256 == hashlib.sha256(header).hexdigest()


def test_a_folder_is_who_its_config_says(
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


def test_what_modelscope_answers_is_told(lora: Lora, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        raise RuntimeError("404 not found")

    client = SimpleNamespace(snapshot_download=snapshot_download, HubApi=Files())
    monkeypatch.setitem(sys.modules, "modelscope", client)

    with pytest.raises(SourceNotFoundError, match="404 not found"):
        find_base(open_adapter(lora("/gone")), "modelscope://someone/tiny", None, Silent())
