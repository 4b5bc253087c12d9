"""The usual three-step route, which ftpack must equal: merge with PEFT, convert, quantize.

Nothing here imports ftpack: the expected values of the tests come from these functions.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.vocabularies import import_gguf

_DESCRIBING_FILES = (
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
    """A tensor of a GGUF: its shape as GGUF has it (fastest first), type and data digest."""

    shape: tuple[int, ...]
    type_name: str
    sha256: str


def merge_with_peft(base: Path, adapter: Path, out: Path) -> Path:
    """`merge_and_unload` and `save_pretrained`; tokenizer files from the base, then the adapter.

    `tokenizer.model` comes from the base: a Trainer's folder does not have it.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
    for folder in (base, adapter):
        for name in _DESCRIBING_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
    return out


def convert_with_llama_cpp(folder: Path, out_gguf: Path, outtype: str, llama_cpp: Path) -> Path:
    """Runs `convert_hf_to_gguf.py`; `outtype` is its own: f32, f16, bf16, q8_0."""
    script = llama_cpp / "convert_hf_to_gguf.py"
    command = [sys.executable, script, folder, "--outfile", out_gguf, "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or not out_gguf.is_file():
        raise RuntimeError(f"convert_hf_to_gguf.py: {done.returncode}\n{done.stderr[-3000:]}")
    return out_gguf


def quantize_with_llama_cpp(in_gguf: Path, out_gguf: Path, quant: str, threads: int = 2) -> Path:
    """`llama_model_quantize` with nothing but its defaults; `quant` as in Q4_K_M or F16."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    # LLAMA_FTYPE_ALL_F32 is the one without MOSTLY
    params.ftype = getattr(
        llama_cpp, f"LLAMA_FTYPE_{'ALL' if quant == 'F32' else 'MOSTLY'}_{quant}"
    )
    params.nthread = threads
    code = llama_cpp.llama_model_quantize(str(in_gguf).encode(), str(out_gguf).encode(), params)
    if code:
        raise RuntimeError(f"llama_model_quantize: {code} for {quant}")
    return out_gguf


def read_gguf(path: Path, llama_cpp: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The key-values and the tensors of a GGUF, read by llama.cpp's own package."""
    reader = import_gguf(llama_cpp).GGUFReader(path)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: Tensor(
            tuple(int(size) for size in tensor.shape),
            tensor.tensor_type.name,
            hashlib.sha256(tensor.data.tobytes()).hexdigest(),
        )
        for tensor in reader.tensors
    }
    return values, tensors
