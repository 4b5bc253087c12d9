"""The memory that a runtime needs for a GGUF."""

from __future__ import annotations

from collections.abc import Mapping

# The context that Ollama gives a model which asks for none, on a machine without a large GPU.
DEFAULT_CONTEXT = 4096


def estimate_run_memory(
    size_bytes: int, metadata: Mapping[str, object], context_length: int = DEFAULT_CONTEXT
) -> int:
    """The bytes of a GGUF's weights, and of fp16 keys and values for a context.

    Args:
        size_bytes: the weights' size.
        metadata: the GGUF's values by key (`Conversion.metadata`).
        context_length: in tokens.
    """

    def number(suffix: str, default: int = 0) -> int:
        value = next((v for k, v in metadata.items() if k.endswith(suffix)), default)
        if isinstance(value, list):
            value = max(value, default=default)
        return value if isinstance(value, int) else default

    heads = number(".attention.head_count", 1)
    head_size = number(".embedding_length") // max(1, heads)
    width = number(".attention.key_length", head_size) + number(
        ".attention.value_length", head_size
    )
    cache_heads = number(".attention.head_count_kv", heads)
    return size_bytes + 2 * context_length * number(".block_count") * cache_heads * width
