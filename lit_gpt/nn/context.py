"""What GPT works out once per forward and hands to every layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lit_gpt.ops.attention import Mask


class Context(NamedTuple):
    """Read-only inputs of a block beside the residual stream.

    rope: cos and sin, (T, R/2) or (B, T, R/2) each, of this layer's base; None without positions.
    mask: of this layer's window, with the attention backend that reads it. Both None where no
    layer of that base or window attends.
    doc_ids: (B, T), the documents of this call's tokens; None when each row goes on with one.
    cu_seqlens: (N + 1,) int32, where the N documents start in the B * T tokens, and B * T; on
    CUDA with documents, else None. backend: of attention. experts: of their grouped matrix
    products. kernels: of every other operation.
    last: only the last position's output is asked for, and this is that position's context. For mixers
    that narrow; keys and values are made for all positions.
    """

    rope: tuple[Tensor, Tensor] | None = None
    mask: Mask | None = None
    doc_ids: Tensor | None = None
    cu_seqlens: Tensor | None = None
    backend: str = "auto"
    kernels: str = "auto"
    experts: str = "auto"
    last: Context | None = None
