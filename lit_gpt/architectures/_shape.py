"""What the command line may say about a family's dimensions before it is built."""

from __future__ import annotations

from typing import NamedTuple


class Shape(NamedTuple):
    """None where nothing was said: the family decides.

    aspect_ratio: width / depth (--ar). block_size: training context in tokens (--ctx_len).
    window: tokens that its sliding-window layers see (--swa_len).
    """

    aspect_ratio: int | None = None
    block_size: int | None = None
    window: int | None = None
