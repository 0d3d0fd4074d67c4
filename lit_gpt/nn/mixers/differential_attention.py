"""Differential attention (arXiv:2410.05258): the difference of two softmax maps.

Heads come in pairs, even and odd: (q1, q2), (k1, k2), and both maps read both values:

    A_i = softmax(scale q_i k_i^T) [v1; v2]
    y   = (1 - lambda_init) RMSNorm(A_1 - lambda A_2)      over the pair, 2 head_dim wide
    lambda = exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from lit_gpt.config.bounds import Bounds
from lit_gpt.config.model import ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.context import Context
from lit_gpt.nn.mixers import mixer_options
from lit_gpt.nn.mixers.attention import OWN_VALUES, SOFTMAX_ATTENTION, Attention, memory
from lit_gpt.nn.norm import RMSNorm
from lit_gpt.ops.dtypes import upcast
from lit_gpt.roles import role
from lit_gpt.scaling.base import Multipliers

__all__ = ["OWN_VALUES", "SOFTMAX_ATTENTION", "DifferentialAttention", "Options", "build", "memory"]

LAMBDA_STD = 0.1  # of the four lambda vectors at the start; section 2.1 of the paper and its code


@dataclass(frozen=True)
class Options:
    """lambda_init: None is the paper's 0.8 - 0.6 exp(-0.3 layer), layers counted from 0."""

    lambda_init: Annotated[float, Bounds(0, 1, "high")] | None = None


class DifferentialAttention(Attention):
    """Attention whose heads work in pairs. Raises UserError where heads are odd in number."""

    value_heads = 2
    softmax_only = True

    def __init__(self, config: ModelConfig, layer_index: int, multipliers: Multipliers):
        super().__init__(config, layer_index, multipliers)
        if config.n_head % 2 or config.n_kv_head % 2:
            raise UserError(
                f"Differential attention takes heads in pairs, but the model has n_head={config.n_head} and "
                f"n_kv_head={config.n_kv_head}. Both must be even: choose another --depth or --train_model."
            )
        given = mixer_options(config, layer_index, Options).lambda_init
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * layer_index) if given is None else given
        vectors = (role(nn.Parameter(torch.empty(config.head_dim)), "vector", _draw_lambda) for _ in range(4))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = vectors
        self.pair_norm = RMSNorm(2 * config.head_dim, config.norm_eps)

    def attend(self, q_BTHD: Tensor, k_BKGD: Tensor, v_BKGD: Tensor, context: Context) -> Tensor:
        """See Attention. One softmax per map, over values of both heads of a pair."""
        queries, keys = (x.unflatten(2, (-1, 2)).unbind(3) for x in (q_BTHD, k_BKGD))
        values = v_BKGD.unflatten(2, (-1, 2)).flatten(3)
        sinks = (None, None) if self.sink is None else self.sink.unflatten(0, (-1, 2)).unbind(1)
        first, second = (self.softmax(q, k, values, context, s) for q, k, s in zip(queries, keys, sinks))
        # In fp32: what is left of two nearly equal maps is small.
        difference = upcast(first) - self.mix() * upcast(second)
        # The factor gives the gradients the size that they have in ordinary attention (section 2.1 of the paper).
        y_BTPE = self.pair_norm(difference, q_BTHD.dtype) * (1 - self.lambda_init)
        return y_BTPE.unflatten(-1, (2, -1)).flatten(2, 3)

    def mix(self) -> Tensor:
        """lambda, a scalar in at least fp32."""
        q1, k1, q2, k2 = (upcast(p) for p in (self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2))
        return torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + self.lambda_init


def _draw_lambda(full: Tensor, generator: torch.Generator) -> None:
    full.normal_(0.0, LAMBDA_STD, generator=generator)


def build(config: ModelConfig, layer_index: int, multipliers: Multipliers) -> DifferentialAttention:
    """The registry's entry point."""
    return DifferentialAttention(config, layer_index, multipliers)
