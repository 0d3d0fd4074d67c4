"""Rows of tokens for each of their pairs, in the order of experts: plain torch, and one Triton kernel.

Gathering, pair by pair, reads a token's row again for each of its K experts, and these lie so far apart in the order of
experts that no cache holds it until then: 131,072 pairs of 2,048 numbers in bf16 took as long as reading and writing
all of them at 3.8 TB/s. The kernel goes through the tokens instead, reads each row once, and writes it to its K places.

Shapes: T tokens, D model width, K experts per token, P = T K pairs sorted by expert.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_gpt.ops.backends import missing
from lit_gpt.ops.triton_calls import launch

KERNELS = "lit_gpt.ops.kernels.expert_rows"
WIDEST = 2048  # columns at a time: 8 numbers for each thread of 8 warps, whose loads are 16 bytes in bf16


def rows_of_pairs(x_TD: Tensor, token_P: Tensor, place_P: Tensor) -> Tensor:
    """x[token_p] for each pair p, (P, D). place_P: where pair t K + j of the tokens' order lies, a permutation."""
    if x_TD.is_cuda and not missing("triton"):
        return _spread(x_TD, place_P)
    return x_TD[token_P]


# An operation by itself: a compiler would make the rows of x and of dy at once, and backward wants one after the other.
@torch.library.custom_op("lit_gpt::rows_of_pairs", mutates_args=())
def _spread(x_TD: Tensor, place_P: Tensor) -> Tensor:
    x_TD, place_P, (tokens, width) = x_TD.contiguous(), place_P.contiguous(), x_TD.shape
    out_PD = x_TD.new_empty(len(place_P), width)
    if out_PD.numel():
        wide = min(1 << (width - 1).bit_length(), WIDEST)
        constants = {"K": len(place_P) // tokens, "WIDTH": wide, "num_warps": max(wide // 256, 1)}
        launch(KERNELS, "spread", (tokens, -(-width // wide)), x_TD, place_P, out_PD, width, **constants)
    return out_PD


@_spread.register_fake
def _(x_TD: Tensor, place_P: Tensor) -> Tensor:
    return x_TD.new_empty(len(place_P), x_TD.shape[1])
