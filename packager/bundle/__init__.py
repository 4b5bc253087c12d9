"""A bundle: the folder that is handed over."""
