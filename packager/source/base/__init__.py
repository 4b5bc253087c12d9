"""The base model that an adapter needs."""
