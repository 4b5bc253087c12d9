"""The plan of a multimodal model counts both of its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from packager.package.plan import Plan, plan_of
from packager.package.prepare import prepare
from tests.requests import request_for
from tests.vision import VisionKind


@pytest.mark.slow
def test_the_plan_counts_the_text_model_and_the_mmproj(
    vision_model: Callable[[VisionKind], Path], tmp_path: Path
) -> None:
    model = vision_model("qwen3_vl")

    def planned(*, text_only: bool) -> Plan:
        request = request_for(model, ("Q8_0",), "multimodal", text_only=text_only)
        package = prepare(request, tmp_path)
        return plan_of(package, [file.typed for file in package.ggufs])

    whole, text = planned(text_only=False), planned(text_only=True)

    assert whole.projector is not None
    assert text.projector is None
    assert whole.write_bytes == text.write_bytes + whole.projector.size_bytes
    memory_bytes = whole.quants[0].run_memory_bytes - text.quants[0].run_memory_bytes
    assert memory_bytes == whole.projector.size_bytes
    assert whole.parameters > text.parameters
