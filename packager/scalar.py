"""A number, a text or a truth value: of a parameter of Ollama, or of a manifest."""

from __future__ import annotations

Scalar = int | float | str | bool
