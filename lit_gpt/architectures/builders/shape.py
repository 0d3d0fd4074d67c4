"""What a family is built from, beside its depth: its name, and what the command line says about its dimensions."""

from __future__ import annotations

from typing import NamedTuple

from lit_gpt.config.model import Experts


class Shape(NamedTuple):
    """None where nothing was said: the family decides.

    family: the name that was asked for, which becomes ModelConfig.family.
    aspect_ratio: width / depth (--ar). block_size: training context in tokens (--ctx_len).
    window: tokens that its sliding-window layers see (--swa_len). experts: of mixture families.
    """

    family: str = ""
    aspect_ratio: int | None = None
    block_size: int | None = None
    window: int | None = None
    experts: Experts | None = None
