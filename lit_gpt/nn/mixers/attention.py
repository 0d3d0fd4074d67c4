"""Softmax attention: grouped queries, RoPE, and the options of ModelConfig.

Order: project, QK-norm, RoPE, attend, gate, norm, project.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.cache import KVCache
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, joint
from lit_gpt.nn.mixers import Lent, MemoryForm
from lit_gpt.nn.norm import RMSNorm, build_norm
from lit_gpt.nn.rotary import rotate
from lit_gpt.ops.attention import attention
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers


class Attention(nn.Module):
    """Multi-head attention with n_head query heads and n_kv_head key-value heads."""

    def __init__(self, config: ModelConfig, layer_index: int, multipliers: Multipliers):
        super().__init__()
        n, bias, inner = config.n_embd, config.attn_bias, config.n_head * config.head_dim
        self.head_dim, self.n_head, self.n_kv_head = config.head_dim, config.n_head, config.n_kv_head
        self.window = config.layers[layer_index].window
        readers = [spec for spec in config.layers if spec.shares == layer_index]
        self.lends = any(spec.mixer.endswith("cross_attention") for spec in readers)
        self.lends_memory = config.layers[layer_index].memory == "mixer"
        self.scale = multipliers.attention
        self.q = Linear(n, inner, bias=bias)
        self.k = Linear(n, config.n_kv_head * config.head_dim)
        self.v = Linear(n, config.n_kv_head * config.head_dim, bias=bias)
        self.out = Linear(inner, n, bias=bias)
        self.gate = Linear(n, config.n_head, bias=bias) if config.attn_gate else None
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.norm = build_norm(config, inner) if config.attn_norm else None
        self.sink = role(nn.Parameter(torch.empty(config.n_head)), "vector", 0.0) if config.attn_sink else None

    def forward(
        self, x_BTD: Tensor, context: Context, shared: Lent | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor, Lent | None]:
        """See lit_gpt.nn.mixers.Mixer. Lends its keys and values if a later layer shares them."""
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in joint(x_BTD, self.q, self.k, self.v))
        q, k = self._place(q, self.q_norm, context), self._place(k, self.k_norm, context)
        if cache is not None:
            k, v = cache.append(k, v)
        y_BTHD = attention(
            q,
            k,
            v,
            scale=self.scale,
            window=self.window,
            doc_ids=context.doc_ids,
            sink=self.sink,
            mask=context.mask,
            backend=context.backend,
        )
        if self.gate is not None:
            y_BTHD = y_BTHD * torch.sigmoid(self.gate(x_BTD))[..., None]
        heads = y_BTHD.flatten(2)
        y = heads if self.norm is None else self.norm(heads, heads.dtype)
        lent = Lent((k, v) if self.lends else None, heads if self.lends_memory else None)
        return self.out(y), lent

    def _place(self, x_BTHD: Tensor, norm: RMSNorm | None, context: Context) -> Tensor:
        """Queries or keys, normalised and rotated."""
        if norm is not None:
            x_BTHD = norm(x_BTHD, x_BTHD.dtype)
        return x_BTHD if context.rope is None else rotate(x_BTHD, *context.rope)

    def flops(self, context_length: int) -> float:
        """Projections, and q k^T and the weighted sum over the keys a query sees on average."""
        projections = [m for m in (self.q, self.k, self.v, self.out, self.gate) if m is not None]
        keys = visible_keys(context_length, self.window)
        return sum(m.flops() for m in projections) + 4 * self.n_head * self.head_dim * keys

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> KVCache:
        """An empty key-value cache for this layer."""
        return KVCache(batch, max_len, self.n_kv_head, self.head_dim, device, dtype)


def visible_keys(length: int, window: int | None) -> float:
    """Keys a query sees, averaged over a sequence: (T + 1) / 2, or fewer with a window."""
    w = length if window is None else min(window, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> Attention:
    """The registry's entry point."""
    return Attention(config, layer_index, multipliers)


def memory(config: ModelConfig, layer_index: int) -> MemoryForm:
    """The heads, gated and joined, before norm and output projection."""
    return MemoryForm(config.n_head * config.head_dim, normed=False)
