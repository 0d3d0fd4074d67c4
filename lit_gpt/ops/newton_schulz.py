"""Newton-Schulz iterations: every singular value of a matrix becomes about 1, by matrix products alone.

    o_BMN = orthogonalize(x_BMN, iteration("tuned", 5), torch.bfloat16)

With x = U S V^T the result is near U V^T: each step applies the odd polynomial
a s + b s^3 + c s^5 to the singular values, as X <- a X + (b A + c A^2) X with A = X X^T. It starts from
x / |x|, whose singular values are at most 1. Sets of (a, b, c):

| set | what it is |
|---|---|
| muon | Muon's quintic (kellerjordan.github.io/posts/muon), repeated; values end within about 0.7..1.2 |
| tuned | five triples tuned for five steps, from ArchScale's Muon |
| polar_express | greedily minimax triples (arXiv:2505.16932) with the paper's safety factor, from x over 1.01 |x| |

Shapes: B matrices of M rows and N columns. The iteration runs on the wide orientation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.ops.backends import Backend, choose, explain_table, missing, optional

Triple = tuple[float, float, float]


class Iteration(NamedTuple):
    """triples: one per step. margin: the matrix is divided by this times its norm first."""

    triples: list[Triple]
    margin: float = 1.0


MOST = 100  # steps; each multiplies a small singular value by 1.8 and more, so that all are near 1 long before
EPS = 1e-7  # smallest norm that is divided by; a zero matrix stays zero
# Rounding may push singular values a little over 1, where the fast early polynomials blow up. The paper's code
# divides twice: the matrix by 1.01 times its norm at the start, and the argument of every polynomial but the last.
SAFETY = 1.01
# For singular values from 1e-3 on, with its cushion of 0.0240733; the last one repeats.
_POLAR_EXPRESS: list[Triple] = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
]
_TUNED: list[Triple] = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
SETS = {
    "muon": Iteration([(3.4445, -4.7750, 2.0315)]),
    "tuned": Iteration(_TUNED),
    "polar_express": Iteration(
        [*((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in _POLAR_EXPRESS[:-1]), _POLAR_EXPRESS[-1]], SAFETY
    ),
}


def iteration(name: str, steps: int) -> Iteration:
    """`steps` steps with a set of coefficients, whose last triple repeats.

    Raises UserError for an unknown set, for less than one step, and for more than MOST.
    """
    if name not in SETS:
        raise UserError(
            f"Unknown Newton-Schulz coefficients {name!r}.{did_you_mean(name, SETS)} Use one of {', '.join(SETS)}."
        )
    if not 1 <= steps <= MOST:
        raise UserError(f"There cannot be {steps} Newton-Schulz steps. Use 5, or another number from 1 to {MOST}.")
    triples, margin = SETS[name]
    return Iteration([triples[min(i, len(triples) - 1)] for i in range(steps)], margin)


class Request(NamedTuple):
    """What a backend is chosen by; rows and columns of the wide orientation."""

    device: str
    dtype: torch.dtype
    rows: int
    columns: int


def orthogonalize(x_BMN: Tensor, how: Iteration, dtype: torch.dtype, backend: str = "auto") -> Tensor:
    """The nearly orthogonal factor of each matrix, (B, M, N) in dtype.

    how: see `iteration`. dtype: of the products; the norm that each
    matrix is first divided by is taken in fp32. B may be 0.
    Raises UserError for a backend that is unknown or does not do this.
    """
    rows, columns = x_BMN.shape[1:]
    # X X^T is the small one of the two Gram matrices on the wide orientation.
    if rows > columns:
        return orthogonalize(x_BMN.mT, how, dtype, backend).mT
    name = choose("Newton-Schulz", BACKENDS, Request(x_BMN.device.type, dtype, rows, columns), backend)
    if x_BMN.numel() == 0:
        return x_BMN.to(dtype)
    norms = torch.linalg.vector_norm(x_BMN, dim=(1, 2), keepdim=True, dtype=torch.float32)
    return BACKENDS[name].run((x_BMN / (how.margin * norms).clamp(min=EPS)).to(dtype), how.triples)


def explain(device: torch.device) -> list[tuple[str, bool, str]]:
    """(backend, usable on this device, reason or what it is), for `inspect env`."""
    return explain_table(BACKENDS, Request(device.type, torch.bfloat16, 1024, 4096))


def _iterate(x_BMN: Tensor, triples: list[Triple]) -> Tensor:
    for a, b, c in triples:
        gram_BMM = torch.bmm(x_BMN, x_BMN.mT)
        poly_BMM = torch.baddbmm(gram_BMM, gram_BMM, gram_BMM, beta=b, alpha=c)
        x_BMN = torch.baddbmm(x_BMN, poly_BMM, x_BMN, beta=a)
    return x_BMN


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    """One compilation for all shapes: an optimizer meets a dozen, and the products are library calls.

    Made at the first call: torch.compile imports the compiler, two seconds of every start.
    """
    return torch.compile(_iterate, dynamic=True)


def _torch(x_BMN: Tensor, triples: list[Triple]) -> Tensor:
    """Batched products of torch, compiled on a GPU."""
    return _compiled()(x_BMN, triples) if x_BMN.is_cuda else _iterate(x_BMN, triples)


def _quack(x_BMN: Tensor, triples: list[Triple]) -> Tensor:
    """quack-kernels' products with a symmetric result, which do half the work of two of three."""
    symmetric = optional("quack.gemm_interface").gemm_symmetric
    x_BMN = x_BMN.contiguous()
    for a, b, c in triples:
        gram_BMM = symmetric(x_BMN, x_BMN.mT)
        poly_BMM = symmetric(gram_BMM, gram_BMM.mT, C=gram_BMM, alpha=c, beta=b)
        x_BMN = torch.baddbmm(x_BMN, poly_BMM, x_BMN, beta=a)
    return x_BMN


def _quack_refuses(request: Request) -> str:
    if request.device != "cuda":
        return "it needs a CUDA device"
    if request.dtype not in (torch.bfloat16, torch.float16):
        return "it computes in bf16 and fp16 only"
    if torch.cuda.get_device_capability()[0] < 9:
        return "it needs a Hopper or Blackwell GPU"
    if request.rows % 8 or request.columns % 8:
        return "it needs rows and columns in multiples of 8"
    return missing("quack.gemm_interface")


BACKENDS: dict[str, Backend] = {"quack": Backend(_quack, _quack_refuses), "torch": Backend(_torch, lambda r: "")}
