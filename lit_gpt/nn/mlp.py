"""Feed-forward networks: one class per kind, `build` by LayerSpec.ffn.

Hidden widths: I for the gated kinds (three n x I matrices in all), 1.5 I for relu2 (two), so that these have 3 n I
weights. gelu has two of width I, since GPT-2's widths need not be multiples of 1.5. ModelConfig.ffn_multiple gives
dense networks of any kind a multiple of n instead.
Experts (nn/moe.py) are networks of the same kinds but gelu.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.nn.linear import Linear, last_linear
from lit_gpt.nn.norm import build_norm
from lit_gpt.ops.expert_activation import OSS_ALPHA, OSS_LIMIT
from lit_gpt.ops.fused import fused


@fused
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    return F.silu(gate) * up


class _FeedForward(nn.Module):
    """A projection up to `maps` pieces of width hidden, what the kind makes of them, a norm perhaps, and one down.

    widening: hidden / I, see the module.
    """

    maps = 1
    widening = 1.0

    def __init__(self, config: ModelConfig, hidden: int):
        super().__init__()
        self.up = Linear(config.n_embd, self.maps * hidden, bias=config.mlp_bias, gain=config.starts.up, maps=self.maps)
        self.norm = build_norm(config, hidden) if config.ffn_norm else None
        self.down = last_linear(config, hidden, config.mlp_bias)

    def inner(self, x_BTD: Tensor) -> Tensor:
        """What the down projection reads: (..., n) -> (..., hidden)."""
        raise NotImplementedError

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The network's output, (..., n) -> (..., n), in x's dtype."""
        return self.project(self.inner(x_BTD))

    def project(self, h: Tensor) -> Tensor:
        """The norm, where the model has one, and the down projection: (..., hidden) -> (..., n)."""
        return self.down(h if self.norm is None else self.norm(h, h.dtype))

    def flops(self) -> float:
        """Forward matmul FLOPs per token."""
        return self.up.flops() + self.down.flops()


class SwiGLU(_FeedForward):
    """down(silu(g) * u) with (g, u) the halves of one projection (arXiv:2002.05202)."""

    maps = 2

    def inner(self, x_BTD: Tensor) -> Tensor:
        # Two products, see Linear.pieces: 411k to 427k tokens/s at d8 on an H200 (docs/performance_details.md).
        return self.gated(*self.up.halves(x_BTD))

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """What is made of g and u."""
        return swiglu(gate, up)

    def with_memory(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """(the output, u): where gated memory units read a feed-forward network, u is what they read."""
        gate, up = self.up.halves(x_BTD)
        return self.project(self.gated(gate, up)), up


class ReLU2(_FeedForward):
    """down(relu(u)^2) (arXiv:2109.08668)."""

    widening = 1.5  # as many weights as a gated kind, see the module

    def inner(self, x_BTD: Tensor) -> Tensor:
        return F.relu(self.up(x_BTD)).square()


class GELU(_FeedForward):
    """GPT-2's: down(gelu(u)), with gelu's tanh form (arXiv:1606.08415, section 2)."""

    def inner(self, x_BTD: Tensor) -> Tensor:
        return F.gelu(self.up(x_BTD), approximate="tanh")


class OssSwiGLU(SwiGLU):
    """GPT-OSS (arXiv:2508.10925): g clamped above, u clamped on both sides, g * sigmoid(1.702 g) * (u + 1)."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        gate, up = gate.clamp(max=OSS_LIMIT), up.clamp(-OSS_LIMIT, OSS_LIMIT)
        return gate * torch.sigmoid(OSS_ALPHA * gate) * (up + 1)


KINDS: dict[str, type[_FeedForward]] = {"swiglu": SwiGLU, "relu2": ReLU2, "oss_swiglu": OssSwiGLU, "gelu": GELU}


def build(config: ModelConfig, layer_index: int) -> _FeedForward | None:
    """The layer's dense feed-forward network, or None where its LayerSpec has none."""
    kind = config.layers[layer_index].ffn
    if kind is None or config.ffn_multiple is None:
        return None if kind is None else of_width(kind, config, config.intermediate_size)
    return KINDS[kind](config, round(config.ffn_multiple * config.n_embd))


def of_width(kind: str, config: ModelConfig, width: int) -> _FeedForward:
    """A network with I = width."""
    return KINDS[kind](config, int(KINDS[kind].widening * width))
