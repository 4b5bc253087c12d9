"""Prompts and token ids compared with training: offline, embedded, on a daemon."""
