"""Several adapters as inputs: options that do not fit are refused, the same weights warned of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from packager.errors import NotAModelError, UsageError
from packager.merge.merge_options import Combination
from packager.package.prepare import open_inputs
from packager.progress import Silent
from packager.source.inputs import find_inputs
from packager.source.source_options import SourceOptions
from tests.merge.methods import METHODS
from tests.merge.tiny import make_adapter, make_base
from tests.reports import Reports
from tests.requests import request_for


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, and a LoRA and a LoHa for it."""
    base = make_base("biased", tmp_path / "base")
    first = make_adapter(base, "biased", METHODS["lora"], tmp_path / "first")
    second = make_adapter(base, "biased", METHODS["loha"], tmp_path / "second")
    return base, first, second


def options_for(source: Path, *adapters: Path, base: Path | None = None) -> SourceOptions:
    return SourceOptions(
        str(source), adapters=tuple(map(str, adapters)), base=None if base is None else str(base)
    )


def test_a_weight_for_each_adapter_is_required(two: tuple[Path, Path, Path]) -> None:
    _, first, second = two
    request = request_for(first, adapters=(second,), combine="linear", weights=(1.0,))

    with pytest.raises(UsageError, match=r"--weight .* 1 .* 2 adapters") as caught:
        open_inputs(request, Silent())
    assert caught.value.next_step


def test_the_adapters_are_counted_before_a_base_is_looked_for(
    two: tuple[Path, Path, Path],
) -> None:
    base, first, second = two
    combination = Combination("linear", (1.0,))
    shutil.rmtree(base)

    with pytest.raises(UsageError, match=r"--weight .* 1 .* 2 adapters"):
        find_inputs(options_for(first, second), Silent(), check_adapters=combination.require_fits)


def test_a_full_model_is_not_a_further_adapter(two: tuple[Path, Path, Path]) -> None:
    base, first, _ = two

    with pytest.raises(NotAModelError, match=f"--adapter {base}"):
        find_inputs(options_for(first, base), Silent())


def test_a_base_beside_a_full_model_is_refused(two: tuple[Path, Path, Path]) -> None:
    base, first, _ = two

    with pytest.raises(UsageError, match=rf"--base {base}.*SOURCE {base}.*full model"):
        find_inputs(options_for(base, first, base=base), Silent())


@pytest.mark.parametrize(
    ("second", "is_reported"), [("first", True), ("copy", True), ("second", False)]
)
def test_a_warning_names_two_adapters_with_the_same_weights(
    second: str, is_reported: bool, two: tuple[Path, Path, Path]
) -> None:
    _, first, _ = two
    shutil.copytree(first, first.with_name("copy"))
    other = first.with_name(second)
    reports = Reports()

    find_inputs(options_for(first, other), reports)

    is_named = [str(first) in line and str(other) in line for line in reports.warnings]
    assert any("same weights" in line for line in reports.warnings) == is_reported
    assert any(is_named) == is_reported
