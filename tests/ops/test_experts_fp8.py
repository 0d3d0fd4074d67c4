"""Experts in 8 bits, in emulation, against one expert after the other in float64 by the formats' definitions."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from fp8_formats import by_definition, near
from moe_models import config, fill
from torch import Tensor, nn

from lit_gpt.config.model import Experts
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops import experts_fp8
from lit_gpt.ops.expert_activation import MAPS, activate
from lit_gpt.ops.experts import expert_ffn, sort_pairs
from lit_gpt.ops.experts_fp8 import ScaledExperts, padded, refusal
from lit_gpt.ops.fp8 import E4M3, RECIPES
from lit_gpt.parallel.fp8 import experts_in_8_bits, fp8_note, use_fp8

T, D, E, INNER, K = 40, 64, 5, 32, 2
GIVEN = ("x", "gates", "up", "down")
scaled_expert_ffn: Any = experts_fp8.scaled_expert_ffn


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def inputs(kind: str) -> tuple[Any, Tensor]:
    """(x, gates, up, down), and each token's experts, of which the last has none, and one is chosen often."""
    chosen = (torch.rand(T, E - 1) + torch.tensor([1.0, 0.0, 0.0, 0.0])).topk(K).indices
    sizes = (T, D), (T, K), (E, MAPS[kind] * INNER, D), (E, D, INNER)
    made = [torch.randn(size) * torch.logspace(-2, 2, size[0]).view(-1, *[1] * (len(size) - 1)) for size in sizes]
    return [t.requires_grad_() for t in (made[0], made[1].abs(), *made[2:])], chosen


def by_hand(given: list[Tensor], chosen: Tensor, dy: Tensor, kind: str, shares: str, multiple: int) -> list[Tensor]:
    """y and the gradients of GIVEN."""
    x, gates, up, down = (t.detach().double() for t in given)
    pairs = [[(t, j) for t in range(T) for j in range(K) if chosen[t, j] == e] for e in range(E)]
    tokens = [torch.tensor([t for t, _ in p], dtype=torch.long) for p in pairs]
    weights = [torch.tensor([gates[pair].item() for pair in p], dtype=torch.float64)[:, None] for p in pairs]

    def of(t: Tensor) -> Tensor:
        return by_definition(t.float(), E4M3, shares) if len(t) else t

    def columns(parts: list[Tensor]) -> list[Tensor]:
        """For sums over rows: scales of whole columns, and blocks that start with an expert."""
        wide = [torch.cat([p, p.new_zeros(-len(p) % multiple, p.shape[1])]) for p in parts]
        return list(of(torch.cat(wide).t()).split([len(p) for p in wide], dim=1))

    h = [(of(x[t]) @ of(up[e]).t()).requires_grad_() for e, t in enumerate(tokens)]
    a = [activate(kind, h_e) for h_e in h]
    da = [of(dy[t].double()) @ of(down[e].t()).t() for e, t in enumerate(tokens)]
    dh = [torch.autograd.grad(a_e, h_e, w * da_e)[0] for a_e, h_e, w, da_e in zip(a, h, weights, da)]
    a = [a_e.detach() for a_e in a]
    y, dx, d_gates = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(gates)
    for e, t in enumerate(tokens):
        y.index_add_(0, t, weights[e] * (of(a[e]) @ of(down[e]).t()))
        dx.index_add_(0, t, of(dh[e]) @ of(up[e].t()).t())
        for row, pair in enumerate(pairs[e]):
            d_gates[pair] = da[e][row] @ a[e][row]
    xs, dys = columns([x[t] for t in tokens]), columns([dy[t].double() for t in tokens])
    dhs, was = columns(dh), columns([w * a_e for w, a_e in zip(weights, a)])
    d_up = torch.stack([d @ x_e.t() for d, x_e in zip(dhs, xs)])
    return [y, dx, d_gates, d_up, torch.stack([d @ wa.t() for d, wa in zip(dys, was)])]


def results(given: list[Tensor], dy: Tensor, y: Tensor) -> list[Tensor]:
    return [y, *torch.autograd.grad(y, given, dy)]


@pytest.mark.parametrize("name", ["tensorwise", "mxfp8_emulated"])
@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
@pytest.mark.parametrize("kept", [True, False])
def test_outputs_and_gradients_are_products_of_the_operands(name: str, kind: str, kept: bool) -> None:
    given, chosen = inputs(kind)
    scaled, dy = ScaledExperts(name, kept), torch.randn(T, D)
    scaled.refresh(given[2:])
    got = results(given, dy, scaled_expert_ffn(*given, sort_pairs(chosen, E), scaled=scaled, kind=kind))
    recipe = RECIPES[scaled.name]
    wanted = by_hand(given, chosen, dy, kind, recipe.shares, recipe.multiple)
    for what, ours, theirs in zip(("y", *GIVEN), got, wanted):
        assert near(ours, theirs), what
    assert not got[3][-1].any() and not got[4][-1].any()  # of the expert without a token


@pytest.mark.parametrize("counts", [[0, 0, 0], [16, 0, 3], [1, 33, 16], [0, 5, 0]])
def test_padding_keeps_every_pair_and_gives_each_expert_a_multiple_of_rows(counts: list[int]) -> None:
    experts = torch.tensor([e for e, n in enumerate(counts) for _ in range(n)], dtype=torch.long)
    experts = experts[torch.randperm(len(experts))]
    routes = sort_pairs(experts[:, None], 3)
    order, place, ends, _ = padded(routes, 16)
    assert ends.dtype == torch.int32 and len(order) % 16 == 0 and ends[-1] <= len(order)
    starts = [0, *ends.tolist()]
    for e, count in enumerate(counts):
        rows = order[starts[e] : starts[e + 1]]
        assert len(rows) == max(-(-count // 16), 1) * 16
        assert rows[:count].tolist() == (experts == e).nonzero().flatten().tolist() and (rows[count:] == -1).all()
    assert (order[ends[-1] :] == -1).all()
    assert order[place].tolist() == list(range(len(experts)))


@pytest.mark.parametrize("name", ["rowwise", "mxfp8_emulated"])
@pytest.mark.parametrize("kept", [True, False])
def test_torch_takes_the_layouts_of_the_operands(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On "meta" its grouped products check sizes, strides and scales as their kernels do."""
    calls, product = [], experts_fp8.grouped_product

    def spy(*arguments: Any) -> Tensor:
        calls.append(arguments)
        return product(*arguments)

    monkeypatch.setattr(experts_fp8, "grouped_product", spy)
    with torch.device("meta"):
        x, gates, up, down = (
            torch.empty(size, dtype=torch.bfloat16, requires_grad=True)
            for size in ((T, D), (T, K), (E, 2 * INNER, D), (E, D, INNER))
        )
        scaled = ScaledExperts(name, kept)
        scaled.refresh([up, down])
        routes = sort_pairs(torch.empty(T, K, dtype=torch.long), E)
        y = scaled_expert_ffn(x, gates, up, down, routes, scaled=scaled)
        y.backward(torch.empty(T, D, dtype=torch.bfloat16))
    assert up.grad is not None and up.grad.shape == up.shape and y.shape == x.shape
    assert len(calls) == 6 and all(a[0].dtype == b[0].dtype for a, b, *_ in calls)


@pytest.mark.parametrize("name", ["tensorwise", "mxfp8_emulated"])
def test_what_is_not_finite_reaches_the_weights(name: str) -> None:
    """So that the step is seen not to be finite."""
    given, chosen = inputs("swiglu")
    with torch.no_grad():
        given[0][3, 4] = torch.inf
    scaled, dy = ScaledExperts(name), torch.randn(T, D)
    scaled.refresh(given[2:])
    y, _, _, d_up, _ = results(given, dy, scaled_expert_ffn(*given, sort_pairs(chosen, E), scaled=scaled))
    assert y[3].isnan().all() and d_up.isnan().any()


def test_without_tokens_there_is_nothing_to_pad() -> None:
    given, _ = inputs("swiglu")
    x, gates = (t.detach()[:0].requires_grad_() for t in given[:2])
    scaled = ScaledExperts("rowwise", kept=False)
    routes = sort_pairs(torch.zeros(0, K, dtype=torch.long), E)
    y = scaled_expert_ffn(x, gates, *given[2:], routes, scaled=scaled)
    y.sum().backward()
    assert y.shape == (0, D) and given[2].grad is not None and not given[2].grad.any()


class Model(nn.Module):
    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        sizes = {"intermediate_size": 48, **sizes}
        moe = MixtureOfExperts(config(Experts(2, 3, shared=True, aux_gamma=0.0), **sizes), 0, 1.0)
        self.blocks = nn.ModuleList([nn.ModuleDict({"ffn": moe})])
        fill(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0]["ffn"](x)[0]  # type: ignore[index]


def test_the_trainer_switches_it_on_and_evaluation_does_not_know() -> None:
    sizes = {"n_embd": 256, "intermediate_size": 768}
    model, plain, x = Model(**sizes), Model(**sizes), torch.randn(2, 16, 256)
    use_fp8(model, "tensorwise", kept=True, kept_experts=experts_in_8_bits(model, "tensorwise")[0].values())
    assert fp8_note(model, "tensorwise") == (
        "--fp8 tensorwise: 2 of 3 linear maps of the blocks and the experts of 1 layers train in 8 bits; "
        "not ffn.router (a router)"
    )
    assert torch.equal(model.eval()(x), plain.eval()(x)) and model.state_dict().keys() == plain.state_dict().keys()
    for optimizer in [torch.optim.SGD(model.train().parameters(), lr=0.1)]:
        before = model(x)
        assert not torch.equal(before, plain(x)) and torch.equal(before, model(x))
        before.sum().backward()
        optimizer.step()
        assert not torch.equal(before, model(x))  # the weights were cast anew


def test_experts_that_cannot_are_left_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert experts_in_8_bits(Model(), "rowwise")[1] == {"0.ffn.experts": "32 x 16 is small"}
    assert refusal("torchao_rowwise", 8) == "torchao_rowwise is for dense maps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))
    assert "capability 9.0" in refusal("tensorwise", 8) and refusal("mxfp8_emulated", 8) == ""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert refusal("tensorwise", 8) == "" and "1024 experts" in refusal("tensorwise", 1024)


@pytest.mark.parametrize("kept", [True, False])
def test_it_compiles_without_a_break_and_gives_the_same(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr("lit_gpt.ops.experts._compiled", lambda function: function)  # no C++ in a test of this
    given, chosen = inputs("swiglu")
    scaled, dy = ScaledExperts("mxfp8_emulated", kept), torch.randn(T, D)
    scaled.refresh(given[2:])
    run = partial(scaled_expert_ffn, scaled=scaled)
    compiled: Any = torch.compile(
        lambda x, g, up, down, chosen: run(x, g, up, down, sort_pairs(chosen, E)), backend="aot_eager", fullgraph=True
    )
    got = results(given, dy, compiled(*given, chosen))
    wanted = results(given, dy, run(*given, sort_pairs(chosen, E)))
    for ours, theirs in zip(got, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_padding_is_all_that_differs_from_bf16_without_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """With operands that keep their values, outputs and gradients are those of ops/experts.py."""
    given, chosen = inputs("oss_swiglu")
    ones = torch.ones(1)
    monkeypatch.setattr(experts_fp8, "over_last", lambda x, recipe: (x.contiguous(), ones))
    monkeypatch.setattr(experts_fp8, "quantise", lambda p, dtype, recipe: (p[0], ones, p[0].t(), ones))
    scaled, dy = ScaledExperts("rowwise", kept=False), torch.randn(T, D)
    got = results(given, dy, scaled_expert_ffn(*given, sort_pairs(chosen, E), scaled=scaled, kind="oss_swiglu"))
    plain: Any = expert_ffn
    wanted = results(given, dy, plain(*given, sort_pairs(chosen, E), kind="oss_swiglu"))
    for ours, theirs in zip(got, wanted):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())
