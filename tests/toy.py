"""A language model small enough for many processes, with the shapes that are hard to shard:
17 rows for 2 or 4 ranks, vectors, a tied table, a buffer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lit_gpt.roles import role

VOCAB, WIDTH = 17, 8


class ToyBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = role(nn.Parameter(torch.empty(WIDTH)), "vector", 1.0)
        self.up = role(nn.Parameter(torch.empty(17, WIDTH)), "matrix")
        self.down = role(nn.Parameter(torch.empty(WIDTH, 17)), "matrix")

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        hidden = F.rms_norm(x_BTD, (WIDTH,)) * self.gain
        hidden = F.linear(hidden.to(self.up.dtype), self.up).relu()
        return x_BTD + F.linear(hidden, self.down)


class Toy(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.wte = role(nn.Parameter(torch.empty(VOCAB, WIDTH)), "embedding")
        self.blocks = nn.ModuleList(ToyBlock() for _ in range(depth))
        self.gain = role(nn.Parameter(torch.empty(WIDTH)), "vector", 1.0)
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, tokens_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
        """Loss, summed over tokens."""
        x_BTD = F.embedding(tokens_BT, self.wte)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits = F.linear((x_BTD * self.gain).to(self.wte.dtype), self.wte)
        return F.cross_entropy(logits.float().flatten(0, 1), targets_BT.flatten(), reduction="sum")


@torch.no_grad()
def initialise(model: nn.Module) -> None:
    """The same full tensors on every rank, then the local part of each."""
    for i, p in enumerate(model.parameters()):
        full = torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.5
        p.copy_(_like(full, p))
    model.get_buffer("seen").zero_()


def _like(full: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(full, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else full
