"""How close the result is to what was trained."""
