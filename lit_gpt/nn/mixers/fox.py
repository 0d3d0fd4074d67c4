"""Forgetting attention (FoX, arXiv:2503.02130): every head forgets, by a gate that each token sets.

The decay tells near from far, so the paper's models have no rotary positions (--position none,
or LayerSpec.rope_base 0); with positions both act.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.cache import History, KVCache
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear
from lit_gpt.nn.mixers import SharedState
from lit_gpt.nn.mixers.attention import OWN_VALUES, Attention, AttentionCache, memory
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.forgetting import forgetting_attention
from lit_gpt.scaling.base import Multipliers

__all__ = ["OWN_VALUES", "ForgettingAttention", "build", "memory"]


class ForgettingCache(AttentionCache):
    """Keys and values, and the log forget gates of the same positions, (batch, positions, n_head)."""

    def __init__(self, kv: KVCache, log_forget: History):
        super().__init__(kv)
        self.log_forget = log_forget


class ForgettingAttention(Attention):
    """Attention with a forget gate per query head. Raises UserError together with attention sinks."""

    def __init__(self, config: ModelConfig, layer_index: int, multipliers: Multipliers):
        super().__init__(config, layer_index, multipliers)
        if config.attn_sink:
            raise UserError(
                "Forgetting attention (fox) has no sinks, so attn_sink=True cannot act. Use attn_sink=False."
            )
        self.forget = Linear(config.n_embd, config.n_head, bias=True)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: Any = None
    ) -> tuple[Tensor, SharedState | None]:
        """See Attention."""
        q, k, v = self.heads(x_BTD, context, shared, cache)
        log_forget = F.logsigmoid(upcast(self.forget(x_BTD)))
        if cache is not None:
            log_forget = cache.log_forget.append(log_forget)
        y_BTHD = forgetting_attention(
            q,
            *(self.near(q, x) for x in (k, v, log_forget)),
            scale=self.head_dim**-0.5 if self.scale is None else self.scale,
            window=self.window,
            doc_ids=context.doc_ids,
            cu_seqlens=context.cu_seqlens,
            visible=None if context.mask is None else context.mask.dense,
            backend=context.kernels,
        )
        return self.finish(x_BTD, y_BTHD, (k, v))

    def flops(self, context_length: int) -> float:
        """Those of attention and of the gate's projection."""
        return super().flops(context_length) + self.forget.flops()

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> ForgettingCache:
        """An empty cache for this layer; gates in at least fp32."""
        kv = KVCache(batch, max_len, self.keep, self.n_kv_head, self.head_dim, device, dtype)
        exact = torch.promote_types(dtype, torch.float32)
        return ForgettingCache(kv, History(batch, max_len, self.keep, (self.n_head,), device, exact))


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> ForgettingAttention:
    """The registry's entry point."""
    return ForgettingAttention(config, layer_index, multipliers)
