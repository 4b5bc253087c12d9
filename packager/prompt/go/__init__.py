"""Ollama's Go templates: parsed, rendered, derived from a chat template."""
