"""`modelscope://ORG/NAME` is a source, and an adapter, as an id of the Hub is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.utils import filter_repo_objects

from packager.errors import SourceNotFoundError, ToolchainError
from packager.progress import Silent
from packager.source.adapter_folder import open_adapter
from packager.source.base.foresee import foresee_base
from packager.source.inputs import find_inputs
from packager.source.open import open_source
from packager.source.source_options import SourceOptions

Asked = list[tuple[str, str | None]]


class Files:
    """The part of a client that lists a repository's files."""

    def __init__(self, *names: str, is_logged_in: bool = False) -> None:
        self.names, self.is_logged_in = names, is_logged_in

    def __call__(self) -> Files:
        return self

    def get_model_files(
        self, model_id: str, *, use_cookies: bool = False, **_: object
    ) -> list[dict[str, object]]:
        if use_cookies and not self.is_logged_in:
            raise ValueError("Token does not exist, please login first.")
        return [{"Path": name} for name in self.names]


@pytest.fixture
def asked(
    small_model: Callable[..., Path],
    adapter: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Asked:
    """A client that has a full model and an adapter of it; what it was asked for."""
    asked: Asked = []

    def snapshot_download(model_id: str, revision: str | None, **_: object) -> str:
        asked.append((model_id, revision))
        folders = {"Org/Tuned-1B": small_model("llama"), "Org/lora": adapter("llama")}
        if model_id not in folders:
            raise RuntimeError(f"404 {model_id} not found")
        return str(folders[model_id])

    client = SimpleNamespace(snapshot_download=snapshot_download, HubApi=Files())
    monkeypatch.setitem(sys.modules, "modelscope", client)
    return asked


def test_a_full_model_is_a_source(asked: Asked, small_model: Callable[..., Path]) -> None:
    source = open_source("modelscope://Org/Tuned-1B", None, "v2", Silent())

    assert asked == [("Org/Tuned-1B", "v2")]
    assert source.model is not None
    assert source.folder == small_model("llama")
    assert (source.model_id, source.revision) == ("modelscope://Org/Tuned-1B", "v2")


def test_the_revision_of_an_adapter_does_not_apply_to_its_base(
    asked: Asked, small_model: Callable[..., Path]
) -> None:
    inputs = find_inputs(SourceOptions("modelscope://Org/lora", revision="v2"), Silent())

    # The revision is the adapter's: the recorded base is a folder here.
    assert asked == [("Org/lora", "v2")]
    assert inputs.source.adapter is not None
    assert inputs.model.folder == small_model("llama")


def test_adapters_are_added_to_a_full_model(asked: Asked, adapter: Callable[..., Path]) -> None:
    options = SourceOptions("modelscope://Org/Tuned-1B", adapters=("modelscope://Org/lora",))

    inputs = find_inputs(options, Silent())

    assert asked == [("Org/Tuned-1B", None), ("Org/lora", None)]
    assert [item.folder for item in inputs.adapters] == [adapter("llama")]
    assert inputs.base is not None
    assert inputs.base.model_id == "modelscope://Org/Tuned-1B"


def test_a_missing_client_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)

    with pytest.raises(ToolchainError) as error:
        open_source("modelscope://Org/lora", None, None, Silent())

    assert "pip install 'ftpack[modelscope]'" in error.value.next_step


@pytest.mark.parametrize(
    ("given", "said"),
    [("modelscope://Org/gone", "404 Org/gone"), ("modelscope://name", "not a ModelScope id")],
)
def test_what_is_not_there_is_refused_by_name(given: str, said: str, asked: Asked) -> None:
    with pytest.raises(SourceNotFoundError, match=said):
        open_source(given, None, None, Silent())


def test_a_recorded_base_is_foreseen(adapter: Callable[..., Path], tmp_path: Path) -> None:
    for path in adapter("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "modelscope://Org/Tuned-1B"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    assert "ModelScope" in foresee_base(open_adapter(tmp_path)).location


def test_the_list_of_files_decides_on_pickled_weights(
    adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    class HubApi(Files):
        def get_model_files(self, model_id: str, **options: object) -> list[dict[str, object]]:
            asked.append((model_id, options))
            return super().get_model_files(model_id)

    def snapshot_download(model_id: str, allow_patterns: list[str], **_: object) -> str:
        asked.append([name for name in allow_patterns if name.endswith(".bin")])
        return str(adapter("llama"))

    client = SimpleNamespace(
        snapshot_download=snapshot_download,
        HubApi=HubApi("adapter_config.json", "adapter_model.bin", "training_args.bin"),
    )
    monkeypatch.setitem(sys.modules, "modelscope", client)

    open_source("modelscope://Org/lora", None, "v2", Silent())

    assert asked == [
        ("Org/lora", {"revision": "v2", "recursive": True, "use_cookies": True}),
        ["adapter_model.bin"],
    ]


def test_a_checkpoint_is_fetched_by_itself(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [f"checkpoint-5/{path.name}" for path in adapter("llama").iterdir()]
    names = [*there, "checkpoint-9/adapter_config.json", "adapter_model.safetensors"]
    came: set[str] = set()

    def snapshot_download(model_id: str, allow_patterns: list[str], **_: object) -> str:
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            came.add(name)
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes((adapter("llama") / path.name).read_bytes())
        return str(tmp_path)

    client = SimpleNamespace(snapshot_download=snapshot_download, HubApi=Files(*names))
    monkeypatch.setitem(sys.modules, "modelscope", client)

    source = open_source("modelscope://Org/run", "5", None, Silent())

    assert source.folder == tmp_path / "checkpoint-5"
    assert came == {*there, "checkpoint-9/adapter_config.json"}
    with pytest.raises(SourceNotFoundError, match=r"'7'; .* 5, 9"):
        open_source("modelscope://Org/run", "7", None, Silent())
