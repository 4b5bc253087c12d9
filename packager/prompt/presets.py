"""Sampling settings that a model family's authors publish; written only on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from packager.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """Published sampling settings.

    Attributes:
        name: its name in `--preset`.
        model_types: the values of `model_type` (`config.json`) that it is for.
        parameters: the settings, under Ollama's names.
        source: where the authors published it.
    """

    name: str
    model_types: tuple[str, ...]
    parameters: Mapping[str, float | int]
    source: str

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.name} ({values}; {self.source})"


_QWEN3 = ("qwen3", "qwen3_moe")
_QWEN3_CARD = "model card of Qwen/Qwen3-8B, Best Practices"
PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "qwen3-thinking",
            _QWEN3,
            {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.0},
            _QWEN3_CARD,
        ),
        Preset(
            "qwen3-non-thinking",
            _QWEN3,
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0},
            _QWEN3_CARD,
        ),
        Preset(
            "smollm3",
            ("smollm3",),
            {"temperature": 0.6, "top_p": 0.95},
            "model card of HuggingFaceTB/SmolLM3-3B, How to use",
        ),
    )
}


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UsageError: with the names of all presets.
    """
    if name not in PRESETS:
        raise UsageError(
            f"There is no preset {name!r}.",
            next_step=f"Choose one of {', '.join(PRESETS)}, or set values with --param.",
        )
    return PRESETS[name]


def presets_for(config: Mapping[str, object]) -> tuple[Preset, ...]:
    """The presets for a model with this `config.json`."""
    return tuple(p for p in PRESETS.values() if config.get("model_type") in p.model_types)
