"""Attention of one query per row over keys whose places are reused, with nothing in it that changes from token to token
but the values of tensors: what a CUDA graph of a decoding step needs.

Shapes: B rows, S places of each, H query heads, G key-value heads, D head dimension.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# Head dimensions become multiples of it. The kernel takes multiples of 8; 16 is what FlexAttention, which reads
# prompts, takes at least.
ALIGNED = 16
LARGEST = 256  # head dimension of the kernel
OLDEST = (8, 0)  # compute capability that it is for: Ampere


class Places(NamedTuple):
    """used_B: places of each row that hold keys, the first ones. starts: 0, 1, ... B, which are queries' offsets, and B
    times S of the keys'. All int32, on the device.
    """

    used_B: Tensor
    query_starts: Tensor
    key_starts: Tensor

    def mask(self, size: int) -> Tensor:
        """True where a query sees a place, (B, 1, 1, S)."""
        return (torch.arange(size, device=self.used_B.device) < self.used_B[:, None])[:, None, None]


def places(used_B: Tensor, size: int) -> Places:
    """Of rows that use so many places of `size`."""
    rows = torch.arange(len(used_B) + 1, device=used_B.device, dtype=torch.int32)
    return Places(used_B, rows, rows * size)


def runs(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether `flash` is for such queries. Else attention over places is plain torch's, which reads all of them."""
    return (
        device.type == "cuda"
        and dtype in (torch.bfloat16, torch.float16)
        and head_dim <= LARGEST
        and torch.version.hip is None  # where its form for several lengths is another library's
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= OLDEST
    )


def flash(q_B1HD: Tensor, k_BSGD: Tensor, v_BSGV: Tensor, where: Places, scale: float) -> Tensor:
    """The weighted sums, (B, 1, H, V), by torch's own FlashAttention for half precision.

    k and v may have zeros behind the D numbers of q, up to a multiple of ALIGNED; V may be a multiple of D.
    """
    dim, padded = q_B1HD.shape[-1], k_BSGD.shape[-1]
    q = F.pad(q_B1HD[:, 0], (0, padded - dim))
    pieces = [
        # Its form for rows of several lengths reads those lengths from the device (seqused_k).
        torch.ops.aten._flash_attention_forward(
            q,
            k_BSGD.flatten(0, 1),
            piece.flatten(0, 1),
            where.query_starts,
            where.key_starts,
            1,
            k_BSGD.shape[1],
            0.0,
            False,
            False,
            scale=scale,
            seqused_k=where.used_B,
        )[0][..., :dim]
        for piece in v_BSGV.split(padded, dim=-1)
    ]
    return torch.cat(pieces, dim=-1)[:, None]
