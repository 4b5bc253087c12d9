"""What the user gave: an adapter or a full model, and the base that an adapter needs."""
