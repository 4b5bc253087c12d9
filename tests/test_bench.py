"""The bench counts what a command and its children really do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.measure import Cost, measure

MIB = 1 << 20


def test_a_childs_memory_and_writes_are_counted(tmp_path: Path) -> None:
    target = tmp_path / "written"
    child = (
        "import time; data = memoryview(b'x' * (200 << 20)); "
        f"open({str(target)!r}, 'wb').write(data[: 50 << 20]); time.sleep(0.3)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    cost = measure([sys.executable, "-c", parent], tmp_path / "log")
    assert 200 * MIB <= cost.peak_own_bytes <= cost.peak_bytes < 300 * MIB
    assert 50 * MIB <= cost.written_bytes < 51 * MIB
    assert cost.wall_s > 0.3


def test_a_command_that_fails_shows_the_end_of_its_output(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of luck"):
        measure([sys.executable, "-c", "import sys; sys.exit('out of luck')"], tmp_path / "log")


def test_costs_of_steps_add_up_and_their_peaks_do_not() -> None:
    total = Cost(1, 2, 30, 3, 4, 5, 6) + Cost(10, 20, 7, 8, 40, 50, 60)
    assert total == Cost(11, 22, 30, 8, 44, 55, 66)
