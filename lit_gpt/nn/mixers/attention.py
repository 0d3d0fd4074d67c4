"""Softmax attention with grouped queries, rotary positions, and the options of ModelConfig.

    q, k, v = x W_q, x W_k, x W_v              # split into H query heads and G key-value heads of size D
    q, k = rotate(norm(q)), rotate(norm(k))    # norm: --qk_norm; rotate: RoPE (arXiv:2104.09864)
    y = softmax(scale q k^T) v                 # over the keys that a query may see; lit_gpt.ops.attention
    out = y W_out

Options add steps. With all of them the order is: project, short convolution, QK-norm, RoPE, value embeddings, attend,
gate, norm, project.
`forward` calls `heads` (everything before the softmax), `attend` (the softmax) and `finish` (everything after it), so
that the kinds of attention in the files beside this one can replace one of the three.

Shapes: B batch, T positions of this call, K those and the ones kept of earlier calls, H query heads, G key-value heads,
D head size; in x_BTD, as in every mixer, D is the width n of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.cache import KVCache
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, as_one, is_one, joint, last_linear, together
from lit_gpt.nn.mixers import MIXERS, MemoryForm, SharedState
from lit_gpt.nn.norm import RMSNorm, build_norm
from lit_gpt.nn.rotary import rotate, rotate_halves
from lit_gpt.nn.value_embedding import ValueEmbedding
from lit_gpt.ops.attention import attention
from lit_gpt.ops.conv import causal_conv_pieces
from lit_gpt.ops.masks import in_reach
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers

SOFTMAX_ATTENTION = True
OWN_VALUES = True  # whether layers with this mixer can have value embeddings
CONV_WIDTH = 4  # taps of the short convolution, as in linear attention (arXiv:2312.06635)


class AttentionCache:
    """What one layer remembers: kv, None where another layer's are read; the short convolution's last inputs."""

    def __init__(self, kv: KVCache | None):
        self.kv = kv
        self.conv: Tensor | None = None


class Attention(nn.Module):
    """Multi-head attention with n_head query heads and n_kv_head key-value heads.

    cross: keys and values are those of another layer, so there are no maps for them.
    value_heads: how many heads of values share the softmax of one query head (differential attention has 2).
    softmax_only: all that happens to keys is `softmax`. Each class says it for itself.
    """

    attends = True
    cross = False
    value_heads = 1
    softmax_only = True

    def __init__(self, config: ModelConfig, layer_index: int, multipliers: Multipliers):
        super().__init__()
        n, bias, spec = config.n_embd, config.attn_bias, config.layers[layer_index]
        qv_bias = bias or config.qkv_bias
        inner, inner_kv = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.head_dim, self.n_head, self.n_kv_head = config.head_dim, config.n_head, config.n_kv_head
        self.window = spec.window
        # Keys and values are handed on only where some layer reads them: what is returned is kept in memory.
        self.shares_kv = bool(readers_of(config, layer_index))
        self.shares_memory = spec.memory == "mixer"
        farthest = widest_window(config, layer_index)
        self.keep = None if farthest is None else farthest - 1  # a query is in its own window
        self.scale = multipliers.attention  # None is 1/sqrt(head_dim)
        if config.qk_norm_scale != 1:  # on queries and on keys: in the softmax's scale it costs and rounds nothing
            self.scale = config.qk_norm_scale**2 * (self.head_dim**-0.5 if self.scale is None else self.scale)
        self.q = Linear(n, inner, bias=qv_bias, heads=config.n_head, scores=True)
        # By itself attn_bias gives keys none, as in ArchScale: without RoPE it would add the same number to all scores
        # of a query, and the softmax does not change when it does. Qwen2 has one (qkv_bias).
        k_bias = config.qkv_bias
        self.k = None if self.cross else Linear(n, inner_kv, bias=k_bias, heads=config.n_kv_head, scores=True)
        self.v = None if self.cross else Linear(n, inner_kv, bias=qv_bias, heads=config.n_kv_head)
        self.qkv = together(self.q, self.k, self.v)
        self.out = last_linear(config, inner, bias)
        self.gate = Linear(n, config.n_head, bias=bias) if config.attn_gate else None
        channels = inner if self.cross else inner + 2 * inner_kv
        self.conv = role(nn.Parameter(torch.empty(channels, 1, CONV_WIDTH)), "conv") if config.attn_conv else None
        q_width, k_width = (inner, inner_kv) if config.joint_qk_norm else (config.head_dim, config.head_dim)
        normed, gain = config.qk_norm, config.norm_gain
        self.q_norm = RMSNorm(q_width, config.norm_eps, gain) if normed else None
        self.k_norm = RMSNorm(k_width, config.norm_eps, gain) if normed and not self.cross else None
        self.joint_qk_norm = config.joint_qk_norm
        self.norm = build_norm(config, inner) if config.attn_norm else None
        self.value_embedding = ValueEmbedding(config) if spec.value_embedding and not self.cross else None
        self.sink = role(nn.Parameter(torch.empty(config.n_head)), "vector", 0.0) if config.attn_sink else None

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: AttentionCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer. Shares its keys and values, or its heads, where later layers read them."""
        q, k, v = self.heads(x_BTD, context, shared, cache)
        return self.finish(x_BTD, self.attend(q, self.near(q, k), self.near(q, v), context), (k, v))

    def heads(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None, cache: AttentionCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of this call (B, T, H, D), keys and values of all positions that a layer may see (B, K, G, D)."""
        # Keys go into the cache rotated: what is rotated once need not be rotated at every later token.
        if self._only_turns(x_BTD, context):
            q, k, v = self._turned(x_BTD, context)
        else:
            # One matrix product for all three maps is faster than three; see joint.
            projected = joint(x_BTD, *self.qkv) if self.conv is None else self._convolved(x_BTD, context, cache)
            q, *own = (y.unflatten(-1, (-1, self.head_dim)) for y in projected)
            q = self._place(q, self.q_norm, context)
            if self.cross:
                assert shared is not None and shared.kv is not None, "the layer that is read shares nothing"
                return q, *shared.kv
            k, v = self._place(own[0], self.k_norm, context), self._apart(own[1], context)
        if self.value_embedding is not None:
            assert context.tokens is not None
            v = self.value_embedding(x_BTD, v, context.tokens)
        if cache is not None:
            assert cache.kv is not None
            k, v = cache.kv.append(k, v)
        return q, k, v

    def near(self, q_BTHD: Tensor, x_BK: Tensor) -> Tensor:
        """What belongs to keys within this layer's window, which the mask is over: a layer that reads them may see
        farther, and with the last query alone fewer are needed.
        """
        keys = x_BK.shape[1]
        return x_BK[:, keys - in_reach(q_BTHD.shape[1], keys, self.window) :]

    def attend(self, q_BTHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, context: Context) -> Tensor:
        """The weighted sums of the values, (B, T, H, D). This is the part that other kinds of attention replace."""
        return self.softmax(q_BTHD, k_BKGD, v_BKGD, context, self.sink)

    def softmax(self, q: Tensor, k: Tensor, v: Tensor, context: Context, sink: Tensor | None) -> Tensor:
        """Softmax attention under the layer's scale and mask."""
        return attention(
            q,
            k,
            v,
            scale=self.scale,
            window=self.window,
            doc_ids=context.doc_ids,
            cu_seqlens=context.cu_seqlens,
            sink=sink,
            mask=context.mask,
            backend=context.backend,
        )

    def finish(self, x_BTD: Tensor, y_BTHD: Tensor, kv: tuple[Tensor, Tensor]) -> tuple[Tensor, SharedState | None]:
        """The output (B, T, n) from the heads (B, T, H, D): gate, norm, projection. Also what later layers read."""
        if self.gate is not None:
            # One gate per head and token (arXiv:2505.06708, the head-wise variant).
            y_BTHD = y_BTHD * torch.sigmoid(self.gate(x_BTD))[..., None]
        heads = y_BTHD.flatten(2)
        y = heads if self.norm is None else self.norm(heads, heads.dtype)
        state = SharedState(kv if self.shares_kv else None, heads if self.shares_memory else None)
        return self.out(y), state if self.shares_kv or self.shares_memory else None

    def _only_turns(self, x_BTD: Tensor, context: Context) -> bool:
        """Whether one product makes queries, keys and values, of which the first two turn as a whole and no more."""
        more = self.cross or self.conv is not None or self.q_norm is not None
        whole = context.rope is not None and 2 * context.rope[0].shape[-1] == self.head_dim
        return whole and not more and is_one(x_BTD, *self.qkv)

    def _turned(self, x_BTD: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values.

        The same numbers as one after the other. But a compiled backward pass turns the gradients back and writes them
        side by side in one kernel, where it would turn two of them and then copy all three. Heads stay halves all the
        while, since with flat ones those kernels would read number by number (torch 2.11).
        """
        assert context.rope is not None
        heads, groups = self.n_head, self.n_kv_head
        halves = as_one(x_BTD, *self.qkv).unflatten(-1, (-1, 2, self.head_dim // 2))
        qk, v = halves.split([heads + groups, groups], dim=-3)
        q, k = rotate_halves(qk, *context.rope).split([heads, groups], dim=-3)
        q, k, v = (self._apart(x, context).flatten(-2) for x in (q, k, v))
        return q, k, v

    def _convolved(self, x_BTD: Tensor, context: Context, cache: AttentionCache | None) -> Sequence[Tensor]:
        """Queries, keys and values through one depthwise convolution and silu."""
        assert self.conv is not None
        # Where it is one product it is not split first: the convolution reads it whole.
        one = is_one(x_BTD, *self.qkv)
        pieces, state = causal_conv_pieces(
            as_one(x_BTD, *self.qkv) if one else torch.cat(joint(x_BTD, *self.qkv), dim=-1),
            [m.weight.shape[0] for m in self.qkv],
            self.conv,
            activation="silu",
            doc_ids=context.doc_ids,
            state_BCK=None if cache is None else cache.conv,
            backend=context.kernels,
        )
        if cache is not None:
            cache.conv = state
        return pieces

    def _apart(self, x: Tensor, context: Context) -> Tensor:
        """Queries, keys or values apart from what shares their memory, where backward keeps them.

        A view of the values would keep all that the product made, of which backward needs the rest rotated, in other
        tensors. Views of queries and keys that were rotated together could not wait on the host (--act_offload).
        """
        gains = context.rope is not None and self.q_norm is None and self.training
        return x.clone(memory_format=torch.contiguous_format) if gains else x

    def _place(self, x_BTHD: Tensor, norm: RMSNorm | None, context: Context) -> Tensor:
        """Queries or keys after QK-norm and RoPE, where the model has them."""
        # The norm comes first: a rotation keeps the length of a vector, and the norm's gain would not commute with it.
        if norm is not None and self.joint_qk_norm:
            x_BTHD = norm(x_BTHD.flatten(2), x_BTHD.dtype).view_as(x_BTHD)
        elif norm is not None:
            x_BTHD = norm(x_BTHD, x_BTHD.dtype)
        return x_BTHD if context.rope is None else rotate(x_BTHD, *context.rope)

    def flops(self, context_length: int) -> float:
        """Projections, convolution, and q k^T and the weighted sums over the keys a query sees on average."""
        projections = [m for m in (self.q, self.k, self.v, self.out, self.gate) if m is not None]
        conv = 0 if self.conv is None else 2 * self.conv.numel()
        conv += 0 if self.value_embedding is None else self.value_embedding.flops()
        # Per key and query head: head_dim multiply-adds for the score, and as many for each head of values.
        per_key = 2 * (1 + self.value_heads) * self.n_head * self.head_dim
        return sum(m.flops() for m in projections) + conv + per_key * visible_keys(context_length, self.window)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> AttentionCache | None:
        """An empty cache for this layer; None where it has nothing to remember."""
        if self.cross and self.conv is None:
            return None
        sizes = self.n_kv_head, self.head_dim
        return AttentionCache(None if self.cross else KVCache(batch, max_len, self.keep, *sizes, device, dtype))


def readers_of(config: ModelConfig, layer_index: int) -> list[int]:
    """The layers that read a layer's keys and values."""
    shares = (i for i, spec in enumerate(config.layers) if spec.shares == layer_index)
    return [i for i in shares if getattr(MIXERS.load(config.layers[i].mixer), "READS_KEYS", False)]


def widest_window(config: ModelConfig, layer_index: int) -> int | None:
    """Tokens that a layer sees, or any layer that reads its keys and values; None where one of them sees all."""
    windows = [config.layers[layer_index].window]
    windows += [widest_window(config, i) for i in readers_of(config, layer_index)]
    return None if None in windows else max(w for w in windows if w is not None)


def visible_keys(length: int, window: int | None) -> float:
    """Keys a query sees, averaged over a sequence: (T + 1) / 2, or fewer with a window."""
    # The first w queries see 1, 2, ..., w keys, the rest w each.
    w = length if window is None else min(window, length)
    return (w * (w + 1) / 2 + (length - w) * w) / length


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> Attention:
    """The registry's entry point."""
    return Attention(config, layer_index, multipliers)


def memory(config: ModelConfig, layer_index: int) -> MemoryForm:
    """The heads, gated and joined, before norm and output projection."""
    return MemoryForm(config.n_head * config.head_dim, normed=False)
