"""Several adapters from the outside: files, manifest, refusals before anything is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from packager.bundle.bundle import read_bundle
from packager.errors import NotAModelError, UsageError
from packager.model.checkpoint import FolderCheckpoint
from packager.package.plan import Request
from packager.package.prepare import prepare
from packager.progress import Silent
from packager.source.inputs import find_inputs
from packager.verbs.build import build
from packager.verbs.merge import merge
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, make_base, merge_with_peft
from tests.reports import Reports


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    base = make_base("biased", tmp_path / "base")
    first = make_adapter(base, "biased", METHODS["lora"], tmp_path / "first")
    second = make_adapter(base, "biased", METHODS["loha"], tmp_path / "second")
    return base, first, second


def test_merge_takes_adapters_in_their_order(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, second = two
    step = merge_with_peft(base, "biased", first, tmp_path / "step")
    wanted = merge_with_peft(step, "biased", second, tmp_path / "peft")

    merge(Request(str(first), adapters=(str(second),)), tmp_path / "merged", Silent())

    files = [path / "model.safetensors" for path in (tmp_path / "merged", wanted)]
    found, usual = (FolderCheckpoint(path.parent) for path in files)
    assert found.tensors.keys() == usual.tensors.keys()
    assert all(found.load(name).equal(usual.load(name)) for name in usual.tensors)


def test_adapters_are_merged_onto_a_full_model(
    two: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    base, first, _ = two
    wanted = FolderCheckpoint(merge_with_peft(base, "biased", first, tmp_path / "peft"))

    merge(Request(str(base), adapters=(str(first),)), tmp_path / "merged", Silent())

    found = FolderCheckpoint(tmp_path / "merged")
    assert all(found.load(name).equal(wanted.load(name)) for name in wanted.tensors)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"weights": (1.0, 2.0)}, "--weight is given without --combine"),
        ({"density": 0.5}, "--density is given without --combine"),
        ({"combine": "slerp"}, "none of PEFT's ways"),
        ({"combine": "linear", "weights": (1.0,)}, "1 times for 2 adapters"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], named: str, two: tuple[Path, Path, Path]
) -> None:
    _, first, second = two
    request = replace(Request(str(first), adapters=(str(second),)), **options)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match=named) as caught:
        find_inputs(request, Silent())
    assert caught.value.next_step


def test_a_full_model_is_no_further_adapter(two: tuple[Path, Path, Path]) -> None:
    base, first, _ = two

    with pytest.raises(NotAModelError, match="no adapter"):
        find_inputs(Request(str(first), adapters=(str(base),)), Silent())


def test_a_base_beside_a_full_model_is_refused(two: tuple[Path, Path, Path]) -> None:
    base, first, _ = two

    with pytest.raises(UsageError, match="full model"):
        find_inputs(Request(str(base), adapters=(str(first),), base=str(base)), Silent())


def test_the_manifest_names_every_adapter_and_how_they_were_combined(
    adapter: Callable[..., Path], tmp_path: Path
) -> None:
    first = adapter("llama")
    second = shutil.copytree(first, tmp_path / "second")
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 5}))

    request = Request(
        str(first), adapters=(str(second),), quants=("Q8_0",), name="m", out=tmp_path / "turn"
    )
    in_turn = prepare(request)
    combined = prepare(
        replace(request, combine="cat", weights=(1.0, 0.5), out=tmp_path / "combined")
    )
    swapped = prepare(replace(request, source=str(second), adapters=(str(first),)))
    build(in_turn)
    build(combined)

    manifests = [read_bundle(tmp_path / name) for name in ("turn", "combined")]
    assert [[item.name for item in found.adapters] for found in manifests] == 2 * [
        [first.name, "second"]
    ]
    assert [found.combination for found in manifests] == [None, "cat, weights 1, 0.5"]
    assert manifests[0].ggufs[0].sha256 != manifests[1].ggufs[0].sha256
    fingerprints = {item.fingerprint for item in (in_turn, combined, swapped)}
    assert len(fingerprints) == 3


@pytest.mark.parametrize(("second", "is_warned_of"), [("first", True), ("copy", True),
                                                      ("second", False)])  # fmt: skip
def test_an_adapter_that_is_named_twice_is_warned_of(
    second: str, is_warned_of: bool, two: tuple[Path, Path, Path]
) -> None:
    _, first, _ = two
    shutil.copytree(first, first.with_name("copy"))
    reports = Reports()

    find_inputs(Request(str(first), adapters=(str(first.with_name(second)),)), reports)

    assert any("very weights" in warning for warning in reports.warnings) == is_warned_of
