"""The products of experts by kernels of quack-kernels that gather rows and apply SwiGLU as they go.

These are those of SonicMoE (arXiv:2512.14080, section 4): a product reads the rows of its tokens where they lie, and
its last step is the activation, or in backward the activation's gradient with the gates. So no gathered row and no
gradient of an activation goes through memory. h, which is kept for backward, has gate and up side by side for each
hidden unit; weights and their gradients keep the order that every backend reads.

Shapes: as in ops.experts.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.grouped_gemm import Request, pick


def does(x_TD: Tensor, down_EDI: Tensor, kind: str, backend: str) -> bool:
    """Whether these kernels were asked for and do this kind. Raises UserError where they cannot run."""
    if backend != "quack" or kind != "swiglu" or not len(x_TD):
        return False
    return pick(Request(x_TD.device.type, x_TD.dtype, (down_EDI.shape[1], down_EDI.shape[2])), backend) == "quack"


def forward(x_TD: Tensor, up_EHD: Tensor, down_EDI: Tensor, token_P: Tensor, ends_E: Tensor) -> tuple[Tensor, Tensor]:
    """(what each pair's expert gives, (P, D); h (P, H), for `backward`). token_P: the token of each pair, in int32."""
    pairs, (_, width, inner) = len(token_P), down_EDI.shape
    bounds, x_TD = F.pad(ends_E, (1, 0)), x_TD.contiguous()
    h_PH, a_PI, out_PD = (x_TD.new_empty(pairs, size) for size in (2 * inner, inner, width))
    # Untuned, see grouped_gemm._quack. "B" tells that its halves, gate and up, lie one after the other.
    gated, product = torch.ops.quack.gemm_gated_out, torch.ops.quack.gemm_out
    options = {"cu_seqlens_m": bounds, "tuned": False}
    gated(x_TD, up_EHD.mT, h_PH, a_PI, activation="swiglu", A_idx=token_P, concat_layout="B", **options)
    product(a_PI, down_EDI.mT, out_PD, **options)
    return out_PD, h_PH


def backward(
    dy_TD: Tensor,
    h_PH: Tensor,
    x_TD: Tensor,
    gates_P: Tensor,
    up_EHD: Tensor,
    down_EDI: Tensor,
    token_P: Tensor,
    ends_E: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of each pair's row (P, D), of the gates (P,), of up and of down."""
    bounds, dy_TD, x_TD = F.pad(ends_E, (1, 0)), dy_TD.contiguous(), x_TD.contiguous()
    product = torch.ops.quack.gemm_out
    scaled_PI = h_PH.new_empty(len(h_PH), down_EDI.shape[2])
    dh_PH, dx_PD = torch.empty_like(h_PH), x_TD.new_empty(len(h_PH), x_TD.shape[1])
    d_up, d_down = torch.empty_like(up_EHD), torch.empty_like(down_EDI)
    by_row = {"cu_seqlens_m": bounds, "tuned": False}
    by_expert = {"cu_seqlens_k": bounds, "A_idx": token_P, "tuned": False}
    d_gates_P = torch.ops.quack.gemm_dgated_out(
        dy_TD,
        down_EDI,
        h_PH,
        dh_PH,
        scaled_PI,
        colvec_scale=gates_P,
        activation="swiglu",
        colvec_reduce=True,
        A_idx=token_P,
        dynamic_scheduler=False,  # so that sums come in the same order again
        **by_row,
    )
    product(dy_TD.mT, scaled_PI, d_down, **by_expert)
    product(x_TD.mT, dh_PH, d_up.mT, concat_layout="out", **by_expert)
    product(dh_PH, up_EHD, dx_PD, concat_layout="B", **by_row)
    return dx_PD, d_gates_P, d_up, d_down
