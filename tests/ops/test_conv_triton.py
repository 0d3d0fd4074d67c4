"""This project's own Triton kernels of the short convolution against plain torch in float64: on a GPU, and where Triton
is installed without one, by its interpreter.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from triton_on_cpu import DEVICES, interpret

from lit_gpt.errors import UserError
from lit_gpt.ops import conv as ops
from lit_gpt.ops import conv_triton as ours
from lit_gpt.ops.backends import Backend

# Relative errors: of sums, exponentials and a square root in fp32, and of the rounding of results.
ROUNDING = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 4e-3}
NAMES = ("x", "weight", "bias", "state")


def skip_where_refused() -> None:
    if reason := ours.refuses(torch.bfloat16, 4, along_time=False):
        pytest.skip(reason)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    if request.param == "cuda":
        skip_where_refused()
    else:
        interpret(monkeypatch)
        monkeypatch.setattr(ours, "processors", lambda device: 132)  # so that segments are short
        monkeypatch.setitem(ops.BACKENDS, "triton", Backend(ops._triton, lambda request: ""))
    return request.param


def weights_of(outputs: list[Tensor], like: Tensor) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, generator=g).to(like) for y in outputs]


class Case(NamedTuple):
    """Sizes as in conv.py; x is a part of a product with `more` channels before it and after it."""

    dtype: torch.dtype
    B: int
    T: int
    widths: tuple[int, ...]
    K: int = 4
    more: int = 8

    def draw(self, device: str) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g).to(device)

        channels = sum(self.widths)
        x = normal(self.B, self.T, channels + 2 * self.more).to(self.dtype)[..., self.more : self.more + channels]
        state = normal(self.B, channels, self.K - 1).to(self.dtype)
        return dict(zip(NAMES, (x, normal(channels, 1, self.K), normal(channels), state)))

    def documents(self, device: str) -> Tensor:
        """Of one to many tokens, some from the edges of segments; in the first row but one."""
        t = torch.arange(self.T, device=device)
        many = (t[:, None] >= torch.tensor([2, 3, 16, 63, 64, 90], device=device)).sum(1)
        return torch.stack([torch.full_like(t, 5), *[many + row for row in range(self.B - 1)]])

    def run(
        self, tensors: dict[str, Tensor], ids: Tensor | None, silu: bool, backend: str, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """The pieces, the state after them, and every gradient, of weights for all of them."""
        leaves = {k: t.to(dtype or t.dtype).detach().requires_grad_() for k, t in tensors.items()}
        x, weight, bias, state = (leaves.get(name) for name in NAMES)
        assert x is not None and weight is not None
        given = {"doc_ids": ids, "state_BCK": state, "backend": backend}
        activation = "silu" if silu else None
        pieces, last = ops.causal_conv_pieces(x, self.widths, weight, bias, activation=activation, **given)
        found = [*pieces, last]
        weights = [w.to(x.dtype) for w in weights_of(found, tensors["x"])]
        return [*(y.detach() for y in found), *torch.autograd.grad(found, list(leaves.values()), weights)]

    def check(self, tensors: dict[str, Tensor], ids: Tensor | None, silu: bool = True) -> list[Tensor]:
        found = self.run(tensors, ids, silu, "triton")
        exact = self.run(tensors, ids, silu, "plain", torch.float64)
        names = (*(f"piece {i}" for i in range(len(self.widths))), "last", *tensors)
        for name, near, true in zip(names, found, exact, strict=True):
            error = (near.double() - true).norm() / true.norm().clamp(min=1e-30)
            assert error < ROUNDING[tensors["x"].dtype], f"{name} is off by {error:.1e}"
        return found


@pytest.mark.parametrize(
    "case",
    [  # segments of 16 tokens, of which a program has 8; four tokens are read at once, by 128 channels
        Case(torch.float32, 2, 1, (8,)),
        Case(torch.float32, 2, 5, (1,), more=0),
        Case(torch.float32, 2, 2, (5, 3), more=1),
        Case(torch.float32, 3, 70, (136, 8), K=3),
        Case(torch.float32, 2, 17, (24, 8, 16), K=2),
        Case(torch.bfloat16, 2, 32, (64, 16, 16), more=4),
        Case(torch.bfloat16, 2, 19, (13, 7), more=3),
        Case(torch.float16, 9, 15, (8, 16), K=8),
    ],
)
def test_against_float64(device, case):
    tensors = case.draw(device)
    case.check(tensors, case.documents(device))
    del tensors["state"], tensors["bias"]
    case.check(tensors, None, silu=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize(
    ("case", "packed"),
    [
        (Case(torch.bfloat16, 8, 4096, (2048, 128, 128), more=0), False),
        (Case(torch.bfloat16, 8, 4096, (2048, 128, 128), more=0), True),
        (Case(torch.bfloat16, 1, 20000, (768, 768, 1536)), True),
        (Case(torch.bfloat16, 3, 1001, (1000, 20), more=1), False),
        (Case(torch.float32, 2, 700, (1024, 64)), False),
    ],
)
def test_at_the_sizes_of_models(case, packed):
    skip_where_refused()
    tensors, ids = case.draw("cuda"), case.documents("cuda") if packed else None
    first = case.check(tensors, ids)
    assert all(map(torch.equal, first, case.run(tensors, ids, True, "triton")))


@pytest.mark.parametrize("length", [32, 64])
def test_longer_segments(device, length, monkeypatch):
    """A document may start where one does."""
    monkeypatch.setattr(ours, "LENGTHS", (length,))
    case = Case(torch.float32, 2, 100, (8,))
    case.check(case.draw(device), case.documents(device))


def test_documents_that_come_again(device):
    """As in plain torch, equal ids are one document wherever they are."""
    case = Case(torch.float32, 1, 30, (8,))
    case.check(case.draw(device), torch.arange(30, device=device)[None] % 3 % 2)


def test_layouts_of_inputs_and_gradients(device):
    """Channels along time, which are copied; of gradients also rows that are one number, or are turned."""
    case = Case(torch.float32, 2, 20, (8, 8))
    tensors = case.draw(device)
    x, weight, bias = (tensors[name] for name in NAMES[:3])
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    results = []
    for backend, given, dtype in (("triton", turned, torch.float32), ("plain", x, torch.float64)):
        leaf = given.to(dtype).detach().requires_grad_()
        inputs = ops.Inputs(leaf, weight[:, 0].to(dtype), bias.to(dtype), "silu", None, None)
        one, other = ops.BACKENDS[backend].run(inputs, [8, 8])
        results.append([one, other, *torch.autograd.grad(one.sum() + other.transpose(1, 2).exp().sum(), leaf)])
    for near, true in zip(*results):
        torch.testing.assert_close(near.double(), true, rtol=1e-4, atol=1e-5)


def test_what_is_too_far_apart_for_32_bits_is_copied():
    far = torch.zeros(8, device="meta").as_strided((1, 70, 8), (8, 2**25, 1))
    assert ours.side_by_side(far).is_contiguous()
    near = torch.zeros(8, device="meta").as_strided((1, 70, 8), (8, 2**24, 1))
    assert ours.side_by_side(near) is near


def test_without_tokens_the_state_gets_no_gradient(device):
    x, weight, bias, state = (t.requires_grad_() for t in Case(torch.float32, 2, 1, (8,)).draw(device).values())
    y, last = ops.causal_conv(x[:, :0], weight, bias, state_BCK=state, backend="triton")
    assert torch.equal(last, state)
    assert not torch.autograd.grad(y.sum(), state)[0].any()


def test_gradients_of_one_piece_alone(device):
    case = Case(torch.float32, 2, 10, (8, 8))
    found = []
    for backend, dtype in (("triton", torch.float32), ("plain", torch.float64)):
        x, weight, bias, state = (t.to(dtype).detach().requires_grad_() for t in case.draw(device).values())
        pieces, _ = ops.causal_conv_pieces(x, case.widths, weight, bias, state_BCK=state, backend=backend)
        found.append(torch.autograd.grad(pieces[1].sum(), (x, weight, bias, state)))
    for near, true in zip(*found):
        torch.testing.assert_close(near.double(), true, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # numpy's, in the place of 2^200
def test_large_numbers_neither_overflow_nor_vanish(device):
    case = Case(torch.float32, 1, 20, (8,))
    tensors = case.draw(device)
    tensors["x"] = tensors["x"] * 200
    assert all(t.isfinite().all() for t in case.check(tensors, None))


def test_forward_mode_derivatives_are_no_zeros():
    x, weight, bias, state = Case(torch.float32, 1, 4, (8,)).draw("meta").values()
    given = [x, [8], weight[:, 0], bias, True, None, state]

    def of(i: int):
        return lambda t: ours.convolved(*(t if i == j else other for j, other in enumerate(given)))[0]

    for i in (0, 2, 3, 6):
        with pytest.raises(UserError, match="forward-mode derivatives"):
            torch.func.jvp(of(i), (given[i],), (given[i],))


def test_bits_repeat_and_compile(device):
    case = Case(torch.float32, 2, 20, (24, 8))
    tensors, ids = case.draw(device), case.documents(device)
    first, again = (case.run(tensors, ids, True, "triton") for _ in range(2))
    assert all(map(torch.equal, first, again))

    def compiled(ids: Tensor, x: Tensor, weight: Tensor, bias: Tensor, state: Tensor) -> list[Tensor]:
        given = {"doc_ids": ids, "state_BCK": state, "backend": "triton"}
        pieces, last = ops.causal_conv_pieces(x, case.widths, weight, bias, activation="silu", **given)
        return [*pieces, last]

    leaves = [t.detach().requires_grad_() for t in tensors.values()]
    found = torch.compile(compiled, fullgraph=True, backend="aot_eager")(ids, *leaves)
    gradients = torch.autograd.grad(found, leaves, weights_of(found, leaves[0]))
    assert all(map(torch.equal, first, [*found, *gradients]))


def test_whether_it_can_run_is_told_of_sizes_that_are_symbols():
    def told(x: Tensor, weight: Tensor) -> Tensor:
        return x + len(ours.refuses(x.dtype, weight.shape[2], along_time=False))

    x, weight = torch.zeros(2, 5, 3), torch.zeros(3, 1, 4)
    assert torch.equal(torch.compile(told, fullgraph=True, backend="eager", dynamic=True)(x, weight), told(x, weight))


def test_operations_are_what_torch_expects(device):
    case = Case(torch.float32, 2, 6, (8, 16))
    x, weight, bias, state = (t.detach().requires_grad_() for t in case.draw(device).values())
    given = weight[:, 0], bias, case.documents(device), state.transpose(1, 2)
    torch.library.opcheck(ours.conv_forward, (x, *given, [8, 16], True))
    with torch.no_grad():
        dys = ours.conv_forward(x, *given, [8, 16], True)
    kept = [t.detach() for t in (x, *given)]
    torch.library.opcheck(ours.conv_backward, (dys, *kept, True))


@pytest.mark.parametrize(
    ("rows", "tokens", "blocks", "cut"),
    [
        (8, 4096, 34, (64, 64, 64)),
        (1, 131072, 8, (64, 2048, 256)),
        (4, 4096, 16, (32, 128, 64)),
        (2, 4096, 16, (16, 256, 64)),
        (64, 1, 34, (16, 1, 8)),
    ],
)
def test_how_rows_are_cut(rows, tokens, blocks, cut):
    """On an H200, which has 132 processors."""
    assert ours.cut(rows, tokens, blocks, 132 * ours.PROGRAMS_PER_PROCESSOR) == cut


def test_what_it_refuses(monkeypatch):
    monkeypatch.setattr(ours, "gpu_refuses", lambda module: "")
    assert "float64" in ours.refuses(torch.float64, 4, along_time=False)
    assert "2 to 8 wide, not 9" in ours.refuses(torch.bfloat16, 9, along_time=False)
    assert "along time" in ours.refuses(torch.bfloat16, 4, along_time=True)
    assert ours.refuses(torch.bfloat16, 8, along_time=False) == ""
