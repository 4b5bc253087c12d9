"""Models from the Hugging Face Hub and ModelScope, and their caches."""
