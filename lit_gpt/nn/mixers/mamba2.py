"""Mamba-2 (arXiv:2405.21060): one decay per head, so that the scan is made of matrix products.

Order: project, short convolution and silu on x, B and C, scan, gate, norm, project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.bounds import Bounds
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, as_one, last_linear, together
from lit_gpt.nn.mixers import Count, MemoryForm, SharedState, mixer_options
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.nn.recurrent import RecurrentCache, advance, log_uniform, state_flops, time_step_bias
from lit_gpt.ops.conv import causal_conv_pieces
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.ssd import ssd
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers

READS_HEADS = False


@dataclass(frozen=True)
class Options:
    """d_state: states per channel. d_conv: width of the short convolution. expand: channels over n,
    rounded up to whole heads of head_dim channels, of which there are a multiple of head_multiple
    (512 channels with the defaults). groups: of heads; each group has a B, a C and a norm of its own.
    joint: all maps of the input are one matrix, in_proj, as in ArchScale and mamba_ssm: the same model to AdamW,
    another one to optimizers that see whole matrices (the Muon family).
    """

    d_state: Count = 128
    d_conv: Annotated[int, Bounds(2)] = 4
    expand: Count = 2
    head_dim: Count = 64
    head_multiple: Count = field(default=8, metadata=SHAPES)
    groups: Count = 1
    joint: bool = False


class Mamba2(nn.Module):
    """H heads of P channels with N states each; all of a group read the same B and C, projections of the input."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        self.heads, inner = heads_of(config, layer_index), memory(config, layer_index).width
        self.groups, self.states = groups_of(options, self.heads), options.d_state
        self.widths = inner, self.groups * self.states, self.groups * self.states
        self.shares_memory = config.layers[layer_index].memory == "mixer"
        self.joint = options.joint
        if self.joint:
            self.in_proj = Linear(n, inner + sum(self.widths) + self.heads)
        else:
            self.x, self.B, self.C = (Linear(n, width) for width in self.widths)
            self.convolved = together(self.x, self.B, self.C)
            self.z, self.dt = Linear(n, inner), Linear(n, self.heads)
        self.conv = role(nn.Parameter(torch.empty(sum(self.widths), 1, options.d_conv)), "conv")
        self.conv_bias = role(nn.Parameter(torch.empty(sum(self.widths))), "vector", 0.0)
        self.dt_bias = role(nn.Parameter(torch.empty(self.heads)), "vector", time_step_bias)
        # exp(A_log) uniform in [1, 16], and D = 1: A_init_range and D of mamba_ssm's Mamba2.
        self.A_log = role(nn.Parameter(torch.empty(self.heads)), "vector", log_uniform(1.0, 16.0))
        self.D = role(nn.Parameter(torch.empty(self.heads)), "vector", 1.0)
        self.norm = RMSNorm(inner, config.norm_eps, groups=self.groups)
        self.out = last_linear(config, inner)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer. Shares the heads before gate and norm, where its layer shares a memory."""
        z, xBC, dt = self._projected(x_BTD)
        x, B, C = self._convolved(xBC, context, cache)
        y_BTHP, state = ssd(
            x.unflatten(-1, (self.heads, -1)),
            dt,
            -upcast(self.A_log).exp(),
            B.unflatten(-1, (self.groups, -1)),
            C.unflatten(-1, (self.groups, -1)),
            self.D,
            self.dt_bias,
            doc_ids=context.doc_ids,
            state=None if cache is None or not cache.begun else cache.state,
            backend=context.kernels,
        )
        advance(cache, state, x_BTD.shape[1])
        heads = y_BTHP.flatten(2)
        y = self.norm(upcast(heads) * F.silu(upcast(z)), x_BTD.dtype)
        return self.out(y), SharedState(memory=heads) if self.shares_memory else None

    def _projected(self, x_BTD: Tensor) -> list[Tensor]:
        """z; x, B and C side by side, one product since the convolution reads it whole; time steps."""
        if self.joint:
            return self.in_proj.pieces(x_BTD, (self.widths[0], sum(self.widths), self.heads))
        return [self.z(x_BTD), as_one(x_BTD, *self.convolved), self.dt(x_BTD)]

    def _convolved(self, xBC: Tensor, context: Context, cache: RecurrentCache | None) -> Sequence[Tensor]:
        """x, B and C after the convolution, (B, T, ...); the cache's convolution moves on."""
        pieces, inputs = causal_conv_pieces(
            xBC,
            self.widths,
            self.conv,
            self.conv_bias,
            activation="silu",
            doc_ids=context.doc_ids,
            state_BCK=None if cache is None else cache.conv,
            backend=context.kernels,
        )
        if cache is not None:
            cache.conv = inputs
        return pieces

    def flops(self, context_length: int) -> float:
        """Projections, convolution, and the state's work; see state_flops."""
        projections = sum(m.flops() for m in self.children() if isinstance(m, Linear))
        width = self.widths[0] // self.heads
        return projections + 2 * self.conv.numel() + state_flops(self.heads, self.states, width, delta=False)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length. The state is (batch, H, P, N)."""
        shape = (batch, self.heads, self.widths[0] // self.heads, self.states)
        channels, _, width = self.conv.shape
        conv = torch.zeros(batch, channels, width - 1, dtype=dtype, device=device)
        return RecurrentCache(torch.zeros(shape, dtype=torch.float32, device=device), conv)


def heads_of(config: ModelConfig, layer_index: int) -> int:
    """expand * n / head_dim, rounded up to a multiple of head_multiple."""
    options = mixer_options(config, layer_index, Options)
    unit = options.head_multiple * options.head_dim
    return options.head_multiple * math.ceil(options.expand * config.n_embd / unit)


def groups_of(options: Options, heads: int) -> int:
    """The option groups. Raises UserError where the heads are no multiple of it."""
    if heads % options.groups:
        raise UserError(
            f"The option groups of the mixer mamba2 is {options.groups}, which does not divide its {heads} heads. "
            "Give a divisor (--mixer_options)."
        )
    return options.groups


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> Mamba2:
    """The registry's entry point."""
    return Mamba2(config, layer_index)


def memory(config: ModelConfig, layer_index: int) -> MemoryForm:
    """The scan's output with its D x, heads joined, before gate and norm."""
    return MemoryForm(heads_of(config, layer_index) * mixer_options(config, layer_index, Options).head_dim, normed=True)
