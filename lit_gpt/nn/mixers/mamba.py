"""Mamba (arXiv:2312.00752): a state-space model whose step, input and output maps depend on the token.

Order: project, short convolution and silu, selective scan, gate, project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn

from lit_gpt.config.bounds import Bounds
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.readers import SHAPES
from lit_gpt.nn.context import Context
from lit_gpt.nn.linear import Linear, gated, joint, laid_along_time, last_linear, together
from lit_gpt.nn.mixers import Count, MemoryForm, SharedState, mixer_options
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.nn.recurrent import RecurrentCache, advance, state_flops, time_step_bias
from lit_gpt.ops import conv, selective_scan
from lit_gpt.ops.dtypes import upcast
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers

READS_HEADS = False


@dataclass(frozen=True)
class Options:
    """d_state: states per channel. d_conv: width of the short convolution. expand: channels over n.
    dt_rank: width of the low-rank map to the time steps, None for ceil(n / 16). inner_norms: an RMSNorm
    each of that map's inside, B and C (Jamba, arXiv:2403.19887; Falcon Mamba, arXiv:2410.05355, has no gains).
    joint: maps of one input are one matrix, in_proj and x_proj, as in ArchScale and mamba_ssm: the same model to AdamW,
    another one to optimizers that see whole matrices (the Muon family).
    """

    d_state: Count = 16
    d_conv: Annotated[int, Bounds(2)] = 4
    expand: Count = 2
    dt_rank: Count | None = field(default=None, metadata=SHAPES)
    inner_norms: bool = False
    joint: bool = False


class Mamba(nn.Module):
    """expand * n channels; time steps, B and C are projections of the convolved channels."""

    def __init__(self, config: ModelConfig, layer_index: int):
        super().__init__()
        options, n = mixer_options(config, layer_index, Options), config.n_embd
        inner, states = options.expand * n, options.d_state
        rank = options.dt_rank or math.ceil(n / 16)  # "auto" in mamba_ssm's code
        self.joint = options.joint
        self.shares_memory = config.layers[layer_index].memory == "mixer"
        self.widths = rank, states, states
        if options.joint:
            self.in_proj = Linear(n, 2 * inner, maps=2)
        else:
            self.x, self.z = Linear(n, inner), Linear(n, inner)
        self.conv = role(nn.Parameter(torch.empty(inner, 1, options.d_conv)), "conv")
        self.conv_bias = role(nn.Parameter(torch.empty(inner)), "vector", 0.0)
        if options.joint:
            self.x_proj = Linear(inner, sum(self.widths))
        else:
            self.dt_low, self.B, self.C = (Linear(inner, width) for width in self.widths)
            self.selection = together(self.dt_low, self.B, self.C)
        norms = [RMSNorm(width, config.norm_eps) for width in self.widths] if options.inner_norms else []
        self.inner_norms = nn.ModuleList(norms)
        self.dt = Linear(rank, inner)
        self.dt_bias = role(nn.Parameter(torch.empty(inner)), "vector", time_step_bias)
        self.A_log = role(nn.Parameter(torch.empty(inner, states)), "vector", _log_count)
        # The skip D x starts as the identity, as in mamba_ssm.
        self.D = role(nn.Parameter(torch.empty(inner)), "vector", 1.0)
        self.out = last_linear(config, inner)

    def forward(
        self, x_BTD: Tensor, context: Context, shared: SharedState | None = None, cache: RecurrentCache | None = None
    ) -> tuple[Tensor, SharedState | None]:
        """See lit_gpt.nn.mixers.Mixer. Shares the scan's output before the gate, where its layer shares a memory."""
        # A zero state is left out at the start: the kernel for whole sequences takes none.
        state = None if cache is None or not cache.begun else cache.state
        along = selective_scan.reads_along_time(x_BTD, self.A_log.shape[1], context.doc_ids, state, context.kernels)
        x_BTC, z_BTC = self._entering(x_BTD, context, cache, along)
        x_BTC, inputs = conv.causal_conv(
            x_BTC,
            self.conv,
            self.conv_bias,
            activation="silu",
            doc_ids=context.doc_ids,
            state_BCK=None if cache is None else cache.conv,
            backend=context.kernels,
        )
        if along:  # with documents the convolution has channels last
            x_BTC = laid_along_time(x_BTC)
        dt_low, B, C = self._selection(x_BTC, along)
        y_BTC, state = selective_scan.selective_scan(
            x_BTC,
            self.dt(dt_low, along_time=along),
            -upcast(self.A_log).exp(),
            B,
            C,
            self.D,
            self.dt_bias,
            doc_ids=context.doc_ids,
            state=state,
            backend=context.kernels,
        )
        if cache is not None:
            cache.conv = inputs
        advance(cache, state, x_BTD.shape[1])
        return self.out(gated(y_BTC, z_BTC)), SharedState(memory=y_BTC) if self.shares_memory else None

    def _entering(self, x_BTD: Tensor, context: Context, cache: RecurrentCache | None, along: bool) -> Sequence[Tensor]:
        """What is convolved, and the gate. along: whether the scan, and so all before and after it, is along time."""
        inputs = None if cache is None else cache.conv
        channels, _, width = self.conv.shape
        turned = along and conv.reads_along_time(x_BTD, channels, width, context.doc_ids, inputs, context.kernels)
        if self.joint:
            return self.in_proj.halves(x_BTD, (turned, along))
        return self.x(x_BTD, along_time=turned), self.z(x_BTD, along_time=along)

    def _selection(self, x_BTC: Tensor, along: bool) -> list[Tensor]:
        """What the scan's maps depend on the token by: low-rank time steps, B and C."""
        if self.joint:
            parts = list(self.x_proj(x_BTC, along_time=along).split(self.widths, dim=-1))
        else:
            parts = joint(x_BTC, *self.selection, along_time=along)
        return [norm(part, part.dtype) for norm, part in zip(self.inner_norms, parts)] if self.inner_norms else parts

    def flops(self, context_length: int) -> float:
        """Projections, convolution, and the state's work; see state_flops."""
        projections = sum(m.flops() for m in self.children() if isinstance(m, Linear))
        channels, states = self.A_log.shape
        return projections + 2 * self.conv.numel() + state_flops(channels, states, 1, delta=False)

    def new_cache(self, batch: int, max_len: int, device: torch.device, dtype: torch.dtype) -> RecurrentCache:
        """Of the same size at every length. The state is (batch, C, N)."""
        channels, _, width = self.conv.shape
        state = torch.zeros(batch, *self.A_log.shape, dtype=torch.float32, device=device)
        return RecurrentCache(state, torch.zeros(batch, channels, width - 1, dtype=dtype, device=device))


def _log_count(full: Tensor, generator: torch.Generator) -> None:
    """log(1..N) in every channel (S4D-real, arXiv:2206.11893)."""
    full.copy_(torch.arange(1, full.shape[1] + 1, device=full.device).log().expand_as(full))


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> Mamba:
    """The registry's entry point."""
    return Mamba(config, layer_index)


def memory(config: ModelConfig, layer_index: int) -> MemoryForm:
    """The scan's output with its D x, before the gate."""
    return MemoryForm(mixer_options(config, layer_index, Options).expand * config.n_embd, normed=False)
