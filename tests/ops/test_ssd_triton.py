"""This project's own Triton kernels of Mamba-2's scan against plain torch in float64: on a GPU, and where Triton is
installed without one, by its interpreter, which cannot multiply numbers in bfloat16.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from triton_on_cpu import DEVICES, interpret

from lit_gpt.errors import UserError
from lit_gpt.ops import ssd as ops
from lit_gpt.ops import ssd_triton as ours
from lit_gpt.ops import triton_calls
from lit_gpt.ops.selective_scan import document_starts

# Relative errors: roundings of operands and results; in fp32 exponentials, and what A and the bias get, which cancels.
ROUNDING = {torch.float32: 5e-5, torch.float16: 1e-3, torch.bfloat16: 6e-3}
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias", "state")


def skip_where_refused() -> None:
    if reason := ours.refuses(torch.bfloat16, 64, 128):
        pytest.skip(reason)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    if request.param == "cuda":
        skip_where_refused()
    else:
        interpret(monkeypatch)
        monkeypatch.setattr(ours, "processors", lambda device: 1)
        monkeypatch.setitem(ops.BACKENDS, "triton", ops.Backend(ops._triton, lambda request: ""))
    return request.param


class Case(NamedTuple):
    """Sizes as in ssd.py; K heads of a group."""

    dtype: torch.dtype
    B: int
    T: int
    G: int = 1
    K: int = 2
    P: int = 16
    N: int = 16

    def draw(self, device: str, decay: float = 1.0) -> dict[str, Tensor]:
        """x, B and C are parts of one product, as in a mixer; where its width is odd, they must be copied."""
        g = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g).to(device)

        heads, parts = self.G * self.K, (self.G * self.K * self.P, self.G * self.N, self.G * self.N, self.T % 2)
        x, B, C, _ = normal(self.B, self.T, sum(parts)).to(self.dtype).split(parts, dim=2)
        x, B, C = x.unflatten(2, (heads, -1)), B.unflatten(2, (self.G, -1)), C.unflatten(2, (self.G, -1))
        dt = normal(self.B, self.T, heads + 3).to(self.dtype)[..., 3:]
        vectors = -normal(heads).exp() * decay, B, C, normal(heads), normal(heads) - 3
        return dict(zip(NAMES, (x, dt, *vectors, normal(self.B, heads, self.P, self.N))))

    def documents(self, device: str) -> Tensor:
        """Of one to many tokens, some from the edges of chunks; in the first row but one."""
        t = torch.arange(self.T, device=device)
        many = (t[:, None] >= torch.tensor([3, 4, 32, 63, 64, 90], device=device)).sum(1)
        return torch.stack([torch.full_like(t, 5), *[many + row for row in range(self.B - 1)]])


def run(tensors: dict[str, Tensor], ids: Tensor | None, backend: str, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The output, the last state and every gradient, of weights for both."""
    leaves = {k: t.to(dtype or t.dtype).detach().requires_grad_() for k, t in tensors.items()}
    *inputs, state = (leaves.get(name) for name in NAMES)
    y, last = ops.ssd(*inputs, doc_ids=ids, state=state, backend=backend)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(1)
    dy, dlast = (torch.randn(t.shape, generator=g).to(t.device) for t in (y, last))
    loss = (y * dy.to(tensors["x"].dtype).to(y.dtype)).sum() + (last * dlast).sum()
    return [y.detach(), last.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


def check(tensors: dict[str, Tensor], ids: Tensor | None) -> list[Tensor]:
    found, exact = run(tensors, ids, "triton"), run(tensors, ids, "plain", torch.float64)
    for name, near, true in zip(("y", "last", *tensors), found, exact):
        error = (near.double() - true).norm() / true.norm().clamp(min=1e-30)
        assert error < ROUNDING[tensors["x"].dtype], f"{name} is off by {error:.1e}"
    return found


@pytest.mark.parametrize(
    "case",
    [  # chunks are 64 tokens, in fp32 32; programs have 64 channels, in fp32 32
        Case(torch.float32, 2, 1),
        Case(torch.float32, 2, 33, G=2),
        Case(torch.float32, 2, 100, K=1, P=64, N=32),
        Case(torch.float16, 2, 100, G=2, P=128, N=32),
        Case(torch.float16, 1, 64, K=3, P=32, N=64),
    ],
)
def test_against_float64(device, case):
    tensors = case.draw(device)
    check(tensors, case.documents(device))
    del tensors["state"]
    check(tensors, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "case",
    [
        Case(torch.bfloat16, 16, 512, K=16, P=64, N=128),
        Case(torch.bfloat16, 1, 4096, K=16, P=64, N=128),  # in segments
        Case(torch.bfloat16, 3, 1001, G=2, K=4, P=128, N=64),
        Case(torch.bfloat16, 2, 700, K=8, P=64, N=256),
        Case(torch.float16, 2, 700, K=8, P=64, N=128),
        Case(torch.float32, 2, 700, K=4, P=64, N=128),
    ],
)
def test_at_the_sizes_of_models(case):
    skip_where_refused()
    tensors = case.draw("cuda")
    first = check(tensors, case.documents("cuda"))
    assert all(map(torch.equal, first, run(tensors, case.documents("cuda"), "triton")))


def test_segments_of_a_row(device, monkeypatch):
    """Few rows that are long are cut; a document may start where a segment does, and the last one may be shorter."""
    monkeypatch.setattr(ours, "_segments", lambda x, states: 3)
    case = Case(torch.float32, 2, 130)
    tensors = case.draw(device)
    ids = (torch.arange(130, device=device) >= torch.tensor([[64], [200]], device=device)).long()
    check(tensors, ids)
    del tensors["state"]
    check(tensors, None)


def test_blocks_of_heads(device, monkeypatch):
    """Where chunks are few, what B and C get from each block of heads is added up afterwards."""
    monkeypatch.setattr(ours, "BLOCKS", 4)
    case = Case(torch.float32, 1, 40, K=4)
    check(case.draw(device), None)


def test_strong_decay_neither_overflows_nor_loses_precision(device):
    case = Case(torch.float32, 2, 40)
    check(case.draw(device, decay=10), case.documents(device))
    tensors = case.draw(device, decay=1e5)  # exp of it is 0, and so is what A gets
    found, exact = run(tensors, None, "triton"), run(tensors, None, "plain", torch.float64)
    assert all(t.isfinite().all() for t in found)
    torch.testing.assert_close(found[0].double(), exact[0], rtol=1e-4, atol=1e-5)


def test_gradients_of_one_output_alone(device):
    tensors = Case(torch.float32, 1, 20).draw(device)
    for which in (0, 1):
        found = []
        for backend, dtype in (("triton", torch.float32), ("plain", torch.float64)):
            *leaves, state = (tensors[name].to(dtype).detach().requires_grad_() for name in NAMES)
            out = ops.ssd(*leaves, state=state, backend=backend)[which]
            found.append(torch.autograd.grad(out.sum(), (leaves[0], leaves[3], state)))
        for near, true in zip(*found):
            torch.testing.assert_close(near.double(), true, rtol=1e-3, atol=1e-5)


def test_forward_mode_derivatives_are_no_zeros():
    *inputs, state = Case(torch.float32, 1, 4).draw("meta").values()
    given = [*inputs, None, state]

    def of(i: int):
        return lambda t: ours.ssd(*(t if i == j else other for j, other in enumerate(given)))[0]

    for i in (0, 1, 2, 3, 4, 5, 6, 8):
        with pytest.raises(UserError, match="forward-mode derivatives"):
            torch.func.jvp(of(i), (given[i],), (given[i],))


def test_bits_repeat_and_compile(device):
    case = Case(torch.float32, 2, 70)
    tensors, ids = case.draw(device), case.documents(device)
    first, again = (run(tensors, ids, "triton") for _ in range(2))
    assert all(map(torch.equal, first, again))

    def compiled(ids: Tensor, state: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return ops.ssd(*inputs, doc_ids=ids, state=state, backend="triton")

    *inputs, state = (tensors[name] for name in NAMES)
    y, last = torch.compile(compiled, fullgraph=True, backend="aot_eager")(ids, state, *inputs)
    assert torch.equal(y, first[0]) and torch.equal(last, first[1])


def test_whether_it_can_run_is_told_of_sizes_that_are_symbols():
    def told(x: Tensor, B: Tensor) -> Tensor:
        return x + len(ours.refuses(x.dtype, x.shape[3], B.shape[3]))

    x, B = (torch.zeros(2, 5, 3, n) for n in (64, 128))
    assert torch.equal(torch.compile(told, fullgraph=True, backend="eager", dynamic=True)(x, B), told(x, B))


def test_operations_are_what_torch_expects(device):
    case = Case(torch.float32, 2, 20)
    *inputs, state = (t.detach().requires_grad_() for t in case.draw(device).values())
    starts = triton_calls.first_tokens(document_starts(case.documents(device)))
    torch.library.opcheck(ours.scan_forward, (*inputs, starts, state, 1))
    with torch.no_grad():
        y, last = ours.scan_forward(*inputs, starts, state, 1)
    kept = [t.detach() for t in (*inputs, state)]
    gradients = torch.ones_like(y), torch.ones_like(last)
    torch.library.opcheck(ours.scan_backward, (*gradients, *kept[:-1], starts, kept[-1], 1))


@pytest.mark.parametrize(
    ("share", "chunks", "block"), [(16, 1024, 16), (16, 300, 8), (12, 200, 4), (16, 1, 1), (1, 1, 1)]
)
def test_how_many_heads_a_program_takes(share, chunks, block):
    assert ours._block(share, chunks) == block


@pytest.mark.parametrize(("rows", "tokens", "segments"), [(16, 4096, 1), (8, 4096, 1), (1, 131072, 16), (1, 1024, 1)])
def test_how_many_segments(rows, tokens, segments, monkeypatch):
    monkeypatch.setattr(ours, "processors", lambda device: 132)
    x = torch.empty(rows, tokens, 16, 64, dtype=torch.bfloat16, device="meta")
    assert ours._segments(x, 128) == segments


def test_what_it_refuses():
    assert "float64" in ours.refuses(torch.float64, 64, 128)
    assert "not 48 and 128" in ours.refuses(torch.bfloat16, 48, 128)
    assert "not 64 and 512" in ours.refuses(torch.bfloat16, 64, 512)
