"""Goes from nothing to a fine-tuned model that answers in Ollama; `scripts/demo` runs this.

It makes the base model, trains a LoRA, packages both with `ftpack`, and asks them the same
questions. Training and the base are skipped if their results exist; without an Ollama the bundles
answer through `ftpack run`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from demo.ask import show_answers
from demo.make_base import make_base
from demo.server import ollama_server
from demo.train import CHAT_TEMPLATE_FILE

OUTPUT = Path("demo-output")
QUANT = "q5_k_m"
NAME = "ftpack-demo"


def main() -> None:
    """Runs the demo in the current folder, the project's root."""
    # Waiting threads should sleep: on a busy machine, spinning makes the work ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    started = time.monotonic()
    base = make_base()
    _say(f"base: {base} (its use is subject to Gemma's terms; see GEMMA_TERMS.html there)")
    adapter = OUTPUT / "lora"
    if not (adapter / "adapter_model.safetensors").is_file():
        _run([sys.executable, "-m", "demo.train", "--base", str(base), "--out", str(adapter)])
    with ollama_server(OUTPUT / "ollama") as host:
        _package([str(adapter), "--base", str(base)], NAME, host)
        _package([str(base), "--template", str(CHAT_TEMPLATE_FILE)], f"{NAME}-base", host)
        models = [name if host else str(OUTPUT / name) for name in (f"{NAME}-base", NAME)]
        show_answers(models[0], models[1], host)
    _say(f"done in {time.monotonic() - started:.0f} s; the results are in {OUTPUT}/")
    _say(f'ask another question: {_ftpack()} run {OUTPUT / NAME} "Who built the pyramids?"')


def _package(source: list[str], name: str, host: str | None) -> None:
    verb = ["ollama", "--host", host] if host else ["gguf"]
    # --force: after a new training, the folder still holds the model of the previous one.
    options = ["--quant", QUANT, "--name", name, "--out", str(OUTPUT / name), "--force"]
    _run([_ftpack(), *verb, *source, *options])


def _ftpack() -> str:
    folder = Path(sys.executable).parent
    path = folder / "ftpack"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _run(command: list[str]) -> None:
    print(f"\n$ {shlex.join(command)}", file=sys.stderr, flush=True)
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        sys.exit(code)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
