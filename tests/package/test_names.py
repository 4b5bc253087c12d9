"""A model without a name gets one from its source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from packager.package.names import model_name
from packager.progress import Silent
from packager.source.open import open_source


def test_an_id_gives_the_name(small_model: Callable[..., Path]) -> None:
    source = open_source(str(small_model("llama")), None, None, Silent())

    assert model_name(replace(source, model_id="modelscope://Org/Tuned-1B")) == "tuned-1b"
