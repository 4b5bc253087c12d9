"""The prompt: who renders it in Ollama, and the Modelfile."""
