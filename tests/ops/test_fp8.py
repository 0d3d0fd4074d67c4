"""Products in 8 bits, in emulation, against the formats' definitions and the straight formulas in float64."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from fp8_formats import FORMATS, by_definition, near, nearest
from torch import Tensor, nn

from lit_gpt.config.bounds import hints
from lit_gpt.config.run import RunConfig
from lit_gpt.errors import UserError
from lit_gpt.nn.linear import Linear, groups, joint, together
from lit_gpt.ops import fp8, fp8_engine
from lit_gpt.ops.fp8 import E4M3, E5M2, RECIPES, mx_values, product, quantise
from lit_gpt.ops.fp8_cast import saturated
from lit_gpt.parallel.fp8 import fp8_note, in_8_bits, use_fp8
from lit_gpt.parallel.recompute import compile_blocks, recompute_in_backward
from lit_gpt.preflight.backend_checks import check_fp8

OWN = [name for name, recipe in RECIPES.items() if not recipe.library]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_numbers_are_rounded_to_nearest_even_and_saturate(dtype: torch.dtype) -> None:
    values = FORMATS[dtype]
    assert values[-1] == torch.finfo(dtype).max and values.min() == 0 < torch.finfo(dtype).tiny in values
    ties = (values[1:] + values[:-1]) / 2
    x = np.concatenate(
        [values, ties, np.nextafter(ties.astype(np.float32), np.float32(np.inf)), 10.0 ** np.arange(-9, 9)]
    )
    x = np.concatenate([x, -x]).astype(np.float32)
    got = saturated(torch.from_numpy(x), dtype).double().numpy()
    assert np.array_equal(got, nearest(x.astype(np.float64), dtype))
    assert saturated(torch.tensor([math.nan, math.inf]), dtype).float().tolist()[1] == values[-1]
    assert saturated(torch.tensor([math.nan]), dtype).isnan().all()


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_an_operand_stands_for_what_the_format_can_hold(name: str, dtype: torch.dtype) -> None:
    x = torch.randn(64, 96) * torch.logspace(-3, 3, 64)[:, None]
    operand = quantise([x[:, :32], x[:, 32:]], dtype, RECIPES[name])
    for values, scale, given in ((operand.rows, operand.row_scale, x), (operand.cols, operand.col_scale, x.t())):
        got = values.double() * scale.double().view(-1, 1)
        assert near(got, by_definition(given, dtype, RECIPES[name].shares))


def test_mx_scales_are_powers_of_two_rounded_up() -> None:
    edge = torch.zeros(5, 32)
    edge[0, 0], edge[1, 0], edge[2, 0] = 448.0, 448.0 * (1 + 2**-20), 449.0  # the largest number, and just above it
    edge[3, 0] = 2.0**-140
    assert mx_values(edge, E4M3)[:, 0].tolist() == [448.0, 448.0, 448.0, 0.0, 0.0]
    assert mx_values(edge[1:2] + 9, E4M3)[0, 1] == 9.0 and mx_values(edge[1:2] + 8.5, E4M3)[0, 1] == 8.0
    for bad in (math.inf, math.nan):
        edge[0, 0] = bad
        assert mx_values(edge, E4M3)[0].isnan().all() and mx_values(edge, E4M3)[1:].isfinite().all()


def test_a_compiler_sees_one_operation_in_the_mx_values_of_a_cpu() -> None:
    for x in (torch.randn(64, 96), torch.randn(96, 64).bfloat16().t(), torch.randn(2, 32, 64).mT):
        torch.library.opcheck(fp8._mx_op, (x, E4M3), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("left", [E4M3, E5M2])
@pytest.mark.parametrize("by_row", [False, True])
def test_products_in_emulation_are_those_of_torch(left: torch.dtype, by_row: bool) -> None:
    a, b = torch.randn(32, 64).to(left), torch.randn(48, 64).to(E4M3)
    scales = [torch.rand(size) + 0.5 for size in ((32, 48) if by_row else (1, 1))]
    wanted = a.double() @ b.double().t() * scales[0].double().view(-1, 1) * scales[1].double()
    got = product(a, scales[0], b, scales[1], torch.float32, False)
    assert torch.allclose(got.double(), wanted, rtol=1e-5, atol=1e-5)
    try:
        arguments = (scales[0].view(-1, 1), scales[1].view(1, -1)) if by_row else scales
        theirs = torch._scaled_mm(a, b.t(), *arguments, out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError):
        return  # torch has it for some processors, in some versions
    assert torch.allclose(theirs.double(), wanted, rtol=2**-7, atol=1e-2)


def grad(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


class Maps(nn.Module):
    """Maps that are used in each of the ways that there are."""

    def __init__(self, n: int = 256):
        super().__init__()
        self.q, self.k = Linear(n, n, bias=True), Linear(n, n)
        self.qk = together(self.q, self.k)
        self.up, self.gate = Linear(n, 2 * n, maps=2), Linear(n, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.rms_norm(x, x.shape[-1:])
        q, k = joint(x, *self.qk)
        a, b = self.up.halves(x)
        return q * k + torch.sigmoid(a) * b + self.gate(x).sum(-1, keepdim=True)


class Model(nn.Module):
    def __init__(self, count: int = 1):
        super().__init__()
        self.blocks = nn.ModuleList(Maps() for _ in range(count))
        for p in self.parameters():
            nn.init.normal_(p, std=256**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the pieces of everything that is cast, as it goes on."""
    seen: list[tuple[int, ...]] = []
    cast = fp8.quantise

    def spy(pieces: Any, *rest: Any) -> Any:
        seen.append(tuple(p.shape[0] for p in pieces))
        return cast(pieces, *rest)

    monkeypatch.setattr(fp8, "quantise", spy)
    return seen


@pytest.mark.parametrize("name", OWN)
def test_outputs_and_gradients_are_products_of_the_operands(name: str) -> None:
    """Against the straight formula in float64, of operands by the definitions."""
    recipe, tokens = RECIPES[name], 64
    maps = [Linear(256, 256), Linear(256, 128, bias=True)]
    for p in (p for m in maps for p in m.parameters()):
        nn.init.normal_(p)
    maps[0].scaled = fp8.ScaledWeights(name)
    maps[0].scaled.refresh([m.weight for m in maps])
    bias = maps[1].get_parameter("bias")
    x = torch.randn(2, tokens // 2, 256, requires_grad=True)
    dys = [torch.randn(2, tokens // 2, m.weight.shape[0]) for m in maps]
    ys = joint(x, *maps)
    torch.autograd.backward(ys, dys)

    def of(t: Tensor, dtype: torch.dtype = E4M3) -> Tensor:
        return by_definition(t, dtype, recipe.shares)

    flat, dy, w = (
        x.detach().flatten(0, 1),
        torch.cat(dys, -1).flatten(0, 1),
        torch.cat([m.weight for m in maps]).detach(),
    )
    y = of(flat) @ of(w).t()
    dx = of(dy, recipe.gradients) @ of(w.t()).t()
    dw = of(dy.t(), recipe.gradients) @ of(flat.t()).t()
    pairs = [
        (torch.cat([ys[0], ys[1] - bias], -1), y),
        (grad(x), dx),
        (torch.cat([grad(m.weight) for m in maps]), dw),
        (grad(bias), dy[:, 256:].sum(0)),
    ]
    assert all(near(*pair) for pair in pairs)


def test_maps_that_act_as_one_share_a_cast_and_weights_are_cast_once_in_a_step(quantised: list) -> None:
    model, x = Model(), torch.randn(2, 16, 256)
    use_fp8(model, "tensorwise", kept=True)
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(2):
        for micro_batch in range(2):
            quantised.clear()
            model(x).sum().backward()
            # W^T of both maps in one, and of `up`; x for either; gradients of q and k in one, of the halves in one.
            weights = [] if micro_batch else [(256, 256), (256,)]
            assert quantised == [*weights, (32,), (32,), (32, 32), (32, 32)], (step, micro_batch)
        optimizer.step()
        optimizer.zero_grad()


def test_micro_batches_add_up() -> None:
    model, x = Model(), torch.randn(2, 16, 256)
    use_fp8(model, "rowwise", kept=True)
    model(x).sum().backward()
    once = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model(x).sum().backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(model.parameters(), once) if p.grad is not None)


def test_evaluation_and_state_do_not_know_of_it() -> None:
    model, plain, x = Model(), Model(), torch.randn(2, 16, 256)
    plain.load_state_dict(model.state_dict())
    use_fp8(model, "tensorwise", kept=True)
    assert not torch.equal(model(x), plain(x))
    assert torch.equal(model.eval()(x), plain(x))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert not list(model.buffers())


def test_loaded_weights_are_seen() -> None:
    model, other, x = Model(), Model(), torch.randn(2, 16, 256)
    for m in (model, other):
        use_fp8(m, "tensorwise", kept=True)
    model(x)
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("what", ["full", "selective"])
def test_recomputation_changes_nothing(what: Any) -> None:
    models, x = [Model(2), Model(2)], torch.randn(2, 16, 256)
    models[1].load_state_dict(models[0].state_dict())
    for m in models:
        use_fp8(m, "tensorwise", kept=True)
    for block in models[1].blocks:
        recompute_in_backward(block, what)
    for m in models:
        m(x).sum().backward()
    for p, q in zip(models[0].parameters(), models[1].parameters()):
        assert torch.equal(grad(p), grad(q))


@pytest.mark.parametrize("name, what", [("tensorwise", "off"), ("rowwise", "full"), ("mxfp8_emulated", "off")])
def test_blocks_compile_without_a_break(name: str, what: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    compiled, compile = [], torch.compile

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", lambda f: compile(f, backend=backend, fullgraph=True))
    models, x = [Model(2), Model(2)], torch.randn(2, 16, 256)
    models[1].load_state_dict(models[0].state_dict())
    for m in models:
        use_fp8(m, name, kept=name != "rowwise")
    for block in models[1].blocks:
        recompute_in_backward(block, what)
    compile_blocks(models[1].blocks)
    for _ in range(2):
        for m in models:
            m(x).sum().backward()
        for p, q in zip(models[0].parameters(), models[1].parameters()):
            assert torch.allclose(grad(p), grad(q), rtol=1e-5, atol=1e-5)
            with torch.no_grad():
                p -= 1e-3 * grad(p)
                q.copy_(p)
            p.grad = q.grad = None
    # Equal blocks share what is compiled: a graph for the first block, whose input needs no gradient, and one for all.
    assert len(compiled) == 2


def test_only_large_matrices_of_blocks_are_chosen_and_others_are_named() -> None:
    model = Model()
    model.head = Linear(256, 512, weight_role="head")
    model.blocks[0].odd, model.blocks[0].router = Linear(256, 264), Linear(256, 256, weight_role="router")
    chosen, left = in_8_bits(model, "tensorwise")
    assert list(chosen) == ["0.q", "0.up"] and len(chosen["0.q"]) == 2
    assert left == {
        "0.gate": "8 x 256 is small",
        "0.odd": "264 x 256 is no multiple of 16",
        "0.router": "a router",
    }
    assert fp8_note(model, "tensorwise") == (
        "--fp8 tensorwise: 3 of 6 linear maps of the blocks train in 8 bits; not gate (8 x 256 is small), "
        "odd (264 x 256 is no multiple of 16), router (a router)"
    )


def test_a_group_is_found_by_its_first_map() -> None:
    assert {name: len(group) for name, group in groups(Maps()).items()} == {"q": 2, "up": 1, "gate": 1}


def test_zeros_have_a_scale_and_what_is_not_finite_spoils_the_output() -> None:
    for name in OWN:
        zero = quantise([torch.zeros(32, 32)], E4M3, RECIPES[name])
        assert all(t.float().isfinite().all() for t in zero) and not zero.rows.float().any()
        for bad in (math.nan, math.inf):
            x = torch.randn(32, 32)
            x[3, 4] = bad
            a = quantise([x], E4M3, RECIPES[name])
            assert product(a.rows, a.row_scale, a.rows, a.row_scale, torch.float32, False)[3].isnan().all()


def test_what_a_machine_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    check_fp8("tensorwise", cpu, 48)
    for recipe, tokens in (("tensorwise", 40), ("mxfp8_emulated", 48)):
        with pytest.raises(UserError, match=f"has {tokens} tokens .* needs a multiple of"):
            check_fp8(recipe, cpu, tokens)
    monkeypatch.setattr(fp8_engine, "missing", lambda module: f"{module} is not installed")
    with pytest.raises(UserError, match=r"torchao.float8 is not installed. Use --fp8_recipe tensorwise"):
        check_fp8("torchao_rowwise", cpu, 64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "A100")
    check_fp8("mxfp8_emulated", gpu, 64)
    with pytest.raises(UserError, match=r"compute capability 8.9.*A100"):
        check_fp8("rowwise", gpu, 64)


def test_the_recipes_are_the_options_choices() -> None:
    assert set(get_args(hints(RunConfig)["fp8_recipe"])) == RECIPES.keys()
