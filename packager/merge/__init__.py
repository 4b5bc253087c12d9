"""Adapters, merged into their base one tensor at a time."""
