"""Products in 8 bits on a GPU: its kernels against the plain forms, which test_fp8.py compares with the definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gpt import optim
from lit_gpt.nn.linear import Linear, joint, together
from lit_gpt.ops.backends import missing
from lit_gpt.ops.fp8 import E4M3, E5M2, RECIPES, ScaledWeights, product, quantise
from lit_gpt.ops.fp8_cast import cast
from lit_gpt.parallel.fp8 import use_fp8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9), reason="needs a GPU with fp8"
    ),
]
OWN = [name for name, recipe in RECIPES.items() if not recipe.library]
FLOOR = 2.0**-8  # rounding to bf16, twice


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def parts(height: int, *widths: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """Pieces with strides of their own: the last is a transposed one."""
    made = [torch.randn(height, w, device="cuda").to(dtype) for w in widths[:-1]]
    return [*made, torch.randn(widths[-1], height, device="cuda").to(dtype).t()]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("height, widths", [(256, (128, 384)), (48, (16, 80, 16)), (1000, (208, 16))])
@pytest.mark.parametrize("by_row", [False, True])
def test_the_kernel_casts_as_torch_does(
    dtype: torch.dtype, source: torch.dtype, height: int, widths: tuple[int, ...], by_row: bool
) -> None:
    pieces = parts(height, *widths, dtype=source)
    sizes = (height, sum(widths)) if by_row else (1, 1)
    row, col = (torch.rand(size, device="cuda") * torch.finfo(dtype).max / 2 for size in sizes)
    ours = cast(pieces, row, col, dtype)
    expected = cast([p.cpu() for p in pieces], row.cpu(), col.cpu(), dtype)
    for got, wanted in zip(ours, expected):
        assert torch.equal(got.cpu().view(torch.uint8), wanted.view(torch.uint8))


def test_the_kernel_keeps_nan_and_saturates() -> None:
    x = torch.full((32, 32), 1e6, device="cuda")
    x[0, 0], x[1, 1] = torch.nan, -torch.inf
    rows, cols = cast([x], torch.ones(1, device="cuda"), torch.ones(1, device="cuda"), E4M3)
    assert rows[0, 0].float().isnan() and cols[0, 0].float().isnan()
    assert rows[1, 1].item() == -448 and cols[2, 1].item() == 448


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("out", [torch.bfloat16, torch.float32])
def test_products_are_those_of_the_emulation(name: str, fast: bool, out: torch.dtype) -> None:
    recipe = RECIPES[name]
    a = quantise([torch.randn(256, 512, device="cuda").bfloat16()], recipe.gradients, recipe)
    b = quantise([torch.randn(128, 512, device="cuda").bfloat16()], E4M3, recipe)
    got = product(a.rows, a.row_scale, b.rows, b.row_scale, out, fast)
    wanted = product(a.rows.cpu(), a.row_scale.cpu(), b.rows.cpu(), b.row_scale.cpu(), torch.float32, False)
    # Fast sums keep about 14 bits of each partial sum on Hopper (arXiv:2412.19437, section 3.3.2).
    error = (got.cpu().float() - wanted).norm() / wanted.norm()
    assert got.dtype == out and error < (2**-6 if fast else FLOOR), error


class Maps(nn.Module):
    """Three maps of one input, and one after them."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = Linear(512, 512), Linear(512, 256), Linear(512, 256)
        self.qkv, self.out = together(self.q, self.k, self.v), Linear(512, 512)
        for p in self.parameters():
            nn.init.normal_(p, std=512**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = joint(nn.functional.rms_norm(x, (512,)), *self.qkv)
        return x + self.out(q * torch.cat([k, v], -1))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Maps(), Maps()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def gradients(model: nn.Module, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(dy)
    found = {"y": y.detach(), "x": x.grad} | {n: p.grad for n, p in model.named_parameters()}
    model.zero_grad()
    return {name: t.cpu().float() for name, t in found.items() if t is not None}


def errors(got: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    assert got.keys() == exact.keys()
    return {n: ((got[n] - t).norm() / t.norm()).item() for n, t in exact.items()}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_model_trains_on_a_gpu_as_in_emulation(name: str, compiled: bool) -> None:
    """A sum in another order moves the largest magnitude by a rounding, and with it the grid that all entries are
    rounded to. So entries differ by as much as 8 bits cost, and what is compared is that cost: it differs by 1%.
    """
    model = Model()
    x, dy = torch.randn(4, 64, 512).bfloat16(), torch.randn(4, 64, 512).bfloat16()
    exact = gradients(model, x, dy)
    use_fp8(model, name, kept=True)
    emulated = errors(gradients(model, x, dy), exact)
    model = model.cuda()
    run: Any = torch.compile(model, fullgraph=False) if compiled else model
    found = errors({n.removeprefix("_orig_mod."): t for n, t in gradients(run, x.cuda(), dy.cuda()).items()}, exact)
    assert all(found[n] == pytest.approx(emulated[n], rel=0.1) for n in exact), (found, emulated)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("torchao")])
@pytest.mark.skipif(bool(missing("torchao.float8")), reason="needs torchao")
def test_ours_and_that_of_torchao_are_as_near_to_bf16(name: str) -> None:
    x, dy = (torch.randn(4, 64, 512, device="cuda").bfloat16() for _ in "xy")
    plain, found = Model().cuda(), []
    exact = gradients(plain, x, dy)
    for recipe in (name, RECIPES[name].library):
        model = Model().cuda()
        model.load_state_dict(plain.state_dict())
        use_fp8(model, recipe, kept=True)
        found.append(errors(gradients(model, x, dy), exact))
    theirs, ours = found
    assert all(ours[n] < 1.25 * theirs[n] for n in exact), (ours, theirs)


def test_weights_are_cast_anew_when_they_change() -> None:
    weight = nn.Parameter(torch.randn(256, 256, device="cuda"))
    scaled = ScaledWeights("tensorwise")
    scaled.refresh([weight])
    first = scaled.operand
    scaled.refresh([weight])
    assert scaled.operand is first
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.register_step_post_hook(optim._mark_written)  # as optim.build does
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    scaled.refresh([weight])
    assert scaled.operand is not first
