"""The prompt: which renderer is in force, and the Modelfile that says so."""
