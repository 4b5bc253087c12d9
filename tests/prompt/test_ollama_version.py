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
