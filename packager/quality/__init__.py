"""How good the result is: its distance from the trained model."""
