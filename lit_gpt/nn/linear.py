"""Linear maps and the token table: fp32 master weights, compute in the activations' dtype.

There is no autocast in this project. A weight is cast where it is used; under FSDP2 it
arrives already cast and nothing happens here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.roles import Role, role


class Linear(nn.Module):
    """y = x W^T + b with W (fan_out, fan_in) of role "matrix" (or as given), b of role "vector"."""

    def __init__(self, fan_in: int, fan_out: int, *, bias: bool = False, weight_role: Role = "matrix"):
        super().__init__()
        self.weight = role(nn.Parameter(torch.empty(fan_out, fan_in)), weight_role)
        self.bias = role(nn.Parameter(torch.empty(fan_out)), "vector", 0.0) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., fan_in) -> (..., fan_out), in x's dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def flops(self) -> float:
        """Forward matmul FLOPs per token: 2 per weight."""
        return 2.0 * self.weight.numel()


class Embedding(nn.Module):
    """The token table (vocab, n)."""

    def __init__(self, vocab: int, width: int):
        super().__init__()
        self.weight = role(nn.Parameter(torch.empty(vocab, width)), "embedding")

    def forward(self, tokens_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the table, (B, T, n), in dtype."""
        return F.embedding(tokens_BT, self.weight).to(dtype)
