"""Ollama's Go templates: parse them, render them, derive one from a chat template."""
