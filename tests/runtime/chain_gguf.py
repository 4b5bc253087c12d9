"""A GGUF that can be computed by hand: a Llama whose next token depends only on the last one.

Its block adds nothing (the output projections are zero), the embeddings are one-hot, and the output
matrix is a table of which token follows which. After a newline the model says `ANSWER` and then the
end-of-sequence token; after anything else it ends at once. The vocabulary is a SentencePiece one of
single bytes. The file is written from the format's specification.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

ANSWER = "ahoy!"
CHAT_TEMPLATE = (
    "{#" + "~" * 100 + "#}\n"
    "{%- for message in messages %}<|{{ message['role'] }}|>\n"
    "{{ message['content'] | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

_WIDTH = 512
_HEADS = 8
_BOS, _EOS, _FIRST_BYTE = 1, 2, 3
_TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
# Token types of the format: 2 unknown, 3 control, 6 byte.
_TOKEN_TYPES = [2, 3, 3, *([6] * 256)]
_ALIGNMENT = 32
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5


class _Typed:
    """A number with the type that the file gives it."""

    def __init__(self, kind: int, code: str, value: float | bool) -> None:
        self.kind = kind
        self.data = struct.pack("<" + code, value)


def write_chain_gguf(
    path: Path,
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    tool_use: str | None = None,
    architecture: str = "llama",
    bos: str = "<s>",
    eos: str = "</s>",
    adds_bos: bool = True,
    end_as: str | None = "eos",
) -> Path:
    """Write the model; the same arguments give the same bytes.

    `end_as` names the metadata key of the id that ends an answer (`eos`, `eot`, `eom`). With None,
    no key has the id of the end token, so the model repeats it without end.
    """
    tensors = _tensors()
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), 0)
    values = dict(_key_values(architecture, chat_template))
    values["tokenizer.ggml.tokens"] = ["<unk>", bos, eos, *_TOKENS[_FIRST_BYTE:]]
    values["tokenizer.ggml.add_bos_token"] = _Typed(_BOOL, "?", adds_bos)
    if end_as != "eos":
        values["tokenizer.ggml.eos_token_id"] = _Typed(_U32, "I", _FIRST_BYTE)
    if end_as not in ("eos", None):
        values[f"tokenizer.ggml.{end_as}_token_id"] = _Typed(_U32, "I", _EOS)
    if tool_use is not None:
        values["tokenizer.chat_templates"] = ["tool_use"]
        values["tokenizer.chat_template.tool_use"] = tool_use
    header = header[:-8] + struct.pack("<Q", len(values))
    for key, value in values.items():
        header += _string(key) + _value(value)
    data = b""
    for name, tensor in tensors.items():
        header += _string(name) + struct.pack("<I", tensor.ndim)
        # Dimensions go from the fastest to the slowest; type 0 is F32.
        header += struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        header += struct.pack("<IQ", 0, len(data))
        data += _padded(tensor.tobytes())
    path.write_bytes(_padded(header) + data)
    return path


def _tensors() -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    vocabulary = len(_TOKENS)
    embeddings = np.eye(vocabulary, _WIDTH, dtype=np.float32)
    output = np.zeros((vocabulary, _WIDTH), dtype=np.float32)
    following = dict.fromkeys(range(vocabulary), _EOS)
    chain = [_FIRST_BYTE + byte for byte in b"\n" + ANSWER.encode()]
    following.update(zip(chain, [*chain[1:], _EOS], strict=True))
    for token, successor in following.items():
        output[successor, token] = 1.0
    square = np.zeros((_WIDTH, _WIDTH), dtype=np.float32)
    ones = np.ones(_WIDTH, dtype=np.float32)
    return {
        "token_embd.weight": embeddings,
        "blk.0.attn_norm.weight": ones,
        **{f"blk.0.attn_{part}.weight": square for part in ("q", "k", "v", "output")},
        "blk.0.ffn_norm.weight": ones,
        **{f"blk.0.ffn_{part}.weight": square for part in ("gate", "up", "down")},
        "output_norm.weight": ones,
        "output.weight": output,
    }


def _key_values(architecture: str, chat_template: str | None) -> Mapping[str, object]:
    sizes = {
        "block_count": 1,
        "context_length": 32768,
        "embedding_length": _WIDTH,
        "feed_forward_length": _WIDTH,
        "vocab_size": len(_TOKENS),
        "rope.dimension_count": _WIDTH // _HEADS,
        "attention.head_count": _HEADS,
    }
    values: dict[str, object] = {
        "general.architecture": architecture,
        "general.name": "chain",
        "general.file_type": _Typed(_U32, "I", 0),
        **{f"{architecture}.{key}": _Typed(_U32, "I", value) for key, value in sizes.items()},
        f"{architecture}.attention.layer_norm_rms_epsilon": _Typed(_F32, "f", 1e-5),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": _TOKENS,
        "tokenizer.ggml.scores": [0.0] * len(_TOKENS),
        "tokenizer.ggml.token_type": _TOKEN_TYPES,
        "tokenizer.ggml.bos_token_id": _Typed(_U32, "I", _BOS),
        "tokenizer.ggml.eos_token_id": _Typed(_U32, "I", _EOS),
        "tokenizer.ggml.add_bos_token": _Typed(_BOOL, "?", True),
        "tokenizer.ggml.add_space_prefix": _Typed(_BOOL, "?", False),
    }
    if chat_template is not None:
        values["tokenizer.chat_template"] = chat_template
    return values


def _value(value: object) -> bytes:
    if isinstance(value, _Typed):
        return struct.pack("<I", value.kind) + value.data
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    assert isinstance(value, list)
    return struct.pack("<I", _ARRAY) + _array(value)


def _array(items: Sequence[str | float | int]) -> bytes:
    if isinstance(items[0], str):
        kind, data = _STRING, b"".join(_string(str(item)) for item in items)
    elif isinstance(items[0], float):
        kind, data = _F32, struct.pack(f"<{len(items)}f", *items)
    else:
        kind, data = _I32, struct.pack(f"<{len(items)}i", *items)
    return struct.pack("<IQ", kind, len(items)) + data


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % _ALIGNMENT)
