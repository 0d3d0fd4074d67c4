"""Every backend of the grouped product, and the experts on top of it, against loops and autograd."""

from __future__ import annotations

import pytest
import torch

from lit_gpt.errors import UserError
from lit_gpt.nn.router import Choice, limit
from lit_gpt.ops.expert_activation import MAPS, activate, activate_backward
from lit_gpt.ops.experts import expert_ffn, sort_pairs
from lit_gpt.ops.grouped_gemm import BACKENDS, Request, explain, grouped_mm

SIZES = [0, 5, 0, 9, 2]
ENDS = torch.tensor(SIZES).cumsum(0).int()
ROWS, K, N = sum(SIZES), 8, 16
ON_CPU = [name for name, usable, _ in explain(torch.device("cpu")) if usable]
CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def need(name: str, device: str) -> None:
    if reason := BACKENDS[name].refuses(Request(device, torch.bfloat16)):
        pytest.skip(reason)


def matrices(dtype: torch.dtype, device: str = "cpu", scale: int = 1) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, scale * K), (len(SIZES), scale * N, scale * K), (ROWS, scale * N))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype) for s in shapes)


def naive(a: torch.Tensor, b: torch.Tensor, ends_E: torch.Tensor = ENDS) -> torch.Tensor:
    ends = ends_E.tolist()
    spans = [slice(s, e) for s, e in zip([0, *ends], ends)]
    if b.ndim == 2:
        return torch.stack([a[:, s].double() @ b[s].double() for s in spans])
    return torch.cat([a[s].double() @ m.double() for s, m in zip(spans, b)])


def check(name: str, dtype: torch.dtype, device: str = "cpu", scale: int = 1, **tolerance: float) -> None:
    a, w, b = matrices(dtype, device, scale)
    ends = ENDS.to(device)
    for left, right in ((a, w.mT), (b, w), (b.mT, a)):
        found = grouped_mm(left, right, ends, backend=name)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), naive(left, right), **tolerance)
    assert not grouped_mm(b.mT, a, ends, backend=name)[0].any()  # the gradient of an expert without tokens


@pytest.mark.parametrize("name", ["padded", "plain"])
def test_backends_equal_a_loop(name):
    check(name, torch.float64)


def test_backends_in_bf16_equal_a_loop():
    for name in ON_CPU:
        check(name, torch.bfloat16, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("name", [pytest.param(name, marks=CUDA) for name in BACKENDS])
def test_backends_on_cuda(name):
    """Group sizes that are no multiple of anything, empty groups too."""
    need(name, "cuda")
    check(name, torch.bfloat16, "cuda", 16, rtol=2e-2, atol=0.5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
@pytest.mark.parametrize("name", list(BACKENDS))
def test_rows_after_the_last_group_reach_no_result(name, device):
    """They hold NaN. More groups than a warp has threads, some empty, some of several tiles."""
    need(name, device)
    sizes = [0, 300, 1, 0, 129, *range(31), 0]
    ends = torch.tensor(sizes).cumsum(0).int()
    served, rows = sum(sizes), sum(sizes) + 70
    generator = torch.Generator().manual_seed(6)
    shapes = ((rows, 64), (len(sizes), 96, 64), (rows, 96))
    a, w, b = (torch.randn(s, generator=generator).to(device, torch.bfloat16) for s in shapes)
    a[served:], b[served:] = torch.nan, torch.nan
    for left, right in ((a, w.mT), (b, w), (b.mT, a)):
        found = grouped_mm(left, right, ends.to(device), backend=name).double()
        found = found if right.ndim == 2 else found[:served]
        torch.testing.assert_close(found, naive(left, right, ends), rtol=1e-2, atol=0.1)


def test_what_torch_refuses():
    a, w, _ = matrices(torch.bfloat16)
    with pytest.raises(UserError, match="widths must be multiples of 8, not 7 and 16"):
        grouped_mm(a[:, :7], w[:, :, :7].mT, ENDS, backend="torch")
    with pytest.raises(UserError, match=r"it is for bfloat16, not torch\.float64"):
        grouped_mm(a.double(), w.double().mT, ENDS, backend="torch")


@pytest.mark.parametrize("kind", list(MAPS))
def test_derivatives_of_activations(kind):
    h = (6 * torch.randn(7, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).requires_grad_()
    a = activate(kind, h)
    da = torch.randn(a.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (expected,) = torch.autograd.grad(a, h, da)
    torch.testing.assert_close(activate_backward(kind, h.detach(), da), expected)


def pieces(dtype: torch.dtype, kind: str = "swiglu", tokens: int = 11, device: str = "cpu", n: int = 8, width: int = 4):
    generator = torch.Generator().manual_seed(4)
    shapes = ((tokens, n), (tokens, 3), (5, MAPS[kind] * width, n), (5, n, width))
    draws = [torch.randn(s, generator=generator, dtype=torch.float64).to(device) for s in shapes]
    chosen = torch.stack([torch.randperm(4, generator=generator)[:3] for _ in range(tokens)]).to(device)  # 4 is idle
    draws = [draws[0].to(dtype), draws[1].softmax(-1).to(torch.promote_types(dtype, torch.float32)), *draws[2:]]
    return [t.detach().requires_grad_() for t in draws], chosen


def naive_ffn(x, gates, up, down, chosen, kind):
    rows = []
    for t in range(len(x)):
        outs = [g * (down[e] @ activate(kind, (up[e] @ x[t])[None])[0]) for g, e in zip(gates[t], chosen[t])]
        rows.append(sum(outs))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", list(MAPS))
@pytest.mark.parametrize("name", ["padded", "plain"])
def test_experts_equal_autograd_through_a_loop(name, kind):
    leaves, chosen = pieces(torch.float64, kind)
    y = expert_ffn(*leaves, sort_pairs(chosen, 5), kind=kind, backend=name)
    expected = naive_ffn(*leaves, chosen, kind)
    torch.testing.assert_close(y, expected)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    found, wanted = torch.autograd.grad(y, leaves, dy), torch.autograd.grad(expected, leaves, dy)
    for mine, theirs in zip(found, wanted):
        torch.testing.assert_close(mine, theirs)
    assert found[2][4].abs().sum() == 0 and found[3][4].abs().sum() == 0


def test_torchs_kernel_gives_the_same_experts():
    leaves, chosen = pieces(torch.bfloat16, n=16, width=8)
    results = {}
    for name in ON_CPU:
        y = expert_ffn(*leaves, sort_pairs(chosen, 5), backend=name)
        results[name] = (y, *torch.autograd.grad(y.float().square().sum(), leaves))
    for name in ("torch", "padded"):
        for found, expected in zip(results[name], results["plain"]):
            assert (found - expected).norm() / expected.norm() < 0.01


def test_what_is_kept_for_backward_does_not_grow_with_k():
    """Nothing of P x n; the hidden activations are of P x 2 I / k."""
    tokens, n, inner = 32, 8, 64
    kept: dict[int, int] = {}
    for k in (1, 4):
        x = torch.randn(tokens, n, requires_grad=True)
        weights = [torch.randn(4 * k, 2 * inner // k, n), torch.randn(4 * k, n, inner // k)]
        chosen = torch.stack([torch.randperm(4 * k)[:k] for _ in range(tokens)])
        sizes: list[int] = []
        given = {x.data_ptr(), *(w.data_ptr() for w in weights)}

        def note(t: torch.Tensor, sizes=sizes, given=given) -> torch.Tensor:
            if t.data_ptr() not in given and t.is_floating_point():
                sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            expert_ffn(x, torch.full((tokens, k), 1 / k), *weights, sort_pairs(chosen, 4 * k))
        kept[k] = sum(sizes) - tokens * k  # less the gates
    assert kept[1] == kept[4] == tokens * 2 * inner


def test_capacity_drops_the_last_tokens_of_an_expert():
    leaves, chosen = pieces(torch.float64)
    routes = sort_pairs(chosen, 5)
    limited = limit(Choice(leaves[1], chosen), routes, 3)
    for e in range(5):
        tokens = [(t, j) for t in range(len(chosen)) for j in range(3) if chosen[t, j] == e]
        served = [limited.gates_TK[t, j].item() != 0 for t, j in tokens]
        assert served == [i < 3 for i in range(len(tokens))]
    arguments = (leaves[0], limited.gates_TK, *leaves[2:], routes._replace(largest=3))
    padded, looped = (expert_ffn(*arguments, backend=name) for name in ("padded", "plain"))
    torch.testing.assert_close(padded, looped)
    found = torch.autograd.grad(padded.sum(), leaves, retain_graph=True)  # the gates' part is in both
    for a, b in zip(found, torch.autograd.grad(looped.sum(), leaves)):
        torch.testing.assert_close(a, b)
