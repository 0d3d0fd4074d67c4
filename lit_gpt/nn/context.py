"""What GPT works out once per forward and hands to every layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lit_gpt.ops.attention import Mask


class Context(NamedTuple):
    """Read-only inputs of a block beside the residual stream.

    rope: cos and sin (T, R/2), None without positions. mask: of this layer's window, in
    the form its attention backend reads. doc_ids: (B, T) or None. backend: of attention.
    """

    rope: tuple[Tensor, Tensor] | None = None
    mask: Mask = None
    doc_ids: Tensor | None = None
    backend: str = "auto"
