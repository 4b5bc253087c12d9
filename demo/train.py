"""Trains the demo's LoRA on the CPU in a minute or two.

The loss covers the answers only, including the end-of-turn marker, so that the tuned model ends its
turn.

    python -m demo.train --base FOLDER --out demo-output/lora
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from demo.questions import Example, read_examples

if TYPE_CHECKING:
    import torch

CHAT_TEMPLATE_FILE = Path(__file__).parent / "chat_template.jinja"
BATCH_SIZE = 6
LEARNING_RATE = 5e-4
EPOCHS = 3
# On a busy machine training stops here, and the adapter keeps what it has learnt so far.
TIME_LIMIT_S = 150
# Every eighth example is held out; the loss on these shows what the model really learnt.
HELD_OUT_EVERY = 8


class Encoded(NamedTuple):
    """A conversation's token ids; the answer begins at `answer_start`."""

    ids: list[int]
    answer_start: int


def train(base: Path, out: Path) -> None:
    """Trains, and writes the adapter, the tokenizer and the chat template to `out`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    # transformers warns about a name that it uses itself.
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT_TEMPLATE_FILE.read_text("utf-8")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=_fast_dtype())
    tuned = get_peft_model(
        model,
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    examples = [_encode(tokenizer, example) for example in read_examples()]
    held_out = examples[::HELD_OUT_EVERY]
    _fit(tuned, [example for example in examples if example not in held_out], held_out)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    tuned.peft_config["default"].base_model_name_or_path = str(base)
    tuned.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _encode(tokenizer: Any, example: Example) -> Encoded:
    question = [{"role": "user", "content": example.question}]
    answer = [{"role": "assistant", "content": example.answer}]
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    conversation = tokenizer.apply_chat_template([*question, *answer], tokenize=False)
    # The chat template writes the BOS itself.
    ids, prompt_ids = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (conversation, prompt)
    )
    return Encoded(ids, len(prompt_ids))


def _fast_dtype() -> torch.dtype:
    """Returns bf16 if the CPU multiplies in it (3 times as fast), else fp32; the LoRA is fp32."""
    import torch

    has_bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def _fit(tuned: Any, examples: list[Encoded], held_out: list[Encoded]) -> None:
    import torch

    parameters = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)
    order = random.Random(0)
    batches: list[list[Encoded]] = []
    for _ in range(EPOCHS):
        order.shuffle(examples)
        batches += [examples[i : i + BATCH_SIZE] for i in range(0, len(examples), BATCH_SIZE)]
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=len(batches))
    started = time.monotonic()
    before = _held_out_loss(tuned, held_out)
    for step, batch in enumerate(batches, start=1):
        loss = _answer_loss(tuned, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
        elapsed_s = time.monotonic() - started
        if step % 5 == 0:
            _say(f"step {step} of {len(batches)}, loss {loss.item():.2f}, {elapsed_s:.0f} s")
        if elapsed_s > TIME_LIMIT_S:
            _say(f"stopped after step {step} of {len(batches)}: {elapsed_s:.0f} s have passed")
            break
    after = _held_out_loss(tuned, held_out)
    _say(f"loss on {len(held_out)} held-out questions: {before:.2f} before, {after:.2f} after")


def _held_out_loss(tuned: Any, held_out: list[Encoded]) -> float:
    import torch

    with torch.no_grad():
        return float(_answer_loss(tuned, held_out))


def _say(text: str) -> None:
    print(f"train: {text}", file=sys.stderr, flush=True)


def _answer_loss(tuned: Any, batch: list[Encoded]) -> torch.Tensor:
    """Returns the cross-entropy of the answers' tokens.

    Only their logits are computed: with 262144 tokens, logits cost more than the layers.
    """
    import torch

    length = max(len(example.ids) for example in batch)
    ids = torch.tensor([example.ids + [0] * (length - len(example.ids)) for example in batch])
    positions = torch.arange(length)
    ends = torch.tensor([[len(example.ids)] for example in batch])
    starts = torch.tensor([[example.answer_start] for example in batch])
    model = tuned.get_base_model()
    hidden = model.model(input_ids=ids, attention_mask=(positions < ends).long())[0]
    is_answer = (positions >= starts) & (positions < ends)
    logits = model.lm_head(hidden[:, :-1][is_answer[:, 1:]])
    return torch.nn.functional.cross_entropy(logits, ids[is_answer])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    # Waiting threads should sleep: on a busy machine, spinning makes the work ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    train(options.base, options.out)
    print(options.out)


if __name__ == "__main__":
    main()
