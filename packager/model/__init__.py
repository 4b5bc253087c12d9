"""A model folder, read lazily: its configuration, tokenizer and tensors."""
