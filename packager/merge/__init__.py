"""PEFT: an adapter merged into its base, one tensor at a time."""
