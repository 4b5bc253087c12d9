"""What the tests and the bench share: the usual route to a GGUF, and real vocabularies.

Nothing here imports ftpack, and nothing here is part of the wheel.
"""
