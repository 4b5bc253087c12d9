"""A model folder, read lazily: its configuration, tokenizer, tensors."""
