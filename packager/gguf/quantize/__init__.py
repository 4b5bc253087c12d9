"""Quantizing rows of weights: ggml's own code, and faster kernels that give the same bytes."""
