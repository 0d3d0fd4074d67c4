"""Kernels that do more than a product: the activation's gradients in one, rows of pairs, and quack's products, whose
wiring is tested on a CPU with plain torch in place of the kernels (tests/nn/test_moe_cuda.py runs them).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton_on_cpu import DEVICES, interpret

from lit_gpt.ops import expert_activation, expert_rows, experts, experts_quack
from lit_gpt.ops.expert_activation import MAPS, activate, activation_gradients
from lit_gpt.ops.experts import expert_ffn, sort_pairs

CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
Tensors = tuple[torch.Tensor, ...]


def pairs(kind: str, inner: int, dtype: torch.dtype, device: str = "cpu") -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = (37, MAPS[kind] * inner), (37, inner), (37,)
    h, da, gates = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    wide = torch.promote_types(dtype, torch.float32)
    return (4 * h).to(device, dtype), da.to(device, dtype), gates.sigmoid().to(device, wide)


def by_autograd(kind: str, h: torch.Tensor, da: torch.Tensor, gates: torch.Tensor) -> Tensors:
    h, gates = h.double().requires_grad_(), gates.double().requires_grad_()
    scaled = gates[:, None] * activate(kind, h)
    d_h, d_gates = torch.autograd.grad(scaled, (h, gates), da.double())
    return d_h, scaled.detach(), d_gates


@pytest.mark.parametrize("kind", list(MAPS))
def test_gradients_around_an_activation(kind: str) -> None:
    given = pairs(kind, 12, torch.float64)
    for found, expected in zip(activation_gradients(kind, *given), by_autograd(kind, *given)):
        torch.testing.assert_close(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("inner", [24, 256, 1000, 1504])
@pytest.mark.parametrize("kind", ["swiglu", "oss_swiglu"])
def test_one_kernel_makes_them(kind: str, inner: int) -> None:
    """Rounding to bf16 costs 0.0017; the gates' gradients are not rounded."""
    given = pairs(kind, inner, torch.bfloat16, "cuda")
    found = expert_activation._in_one_pass(*given, kind == "oss_swiglu")
    for mine, exact, most in zip(found, by_autograd(kind, *given), (0.002, 0.002, 1e-5)):
        assert (mine.double() - exact).norm() / exact.norm() < most


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("tokens", "width", "k"), [(5, 24, 3), (9, 2056, 1), (4, 100, 8), (0, 8, 2)])
def test_rows_of_pairs(tokens: int, width: int, k: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel only moves numbers. By Triton's interpreter, where there is no GPU."""
    if device == "cpu":
        interpret(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    routes = sort_pairs(torch.rand(tokens, k, generator=generator).argsort(-1).to(device), k)
    wide = torch.randn(tokens, 2 * width, generator=generator).to(device, torch.bfloat16)
    for x in (wide[:, :width], wide[:, width:].contiguous()):  # rows that lie apart, and others
        found = expert_rows._spread(x, routes.place_P.int())
        assert torch.equal(found, x[routes.order_P // k])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backward_has_the_rows_of_one_gradient_at_a_time() -> None:
    """In units of P D numbers, with I = D: at most those of dy, of both sides of the activation (1 + 2), and 1 for the
    gated activation. With rows of x and the gradient of up beside two of these it would be more than 6.
    """
    tokens, k, width, count = 8192, 4, 512, 32
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    routes = sort_pairs(torch.rand(tokens, count, generator=generator, device="cuda").argsort(-1)[:, :k], count)
    up, down = normal(count, 2 * width, width), normal(count, width, width)
    given = normal(tokens, width), normal(tokens * k, 2 * width), normal(tokens, width)
    indices = routes.order_P, (routes.order_P // k).int(), routes.place_P.int(), routes.ends_E
    arguments = *given, normal(tokens, k, dtype=torch.float32), up, down, *indices, None, "swiglu", "auto"
    unit, peak = tokens * k * width * 2, 0
    for _ in range(2):  # the first call compiles
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found = experts._backward_op(*arguments)
        peak = torch.cuda.max_memory_allocated() - before
        del found
    assert 4 * unit < peak < 5.5 * unit


def by_pairs(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Halves along a dimension, one number of each in turn."""
    return x.unflatten(dim, (2, -1)).transpose(dim - 1, dim).flatten(dim - 1, dim)


def spans(bounds: torch.Tensor) -> list[slice]:
    return [slice(a, b) for a, b in zip(bounds.tolist(), bounds.tolist()[1:])]


def gemm_out(
    a: torch.Tensor,
    b: torch.Tensor,
    out: torch.Tensor,
    cu_seqlens_m: Any = None,
    cu_seqlens_k: Any = None,
    A_idx: Any = None,
    tuned: bool = True,
    concat_layout: str = "",
) -> None:
    """What quack.gemm_interface.gemm_ref of version 0.6.5 says of these arguments."""
    if concat_layout == "B":
        b = by_pairs(b, -2 if b.stride(-1) == 1 else -1)
    if cu_seqlens_m is not None:
        a = a if A_idx is None else a[A_idx]
        made = torch.cat([a[s] @ m for s, m in zip(spans(cu_seqlens_m), b)])
    else:
        a = a if A_idx is None else a[:, A_idx]
        made = torch.stack([a[:, s] @ b[s] for s in spans(cu_seqlens_k)])
    if concat_layout == "out":
        assert out.stride(-2) == 1  # else its rows would be meant
        made = torch.cat([made[..., 0::2], made[..., 1::2]], dim=-1)
    out.copy_(made)


def swiglu(h: torch.Tensor) -> torch.Tensor:
    return activate("swiglu", torch.cat([h[..., 0::2], h[..., 1::2]], dim=-1))


def gemm_gated_out(
    a: torch.Tensor, b: torch.Tensor, h: torch.Tensor, out: torch.Tensor, activation: str = "", **options: Any
) -> None:
    assert activation == "swiglu"
    gemm_out(a, b, h, **options)
    out.copy_(swiglu(h))


def gemm_dgated_out(
    a: torch.Tensor,
    b: torch.Tensor,
    h: torch.Tensor,
    dh: torch.Tensor,
    scaled: torch.Tensor,
    colvec_scale: torch.Tensor,
    activation: str,
    colvec_reduce: bool,
    dynamic_scheduler: bool,
    **options: Any,
) -> torch.Tensor:
    """What quack.epilogue.library.dgated_mod says."""
    assert activation == "swiglu" and colvec_reduce and not dynamic_scheduler
    gemm_out(a, b, da := torch.empty_like(scaled), **options)
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        made = swiglu(leaf)
        dh.copy_(torch.autograd.grad(made, leaf, colvec_scale[:, None] * da)[0])
    scaled.copy_(colvec_scale[:, None] * made.detach())
    return (made.detach() * da).sum(-1)


def test_quacks_products_give_the_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = (11, 8), (11, 3), (5, 12, 8), (5, 8, 6)
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    routes = sort_pairs(torch.stack([torch.randperm(4, generator=generator)[:3] for _ in range(11)]), 5)  # 4 is idle
    dy = torch.randn(11, 8, generator=generator, dtype=torch.float64)

    def results(backend: str) -> list[torch.Tensor]:
        y = expert_ffn(leaves[0], leaves[1], leaves[2], leaves[3], routes, backend=backend)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    expected = results("plain")
    kernels = SimpleNamespace(gemm_out=gemm_out, gemm_gated_out=gemm_gated_out, gemm_dgated_out=gemm_dgated_out)
    monkeypatch.setattr(torch.ops, "quack", kernels, raising=False)
    monkeypatch.setattr(experts_quack, "pick", lambda request, backend: backend)
    for found, wanted in zip(results("quack"), expected):
        torch.testing.assert_close(found, wanted)
