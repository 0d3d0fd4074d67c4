"""Puts this folder on sys.path, so that tests can import the helpers beside it (spawn, tiny_model)."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """What imports left is not searched for garbage again: a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)
