"""Quantizing rows of weights: ggml's own code, and faster kernels that give the same bytes.

Kernels for importance weights (an importance matrix) are built and tested, but no option of ftpack
reaches them yet: `load_quantizers` is never given any.
"""
