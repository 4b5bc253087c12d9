"""Results as folders: safetensors, 4-bit, a cleaned adapter, its card."""
