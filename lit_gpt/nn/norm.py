"""Normalisation over the last dimension: statistics and gain in fp32, result in a chosen dtype.

In bf16 a sum of thousands of squares would have 8 bits, and a gain near 1 would be rounded to
steps of 1/128.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.ops.dtypes import upcast
from lit_gpt.ops.fused import fused
from lit_gpt.roles import role


@fused
def rms_norm(x: Tensor, weight: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight, computed in at least fp32, in dtype."""
    return F.rms_norm(upcast(x), x.shape[-1:], weight, eps).to(dtype)


class RMSNorm(nn.Module):
    """RMSNorm, x / sqrt(mean(x^2) + eps) * gain (arXiv:1910.07467, equation 4).

    gain: False leaves the gain out. groups: means are over each of so many equal parts of x.
    """

    def __init__(self, width: int, eps: float, gain: bool = True, groups: int = 1):
        super().__init__()
        self.eps, self.groups = eps, groups
        self.weight = role(nn.Parameter(torch.empty(width)), "vector", 1.0) if gain else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Same shape as x, in dtype."""
        weight = None if self.weight is None else upcast(self.weight)
        if self.groups == 1:
            return rms_norm(x, weight, self.eps, dtype)
        parts = upcast(x).unflatten(-1, (self.groups, -1))
        y = F.rms_norm(parts, parts.shape[-1:], None, self.eps).flatten(-2)
        return (y if weight is None else y * weight).to(dtype)


class LayerNorm(nn.Module):
    """LayerNorm, (x - mean) / sqrt(var + eps) * gain + bias (arXiv:1607.06450). gain: False leaves both out."""

    def __init__(self, width: int, eps: float, gain: bool = True):
        super().__init__()
        self.eps = eps
        self.weight = role(nn.Parameter(torch.empty(width)), "vector", 1.0) if gain else None
        self.bias = role(nn.Parameter(torch.empty(width)), "vector", 0.0) if gain else None

    def forward(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Same shape as x, in dtype."""
        weight = None if self.weight is None else upcast(self.weight)
        bias = None if self.bias is None else upcast(self.bias)
        return F.layer_norm(upcast(x), x.shape[-1:], weight, bias, self.eps).to(dtype)


KINDS = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}


def build_norm(config: ModelConfig, width: int | None = None, gain: bool = True) -> RMSNorm | LayerNorm:
    """The model's norm at its width n, or at another width. gain: whether it has one where the model's norms do."""
    return KINDS[config.norm](config.n_embd if width is None else width, config.norm_eps, gain and config.norm_gain)
