"""The usual route, whose bytes ftpack must equal: merge with PEFT, convert, quantize.

Nothing here imports ftpack: the expected values of the tests come from these functions.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from testing.vocabularies import import_gguf

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


class Tensor(NamedTuple):
    """A tensor of a GGUF: shape in GGUF's order (fastest first), type, and the data's digest."""

    shape: tuple[int, ...]
    type_name: str
    sha256: str


def merge_with_peft(base: Path, adapter: Path, out: Path) -> Path:
    """Runs `merge_and_unload` and `save_pretrained`; returns `out`.

    The tokenizer files come from the base and then, where it has them, from the adapter.
    `tokenizer.model` comes from the base, because a Trainer's output does not contain it.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    for folder in (base, adapter):
        for name in _TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
    return out


def convert_with_llama_cpp(
    folder: Path, out_gguf: Path, outtype: str, llama_cpp: Path, *options: str
) -> Path:
    """Runs `convert_hf_to_gguf.py`; returns `out_gguf`.

    `outtype` is the script's own option: f32, f16, bf16 or q8_0.
    """
    script = llama_cpp / "convert_hf_to_gguf.py"
    command = [
        sys.executable, script, folder, "--outfile", out_gguf, "--outtype", outtype, *options
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not out_gguf.is_file():
        raise RuntimeError(f"convert_hf_to_gguf.py: {done.returncode}\n{done.stderr[-3000:]}")
    return out_gguf


def quantize_with_llama_cpp(in_gguf: Path, out_gguf: Path, quant: str, threads: int = 2) -> Path:
    """Runs `llama_model_quantize` with its defaults; returns `out_gguf`.

    `quant` is llama.cpp's name, such as Q4_K_M or F16.
    """
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    # LLAMA_FTYPE_ALL_F32 is the only constant without MOSTLY in its name.
    params.ftype = getattr(
        llama_cpp, f"LLAMA_FTYPE_{'ALL' if quant == 'F32' else 'MOSTLY'}_{quant}"
    )
    params.nthread = threads
    code = llama_cpp.llama_model_quantize(str(in_gguf).encode(), str(out_gguf).encode(), params)
    if code:
        raise RuntimeError(f"llama_model_quantize: {code} for {quant}")
    return out_gguf


# GGUF's scalar value types (docs/gguf.md of ggml), as `struct` names them.
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


class _Header:
    """Reads a GGUF's header by hand; gguf-py's reader takes ten seconds for a vocabulary."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        size = self.take("Q")
        self.at += size
        return str(self.data[self.at - size : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])
        item, count, start = self.take("I"), self.take("Q"), self.at
        if item == _STRING:
            for _ in range(count):
                self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
        else:
            self.at += count * struct.calcsize(f"<{_SCALARS[item]}")
        digest = hashlib.sha256(self.data[start : self.at]).hexdigest()
        return f"{count} values of type {item}, sha256 {digest}"


def read_gguf(path: Path, llama_cpp: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the key-values (arrays as a digest) and the tensors of a GGUF of version 3."""
    gguf = import_gguf(llama_cpp)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        values, places = _read_header(view, gguf)
        tensors = {
            name: Tensor(shape, kind.name, hashlib.sha256(view[begin:end]).hexdigest())
            for name, shape, kind, begin, end in places
        }
        view.release()
    return values, tensors


def read_weights(path: Path, llama_cpp: Path) -> dict[str, Any]:
    """Returns a GGUF's tensors, dequantized by gguf-py: fp32 arrays, outermost dimension first."""
    import numpy as np

    gguf = import_gguf(llama_cpp)
    data = path.read_bytes()
    with memoryview(data) as view:
        _, places = _read_header(view, gguf)
    return {
        name: gguf.quants.dequantize(
            np.frombuffer(data[begin:end], np.uint8).reshape(*shape[:0:-1], -1), kind
        )
        for name, shape, kind, begin, end in places
    }


def _read_header(view: memoryview, gguf: Any) -> tuple[dict[str, Any], list[Any]]:
    """Returns the key-values, and for each tensor its name, shape, type, and its data's range."""
    header = _Header(view)
    assert header.take("I") == int.from_bytes(b"GGUF", "little")
    assert header.take("I") == 3
    tensor_count, value_count = header.take("Q"), header.take("Q")
    values = {header.string(): header.value(header.take("I")) for _ in range(value_count)}
    entries = []
    for _ in range(tensor_count):
        name = header.string()
        shape = tuple(header.take("Q") for _ in range(header.take("I")))
        entries.append((name, shape, header.take("I"), header.take("Q")))
    start = -(-header.at // 32) * 32
    places = []
    for name, shape, type_id, offset in entries:
        kind = gguf.GGMLQuantizationType(type_id)
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        begin = start + offset
        places.append((name, shape, kind, begin, begin + math.prod(shape) // block * block_bytes))
    return values, places
