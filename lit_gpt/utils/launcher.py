"""What torchrun, accelerate or another launcher says of this process; without torch, since commands ask it first."""

from __future__ import annotations

import os


def world_size() -> int:
    """Processes of this run, as its launcher says; 1 without a launcher, and where the variable is empty."""
    return int(os.environ.get("WORLD_SIZE") or 1)
