"""Value embeddings: what attention adds to its values, straight from a token's number.

    v_t <- v_t + g_t * table[token_t],  g_t = 2 sigmoid(W x_t[:32]), one gate for each key-value head

A table lookup is almost free, and gives layers far from the input the token itself. The idea is from value residual
learning (arXiv:2410.17897); tables of their own and the gate are those of modded-nanogpt and nanochat.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.roles import role

GATE_CHANNELS = 32  # of the layer's input that a gate reads, as in nanochat's gpt.py


class ValueEmbedding(nn.Module):
    """A table (padded vocabulary, n_kv_head * head_dim) and its gates, which start at 1 or near it.

    ModelConfig.starts says how near.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        width = config.n_kv_head * config.head_dim
        self.table = role(nn.Parameter(torch.empty(config.padded_vocab_size, width)), "value_table")
        channels = min(GATE_CHANNELS, config.n_embd)
        self.gate = role(nn.Parameter(torch.empty(config.n_kv_head, channels)), "gate", config.starts.draw_gate)

    def forward(self, x_BTD: Tensor, v_BTGD: Tensor, tokens_BT: Tensor) -> Tensor:
        """The values with their embeddings, in their dtype. x_BTD: the layer's input, which the gates read."""
        rows_BTGD = F.embedding(tokens_BT, self.table).to(v_BTGD.dtype).view_as(v_BTGD)
        gates_BTG = 2 * torch.sigmoid(F.linear(x_BTD[..., : self.gate.shape[1]], self.gate.to(x_BTD.dtype)))
        return v_BTGD + gates_BTG[..., None] * rows_BTGD

    def flops(self) -> float:
        """Forward matmul FLOPs per token: those of the gates."""
        return 2.0 * self.gate.numel()
