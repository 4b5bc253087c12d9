"""Quantized checkpoints, dequantized to 16 bits one tensor at a time."""
