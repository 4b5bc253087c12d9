"""The command line: one file per verb; options in, messages and exit codes out."""
