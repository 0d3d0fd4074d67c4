"""Token smear: a part of the previous token's embedding in each embedding, as in modded-nanogpt and nanochat.

    x_t <- x_t + s sigmoid(w . x_t[:24]) x_{t-1}

so that the first layer sees pairs of tokens, for which attention would need a head that looks one position back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_gpt.config.model import ModelConfig
from lit_gpt.roles import role

GATE_CHANNELS = 24  # of an embedding that its gate reads, as in nanochat's gpt.py


class TokenSmear(nn.Module):
    """s starts at 0: nothing is mixed in. The gate starts as ModelConfig.starts says."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        channels = min(GATE_CHANNELS, config.n_embd)
        self.gate = role(nn.Parameter(torch.empty(1, channels)), "gate", config.starts.draw_gate)
        self.scale = role(nn.Parameter(torch.empty(1)), "scalar", 0.0)

    def forward(self, x_BTD: Tensor, doc_ids_BT: Tensor | None = None, before_B1D: Tensor | None = None) -> Tensor:
        """Embeddings with a part of the ones before them, (B, T, n), in x's dtype.

        doc_ids_BT: the first token of a document gets nothing of the one before. before_B1D: the embedding before the
        first of these, in cached decoding; None at the start of a row.
        """
        first_B1D = torch.zeros_like(x_BTD[:, :1]) if before_B1D is None else before_B1D
        previous_BTD = torch.cat([first_B1D, x_BTD[:, :-1]], dim=1)
        gates_BT1 = torch.sigmoid(F.linear(x_BTD[..., : self.gate.shape[1]], self.gate.to(x_BTD.dtype)))
        if doc_ids_BT is not None:
            same_BT = F.pad(doc_ids_BT[:, 1:] == doc_ids_BT[:, :-1], (1, 0))  # a row starts a document
            gates_BT1 = gates_BT1 * same_BT[..., None]
        return (x_BTD + self.scale * gates_BT1 * previous_BTD).to(x_BTD.dtype)

    def flops(self) -> float:
        """Forward matmul FLOPs per token: those of the gate."""
        return 2.0 * self.gate.numel()
