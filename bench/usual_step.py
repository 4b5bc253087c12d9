"""Runs one step of the usual route in a separate process.

python -m bench.usual_step merge BASE ADAPTER OUT
python -m bench.usual_step quantize IN.gguf OUT.gguf QUANT THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

from testing.usual_route import merge_with_peft, quantize_with_llama_cpp


def main(argv: list[str]) -> None:
    """Reads the step and runs it."""
    match argv:
        case ["merge", base, adapter, out]:
            merge_with_peft(Path(base), Path(adapter), Path(out))
        case ["quantize", in_gguf, out_gguf, quant, threads]:
            quantize_with_llama_cpp(Path(in_gguf), Path(out_gguf), quant, int(threads))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
