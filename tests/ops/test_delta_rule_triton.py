"""This project's own Triton kernels of the gated delta rule against the recurrence itself, token by token in float64:
on a GPU, and where Triton is installed without one, by its interpreter.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import recurrences as naive
import torch
from torch import Tensor
from triton_on_cpu import DEVICES, interpret

from lit_gpt.errors import UserError
from lit_gpt.ops import delta_rule as ops
from lit_gpt.ops import delta_rule_triton as ours
from lit_gpt.ops import triton_calls
from lit_gpt.ops.backends import Backend
from lit_gpt.ops.linear_recurrence import Request
from lit_gpt.ops.selective_scan import document_starts

# Relative errors: in fp32 of sums and exponentials, in bf16 of operands of products too. What a decay gets is
# a difference of sums of such, which cancel.
ROUNDING = {torch.float32: 2e-5, torch.bfloat16: 1e-2}
CANCELS = {torch.float32: 4e-5, torch.bfloat16: 3e-2}
SCALE = 0.3
WHOLE = {"fullgraph": True, "backend": "aot_eager"}
NAMES = ("q", "k", "v", "beta", "g", "state")
BOUNDARIES = torch.tensor([3, 4, 32, 63, 64, 90])  # documents of one to many tokens, some from the edges of chunks


def skip_where_refused() -> None:
    if reason := ours.refuses(torch.bfloat16, 256, 512):
        pytest.skip(reason)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    if request.param == "cuda":
        skip_where_refused()
    else:
        interpret(monkeypatch)
        monkeypatch.setitem(ops.BACKENDS, "triton", Backend(ops._triton, lambda request: ""))
    return request.param


class Case(NamedTuple):
    """decay: its typical size per token, None for none. top: of beta, which is near 0 and near it for many tokens."""

    dtype: torch.dtype
    B: int
    T: int
    H: int = 2
    K: int = 32
    V: int = 32
    decay: float | None = 1.0
    top: float = 2.0
    normalize: bool = True

    def draw(self, device: str) -> dict[str, Tensor]:
        """q, k and v are parts of one product, as in a mixer; where its width is odd, they must be copied."""
        random = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random).to(device)

        parts = (self.H * self.K, self.H * self.K, self.H * self.V, self.T % 2)
        q, k, v, _ = normal(self.B, self.T, sum(parts)).to(self.dtype).split(parts, dim=2)
        q, k, v = (x.unflatten(2, (self.H, -1)) for x in (q, k, v))
        if not self.normalize:
            k = naive.normalized(k.float()).to(self.dtype)
        beta = self.top * torch.sigmoid(4 * normal(self.B, self.T, self.H + 3)[..., 3:])
        found = {"q": q, "k": k, "v": v, "beta": beta}
        if self.decay is not None:
            found["g"] = -self.decay * normal(self.B, self.T, self.H).exp()
        return found | {"state": normal(self.B, self.H, self.K, self.V)}

    def documents(self) -> Tensor:
        """In the first row but one, whose id is no other row's first one."""
        t = torch.arange(self.T)
        many = (t[:, None] >= BOUNDARIES).sum(1)
        return torch.stack([torch.full_like(t, 5), *[many + row for row in range(self.B - 1)]])


def definition(leaves: dict[str, Tensor], ids: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor]:
    """o and the last state by the recurrence, which starts from zero with each document."""
    given = dict(leaves)
    if normalize:
        given |= {name: naive.normalized(given[name]) for name in ("q", "k")}
    outputs, states = [], []
    for b in range(len(given["q"])):
        row = {name: t[b : b + 1] for name, t in given.items()}
        state, parts = row.pop("state", None), []
        ends = [given["q"].shape[1]] if ids is None else torch.bincount(ids[b] - ids[b, 0]).cumsum(0).tolist()
        for start, end in zip([0, *ends], ends):
            q, k, v, beta, g = (row[name][:, start:end] if name in row else None for name in NAMES[:5])
            o, state = naive.recurrence(q, k, v, g, SCALE, beta, None if start else state)
            parts.append(o)
        outputs.append(torch.cat(parts, dim=1))
        states.append(state)
    return torch.cat(outputs), torch.cat(states)


def kernels_of(leaves: dict[str, Tensor], ids: Tensor | None, normalize: bool) -> tuple[Tensor, Tensor | None]:
    options = {"scale": SCALE, "normalize": normalize, "backend": "triton", "doc_ids": ids}
    return ops.delta_rule(*(leaves.get(name) for name in NAMES[:5]), state=leaves.get("state"), **options)


def results(run, tensors: dict[str, Tensor], ids: Tensor | None, normalize: bool, dtype=None) -> dict[str, Tensor]:
    """The output, the last state and every gradient, of weights for both."""
    leaves = {name: t.to(dtype or t.dtype).detach().requires_grad_() for name, t in tensors.items()}
    o, last = run(leaves, ids, normalize)
    random = torch.Generator().manual_seed(1)
    loss = (o * torch.randn(o.shape, generator=random).to(tensors["q"].dtype).to(o.device, o.dtype)).sum()
    found = {"o": o.detach()}
    if "state" in tensors:
        loss = loss + (last * torch.randn(last.shape, generator=random).to(last.device)).sum()
        found["last"] = last.detach()
    return found | dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))


def check(tensors: dict[str, Tensor], ids: Tensor | None, normalize: bool = True) -> dict[str, Tensor]:
    at = next(iter(tensors.values())).device
    found = results(kernels_of, tensors, None if ids is None else ids.to(at), normalize)
    on_cpu = {name: t.cpu() for name, t in tensors.items()}
    exact = results(definition, on_cpu, ids, normalize, torch.float64)
    assert found.keys() == exact.keys()
    for name, true in exact.items():
        error = (found[name].cpu().double() - true).norm() / true.norm().clamp(min=1e-30)
        bound = (CANCELS if name == "g" else ROUNDING)[tensors["q"].dtype]
        assert error < bound, f"{name} is off by {error:.1e}"
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "sizes",
    [  # chunks are 64 tokens, in fp32 32; programs have 32 values along a row, and 64 channels of a chunk, in fp32 32
        {"B": 2, "T": 1},
        {"B": 2, "T": 33, "H": 3},
        {"B": 2, "T": 100, "H": 1, "K": 64, "V": 96},
        {"B": 1, "T": 65, "decay": None, "normalize": False},
        {"B": 2, "T": 64, "H": 1, "top": 1.0, "decay": 0.01},
    ],
)
def test_against_the_recurrence(device, dtype, sizes):
    case = Case(dtype, **sizes)
    tensors = case.draw(device)
    check(tensors, case.documents(), case.normalize)
    del tensors["state"]
    check(tensors, None, case.normalize)


def test_wide_heads(device):
    """Of several parts of a key, and of values in several steps."""
    case = Case(torch.bfloat16, 2, 70, H=1, K=128, V=128)
    check(case.draw(device), case.documents())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    "case",
    [
        Case(torch.bfloat16, 4, 512, H=3, K=256, V=512),
        Case(torch.bfloat16, 2, 1001, H=3, K=256, V=512, decay=0.05),
        Case(torch.bfloat16, 2, 700, H=4, K=128, V=128, decay=None),
        Case(torch.bfloat16, 2, 700, H=4, K=64, V=96, top=1.0),
        Case(torch.bfloat16, 2, 700, H=2, K=256, V=288),
        Case(torch.float32, 2, 300, H=2, K=64, V=96),
    ],
)
def test_at_the_sizes_of_models(case):
    """Keys and values are as in other tests where that serves as well, since Triton compiles all kernels for each."""
    skip_where_refused()
    tensors, ids = case.draw("cuda"), case.documents()
    first = check(tensors, ids)
    again = results(kernels_of, tensors, ids.cuda(), True)
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(("rows", "tokens"), [(1, 4096), (8, 1024)])
def test_bits_repeat_where_programs_share_processors(rows, tokens):
    """They then delay each other, in every run in another way, which shows memory that is overwritten too early."""
    skip_where_refused()
    case = Case(torch.bfloat16, rows, tokens, H=6, K=256, V=512, decay=0.05)
    tensors, ids = case.draw("cuda"), case.documents().cuda()
    first = results(kernels_of, tensors, ids, True)
    for _ in range(10):
        again = results(kernels_of, tensors, ids, True)
        assert [name for name in first if not torch.equal(first[name], again[name])] == []


@pytest.mark.parametrize("decay", [30.0, 1e5])
def test_strong_decay_neither_overflows_nor_loses_precision(device, decay):
    """exp of it is 0, and so is what it gets."""
    case = Case(torch.float32, 2, 40)
    tensors = case.draw(device)
    tensors["g"] = tensors["g"] * torch.where(torch.arange(40) % 3 == 1, decay, 0.1)[:, None].to(device)
    check(tensors, case.documents())


def test_nearly_equal_keys_that_are_reflected(device):
    """Keys that overlap and beta near 2 make the triangular system as bad as it gets."""
    case = Case(torch.float32, 1, 64, decay=None)
    tensors = case.draw(device)
    tensors["k"] = naive.normalized(tensors["k"][:, :1] + 0.1 * tensors["k"])
    tensors["beta"] = torch.full_like(tensors["beta"], 1.99)
    found = results(kernels_of, tensors, None, True)
    exact = results(definition, {n: t.cpu() for n, t in tensors.items()}, None, True, torch.float64)
    for name, true in exact.items():
        assert (found[name].cpu().double() - true).norm() < 1e-3 * true.norm(), name


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_beta_at_its_ends(device, beta):
    case = Case(torch.float32, 1, 40)
    tensors = case.draw(device)
    tensors["beta"] = torch.full_like(tensors["beta"], beta)
    check(tensors, None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_queries_of_zero(device, dtype):
    """As silu leaves them of padding: their norm is that of the epsilon."""
    tensors = Case(dtype, 1, 40).draw(device)
    for name in ("q", "k"):
        tensors[name] = tensors[name] * (torch.arange(40, device=device) % 5 > 1)[:, None, None]
    check(tensors, None)


def test_gradients_of_one_output_alone(device):
    tensors = Case(torch.float32, 1, 20).draw(device)
    for which in (0, 1):
        found = []
        for run, dtype in ((kernels_of, torch.float32), (definition, torch.float64)):
            leaves = {name: t.to(dtype).detach().requires_grad_() for name, t in tensors.items()}
            gradients = torch.autograd.grad(run(leaves, None, True)[which].sum(), [leaves["k"], leaves["state"]])
            found.append([g.double() for g in gradients])
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


def test_forward_mode_derivatives_are_no_zeros():
    given = list(Case(torch.float32, 1, 4).draw("meta").values())

    def of(i: int):
        def run(t: Tensor) -> Tensor:
            *inputs, state = (t if i == j else other for j, other in enumerate(given))
            return ours.gated_delta_rule(*inputs, None, state, SCALE, True)[0]

        return run

    for i, tensor in enumerate(given):
        with pytest.raises(UserError, match="forward-mode derivatives"):
            torch.func.jvp(of(i), (tensor,), (tensor,))


def test_bits_repeat_and_compile(device):
    case = Case(torch.float32, 2, 70)
    tensors, ids = case.draw(device), case.documents().to(device)
    first, again = (results(kernels_of, tensors, ids, True) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    compiled = torch.compile(lambda *inputs: kernels_of(dict(zip(NAMES, inputs)), ids, True), **WHOLE)
    o, last = compiled(*tensors.values())
    assert torch.equal(o, first["o"]) and torch.equal(last, first["last"])


@pytest.mark.parametrize("decays", [True, False])
def test_operations_are_what_torch_expects(device, decays):
    case = Case(torch.float32, 2, 20, decay=1.0 if decays else None)
    tensors = {name: t.detach().requires_grad_() for name, t in case.draw(device).items()}
    given = [tensors.get(name) for name in NAMES]
    starts = triton_calls.first_tokens(document_starts(case.documents())).to(device)
    arguments = (*given[:5], starts, given[5], SCALE, True)
    torch.library.opcheck(ours.rule_forward, arguments)
    with torch.no_grad():
        o, last = ours.rule_forward(*arguments)
    kept = [t.detach() if isinstance(t, Tensor) else t for t in arguments]
    torch.library.opcheck(ours.rule_backward, (torch.ones_like(o), torch.ones_like(last), *kept))


def test_what_it_refuses():
    assert "float64" in ours.refuses(torch.float64, 64, 64)
    assert "float16" in ours.refuses(torch.float16, 64, 64)
    assert ours.refuses(torch.bfloat16, 48, 64) == "its key dimension is one of 32, 64, 128, 256 in bfloat16, not 48"
    assert ours.refuses(torch.float32, 128, 64) == "its key dimension is one of 32, 64 in float32, not 128"
    assert ours.refuses(torch.bfloat16, 64, 80) == "its value dimension is a multiple of 32, not 80"
    assert "CUDA" in ops._triton_refuses(Request(device="cpu"))
    assert "heads" in ops._triton_refuses(Request(decay="channel"))
