"""llama.cpp's quants, by the names that its quantizer accepts."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from packager.errors import UnknownQuantError


@dataclass(frozen=True)
class Quant:
    """A target of quantization.

    Attributes:
        name: llama.cpp's name, such as `Q5_K_M`.
        ftype: `llama_ftype` in llama.cpp's `llama.h`.
        is_float: whether it stores every weight as a float, so that nothing is quantized.
    """

    name: str
    ftype: int
    is_float: bool = False


DEFAULT_QUANT = "Q5_K_M"

# `enum llama_ftype` of llama.cpp, from the largest to the smallest. NVFP4 is left out: llama.cpp's
# quantizer does not make it.
QUANTS = {
    quant.name: quant
    for quant in (
        Quant("F32", 0, is_float=True),
        Quant("F16", 1, is_float=True),
        Quant("BF16", 32, is_float=True),
        Quant("Q8_0", 7),
        Quant("Q6_K", 18),
        Quant("Q5_1", 9),
        Quant("Q5_K_M", 17),
        Quant("Q5_K_S", 16),
        Quant("Q5_0", 8),
        Quant("Q4_1", 3),
        Quant("Q4_K_M", 15),
        Quant("Q4_K_S", 14),
        Quant("Q4_0", 2),
        Quant("IQ4_NL", 25),
        Quant("IQ4_XS", 30),
        Quant("MXFP4_MOE", 38),
        Quant("Q3_K_L", 13),
        Quant("Q3_K_M", 12),
        Quant("IQ3_M", 27),
        Quant("IQ3_S", 26),
        Quant("Q3_K_S", 11),
        Quant("IQ3_XS", 22),
        Quant("IQ3_XXS", 23),
        Quant("Q2_K", 10),
        Quant("Q2_K_S", 21),
        Quant("IQ2_M", 29),
        Quant("IQ2_S", 28),
        Quant("IQ2_XS", 20),
        Quant("Q2_0", 41),
        Quant("IQ2_XXS", 19),
        Quant("TQ2_0", 37),
        Quant("IQ1_M", 31),
        Quant("TQ1_0", 36),
        Quant("IQ1_S", 24),
        Quant("Q1_0", 40),
    )
}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def parse_quant(text: str) -> Quant:
    """The quant with this name, in any case (`q5_k_m`, `Q4_K`).

    Raises:
        UnknownQuantError: listing similar names.
    """
    name = text.strip().upper().replace("-", "_")
    name = _ALIASES.get(name, name)
    if name in QUANTS:
        return QUANTS[name]
    near = difflib.get_close_matches(name, QUANTS, n=4, cutoff=0.4) or ["Q4_K_M", DEFAULT_QUANT]
    raise UnknownQuantError(
        f"There is no quant {text!r}; similar names: {', '.join(near)}.",
        next_step="`ftpack gguf SOURCE --dry-run` lists all quants with their sizes.",
    )
