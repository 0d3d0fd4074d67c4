"""Matrix products of groups of rows, each with a matrix of its own: the work of experts.

    grouped_mm(a_PK, b_EKN, ends_E)   (P, N): the rows of group e times b[e]
    grouped_mm(a_MP, b_PN, ends_E)    (E, M, N): group e's columns of a times its rows of b

Rows are sorted by group; ends_E says where each group ends, on the device, so that nothing waits for
it. These are the two forms of torch.nn.functional.grouped_mm that forward and backward passes need.

Shapes: P rows in all, E groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.ops.backends import Backend, choose, explain_table, missing

MULTIPLE = 8  # of widths: the kernels take strides of 16 bytes


class Request(NamedTuple):
    """What a backend is chosen by. sizes: K and N, or M and N."""

    device: str
    dtype: torch.dtype
    sizes: tuple[int, int] = (1024, 1024)


def grouped_mm(a: Tensor, b: Tensor, ends_E: Tensor, *, largest: int | None = None, backend: str = "auto") -> Tensor:
    """The two forms at the top of the file, told apart by b's dimensions; in the dtype of a and b.

    Empty groups are allowed.

    ends_E: (E,) int32, increasing, the last at most P. Rows after it give undefined results in the
    first form and nothing in the second. largest: rows of the largest group, where the host knows.
    Raises UserError for a backend that is unknown or does not do this.
    """
    if 0 in a.shape:  # kernels need not take this
        return a.new_zeros(len(a), b.shape[-1]) if b.ndim == 3 else a.new_zeros(len(ends_E), len(a), b.shape[-1])
    request = Request(a.device.type, a.dtype, (a.shape[1] if b.ndim == 3 else a.shape[0], b.shape[-1]))
    return BACKENDS[pick(request, backend)].run(a, b, ends_E, largest)


def pick(request: Request, backend: str) -> str:
    """The row that does a request. Raises UserError for a backend that is unknown or does not do it."""
    return choose("grouped matmul", BACKENDS, request, backend)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16))


def _torch(a: Tensor, b: Tensor, ends_E: Tensor, largest: int | None) -> Tensor:
    """torch's grouped matrix product, a CUTLASS kernel on Hopper."""
    # Under this name in torch 2.11 to 2.14; torch.nn.functional.grouped_mm calls it.
    return torch._grouped_mm(a, b, offs=ends_E)


@torch.compiler.assume_constant_result
def _older_than_hopper() -> bool:
    return torch.cuda.get_device_capability() < (9, 0)


def _torch_refuses(request: Request) -> str:
    return _kernel_refuses(request) if hasattr(torch, "_grouped_mm") else "this torch has no grouped matmul"


def _kernel_refuses(request: Request) -> str:
    """What is asked of both kernels."""
    if request.dtype != torch.bfloat16:
        return f"it is for bfloat16, not {request.dtype}"
    if request.device == "cuda" and _older_than_hopper():
        return "its CUDA kernel needs compute capability 9.0"
    if any(size % MULTIPLE for size in request.sizes):
        return f"widths must be multiples of {MULTIPLE}, not {request.sizes[0]} and {request.sizes[1]}"
    return ""


def _quack(a: Tensor, b: Tensor, ends_E: Tensor, largest: int | None) -> Tensor:
    """quack-kernels' grouped product, that of SonicMoE (arXiv:2512.14080), on Hopper and later."""
    run = torch.ops.quack.gemm_out  # registered by the import that `missing` made; a compiler can trace it
    bounds = F.pad(ends_E, (1, 0))
    # Untuned: tuning times dozens of kernels for each new number of rows, and need not choose the same ones again.
    if b.ndim == 3:
        out = a.new_empty(len(a), b.shape[-1])
        run(a.contiguous(), b, out, cu_seqlens_m=bounds, tuned=False)
    else:
        out = a.new_empty(len(ends_E), len(a), b.shape[-1])
        run(a.mT.contiguous().mT, b.contiguous(), out, cu_seqlens_k=bounds, tuned=False)
    return out


def _quack_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    return _kernel_refuses(request) or missing("quack.gemm_interface")


@torch.compiler.disable
def _padded(a: Tensor, b: Tensor, ends_E: Tensor, largest: int | None) -> Tensor:
    """One batched product of groups padded to the largest; the host waits for its size unless it is given."""
    rows = a if b.ndim == 3 else a.T
    lengths_E = torch.diff(ends_E, prepend=ends_E.new_zeros(1))
    # Place c of expert e is row ends_e - length_e + c; places beyond an expert's rows are zeroed.
    width = int(lengths_E.max()) if largest is None else largest
    place_EC = torch.arange(width, device=a.device) + (ends_E - lengths_E)[:, None]
    inside_EC1 = (place_EC < ends_E[:, None])[..., None]
    place_EC = place_EC.clamp(max=max(len(rows) - 1, 0))
    a_ECX = torch.where(inside_EC1, rows[place_EC], 0)
    if b.ndim == 2:
        return a_ECX.mT @ torch.where(inside_EC1, b[place_EC], 0)
    # What lies outside goes to a row of its own at the end.
    target_EC = torch.where(inside_EC1[..., 0], place_EC, len(rows)).flatten()
    out = a.new_zeros(len(rows) + 1, b.shape[-1])
    return out.index_copy(0, target_EC, (a_ECX @ b).flatten(0, 1))[:-1]


@torch.compiler.disable
def _plain(a: Tensor, b: Tensor, ends_E: Tensor, largest: int | None) -> Tensor:
    """One product after the other; the host waits for the sizes."""
    ends = ends_E.tolist()
    spans = [slice(start, end) for start, end in zip([0, *ends], ends)]
    if b.ndim == 2:
        return torch.stack([a[:, span] @ b[span] for span in spans])
    parts = [a[span] @ matrix for span, matrix in zip(spans, b)]
    return torch.cat([*parts, a.new_zeros(len(a) - ends[-1], b.shape[-1])])


BACKENDS: dict[str, Backend] = {
    "torch": Backend(_torch, _torch_refuses),
    "quack": Backend(_quack, _quack_refuses),
    "padded": Backend(_padded, lambda r: "", slow=True),
    "plain": Backend(_plain, lambda r: ""),
}
