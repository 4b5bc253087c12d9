"""The source: an adapter or a full model, and the base that an adapter needs."""
