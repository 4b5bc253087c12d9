"""Where a GGUF runs: a local Ollama daemon, or the embedded llama.cpp."""
