"""Invalid combinations are refused, and valid ones are described for the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from packager.errors import UsageError
from packager.merge.merge_options import Combination
from tests.merge.compared import merge_folders


@pytest.mark.parametrize(
    ("method", "weights", "density", "adapters", "named"),
    [
        ("slerp", [], None, 2, "slerp"),
        ("linear", [1.0], None, 2, "1 times for 2 adapters"),
        ("linear", [], None, 1, "linear.*two.* for 1"),
        ("linear", [1.0, float("nan")], None, 2, "nan"),
        ("ties", [], None, 2, "not given"),
        ("dare_ties", [], 1.5, 2, "--density is 1.5"),
        ("cat", [], 0.5, 2, "--density is given.*cat"),
        (None, [1.0], None, 2, "--weight is given without --combine"),
        (None, [], 0.5, 2, "--density is given without --combine"),
    ],
)
def test_an_invalid_combination_is_refused(
    method: str | None, weights: list[float], density: float | None, adapters: int, named: str
) -> None:
    def parse() -> None:
        combination = Combination.parse(method, weights, density, 0)
        assert combination is not None
        combination.require_fits(adapters)

    with pytest.raises(UsageError, match=named) as caught:
        parse()
    assert caught.value.next_step


@pytest.mark.parametrize(
    ("combination", "text"),
    [
        (Combination("linear"), "linear, weights 1, 1"),
        (Combination("cat", (0.7, -0.4)), "cat, weights 0.7, -0.4"),
        (Combination("ties", (), 0.5, 7), "ties, weights 1, 1, density 0.5"),
        (Combination("dare_ties", (), 0.5, 7), "dare_ties, weights 1, 1, density 0.5, seed 7"),
    ],
)
def test_a_combination_is_described_for_the_manifest(combination: Combination, text: str) -> None:
    assert combination.describe(2) == text


def test_a_single_adapter_cannot_be_combined(two: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, first, _ = two

    with pytest.raises(UsageError, match="linear"):
        merge_folders(base, first, scratch=tmp_path, combination=Combination("linear"))
