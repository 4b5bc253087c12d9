"""A version of Ollama is read from what a user or a server writes."""

from __future__ import annotations

import pytest

from packager.errors import UsageError
from packager.prompt.ollama_version import OllamaVersion


def test_a_text_that_is_not_a_version_is_refused() -> None:
    with pytest.raises(UsageError, match="'newest'") as error:
        OllamaVersion.parse("newest")

    assert error.value.exit_code == 2
    assert error.value.next_step


@pytest.mark.parametrize(
    ("text", "can_be_native"),
    [("0.29.9", False), ("0.30.0-rc1", True), ("1.0", True), ("0.0.0", True), ("main", True)],
)
def test_a_server_from_0_30_on_or_built_from_source_can_render_natively(
    text: str, can_be_native: bool
) -> None:
    assert OllamaVersion.of_server(text).can_be_native is can_be_native
