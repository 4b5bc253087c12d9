"""Quantized checkpoints read as 16-bit ones, one tensor at a time."""
