"""What the linear mixers share: projections with a short convolution, cache, initial values, sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, as_one, joint, together
from lit_gpt.ops.conv import causal_conv_pieces
from lit_gpt.ops.dtypes import upcast
from lit_gpt.roles import role

HEAD_MULTIPLE = 8  # head dimensions that are multiples of this load in whole 16-byte words


class RecurrentCache:
    """What a linear mixer remembers of each row: its state, the last inputs of its convolution, whether it saw any.

    state: (batch, H, K, V) fp32. conv: (batch, C, width - 1), without any when the mixer has no convolution.
    seen_B: tokens so far, for a mixer whose work depends on them. A tensor, since a graph of a step (evals/steps.py)
    would repeat a number of Python's.
    """

    def __init__(self, state: Tensor, conv: Tensor | None = None):
        self.state, self.conv, self.begun = state, conv, False
        self.seen_B: Tensor | None = None


class QueriesKeysValues(nn.Module):
    """Queries and keys of width key_dim and values of width value_dim for each head, all projections of the input.

    conv: width of a causal depthwise convolution with silu over all three, 0 for none.
    """

    def __init__(self, n: int, heads: int, key_dim: int, value_dim: int, conv: int = 0):
        super().__init__()
        self.heads, self.dims = heads, (key_dim, key_dim, value_dim)
        self.q, self.k = (Linear(n, heads * key_dim, heads=heads, scores=True) for _ in range(2))
        self.v = Linear(n, heads * value_dim, heads=heads)
        self.maps = together(self.q, self.k, self.v)
        channels = heads * sum(self.dims)
        self.conv = role(nn.Parameter(torch.empty(channels, 1, conv)), "conv") if conv else None

    def forward(self, x_BTD: Tensor, context: Context, cache: RecurrentCache | None) -> list[Tensor]:
        """q, k (B, T, H, K) and v (B, T, H, V); the cache's convolution moves on."""
        if self.conv is None:
            parts = joint(x_BTD, *self.maps)
        else:
            parts, inputs = causal_conv_pieces(
                # One product that is not split first: the convolution reads it whole.
                as_one(x_BTD, *self.maps),
                [self.heads * d for d in self.dims],
                self.conv,
                activation="silu",
                doc_ids=context.doc_ids,
                state_BCK=None if cache is None else cache.conv,
                backend=context.kernels,
            )
            if cache is not None:
                cache.conv = inputs  # the last taps - 1 inputs, which the next call's first tokens need
        return [part.unflatten(-1, (self.heads, -1)) for part in parts]

    def new_cache(self, batch: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Nothing seen yet."""
        key_dim, _, value_dim = self.dims
        state = torch.zeros(batch, self.heads, key_dim, value_dim, dtype=torch.float32, device=device)
        if self.conv is None:
            return RecurrentCache(state)
        channels, _, width = self.conv.shape
        return RecurrentCache(state, torch.zeros(batch, channels, width - 1, dtype=dtype, device=device))

    def flops(self) -> float:
        """Per token: 2 per weight, of the convolution too."""
        return 2.0 * sum(p.numel() for p in self.parameters())


def carried(context: Context, cache: RecurrentCache | None) -> dict[str, Any]:
    """Arguments of lit_gpt.ops.linear_attention and delta_rule: what came before, where documents start."""
    state = None if cache is None else cache.state
    return {
        "doc_ids": context.doc_ids,
        "cu_seqlens": context.cu_seqlens,
        "state": state,
        "backend": context.kernels,
    }


def advance(cache: RecurrentCache | None, state: Tensor | None, tokens: int) -> None:
    """Store the state after `tokens` more tokens."""
    if cache is not None:
        assert state is not None
        cache.state, cache.begun = state, True
        cache.seen_B = None if cache.seen_B is None else cache.seen_B + tokens


def state_flops(heads: int, key_dim: int, value_dim: int, delta: bool) -> float:
    """Of the recurrence per token: 2 K V each for the outer product k v^T that is added to a
    head's state, the read q S, and with the delta rule the prediction k S. The chunked forms
    do other work for the same result; like the scores of attention it is counted by its definition.
    """
    return heads * (6.0 if delta else 4.0) * key_dim * value_dim


def head_sizes(mixer: str, n: int, heads: int, expand_k: float, expand_v: float) -> tuple[int, int, int]:
    """Heads, key and value dimension of one: n times expand / heads, to the nearest multiple of HEAD_MULTIPLE.

    Raises UserError where that is 0: the layer would be another than the one that was asked for.
    """
    dims = []
    for option, expand in {"expand_k": expand_k, "expand_v": expand_v}.items():
        share = n * expand / heads
        if share < HEAD_MULTIPLE / 2:
            least = math.ceil(1e4 * HEAD_MULTIPLE / 2 * heads / n) / 1e4
            raise UserError(
                f"The option {option} of the mixer {mixer} is {expand}: at width {n} that is {share:.3g} for each of "
                f"{heads} heads, whose sizes are multiples of {HEAD_MULTIPLE}. It must be at least "
                f"{least:g}, or the option heads smaller (--mixer_options)."
            )
        dims.append(max(1, round(share / HEAD_MULTIPLE)) * HEAD_MULTIPLE)
    return heads, *dims


def value_dim_of(mixer: str, key_dim: int, expand_v: float) -> int:
    """expand_v times key_dim, rounded down. Raises UserError where that is 0."""
    if expand_v * key_dim < 1:
        raise UserError(
            f"The option expand_v of the mixer {mixer} is {expand_v}: with key_dim {key_dim} that leaves a head no "
            f"values. It must be at least 1/{key_dim} (--mixer_options)."
        )
    return int(expand_v * key_dim)


def log_uniform(low: float, high: float) -> Callable[[Tensor, torch.Generator], None]:
    """A `fill` for roles.role: the logarithm of U(low, high)."""

    def fill(full: Tensor, generator: torch.Generator) -> None:
        full.uniform_(low, high, generator=generator).log_()

    return fill


def time_step_bias(full: Tensor, generator: torch.Generator) -> None:
    """A `fill`: softplus of it is log-uniform in [1e-3, 0.1], as Mamba's time steps (arXiv:2312.00752, section 3.6)."""
    # The floor of 1e-4 and the inverse of softplus, x + log(1 - e^-x), are those of mamba_ssm's code.
    step = full.uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp_().clamp_(min=1e-4)
    full.copy_(step + torch.log(-torch.expm1(-step)))


def decay_from(a: Tensor, log_rate: Tensor, bias: Tensor) -> Tensor:
    """The log decay -exp(log_rate) softplus(a + bias) in at least fp32."""
    return -upcast(log_rate).exp() * F.softplus(upcast(a) + upcast(bias))
