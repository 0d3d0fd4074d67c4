"""Puts this folder on sys.path, so that tests can import the helpers beside it (spawn, tiny_model)."""
