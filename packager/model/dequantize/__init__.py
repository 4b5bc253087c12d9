"""Quantized checkpoints as plain ones: 16-bit weights, one tensor at a time."""
