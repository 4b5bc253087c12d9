"""llama.cpp: names, types and bytes of a GGUF."""
