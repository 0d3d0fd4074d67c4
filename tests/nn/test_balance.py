"""Balance losses against transformers' and plain formulas, and exactly the same however a step is split."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from moe_models import LENGTH, VOCAB, config, fill, inputs, layer, model
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from lit_gpt.config.model import Experts
from lit_gpt.metrics.router_metrics import pack, unpack
from lit_gpt.model import GPT
from lit_gpt.nn import balance
from lit_gpt.nn.moe import stack
from lit_gpt.nn.router import choose_experts
from lit_gpt.ops.grouped_gemm import explain
from lit_gpt.parallel import start_runtime
from lit_gpt.train.step import train_step
from lit_gpt.train.step_routing import StepRouting

BASE = Experts(sparsity=2, top_k=4, aux_gamma=0.5)
STYLES = [BASE, replace(BASE, aux_style="entropy"), replace(BASE, aux_style="switch_seq")]


def logits(moe, x):
    return (x @ moe.router.weight.T).flatten(0, -2) * moe.multiplier


def auxiliary(experts: Experts, moe, x, micro_batches: int = 1) -> torch.Tensor:
    """What a step back-propagates for one layer."""
    routing = StepRouting(experts, start_runtime(), micro_batches)
    parts = x.chunk(micro_batches)
    if experts.exact_aux:
        routing.count_first(lambda part: stack([moe(part)[1]]), parts)
    return sum(routing.loss(stack([moe(part)[1]]), part.shape) for part in parts)


def plain(experts: Experts, moe, x) -> torch.Tensor:
    """The loss of one layer over all its tokens as the issue states it."""
    if experts.aux_style == "switch_seq":
        return torch.stack([plain(replace(experts, aux_style="switch"), moe, row[None]) for row in x]).mean()
    p_NE = logits(moe, x).softmax(-1)
    p_E = p_NE.mean(0)
    if experts.aux_style == "entropy":
        return experts.aux_gamma * (p_E * p_E.log()).sum()
    f_E = (
        choose_experts(logits(moe, x), experts).experts_TK.flatten().bincount(minlength=experts.routed) / p_NE.shape[0]
    )
    return experts.aux_gamma * experts.routed * (f_E / experts.active * p_E).sum()


def test_switch_loss_of_transformers():
    """Theirs is k times as large: its shares of pairs sum to k."""
    moe, x = layer(BASE, multiplier=0.5), inputs()
    routed = moe(x)[1]
    ours = balance.value(routed.counts_E, routed.probs_E, BASE)
    theirs = load_balancing_loss_func((logits(moe, x),), 8, 4)
    torch.testing.assert_close(4 * ours, theirs.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("experts", STYLES)
def test_gradient_and_value(experts):
    moe, x = layer(experts), inputs(rows=3)
    (found,) = torch.autograd.grad(auxiliary(experts, moe, x), moe.router.weight)
    (expected,) = torch.autograd.grad(plain(experts, moe, x), moe.router.weight)
    torch.testing.assert_close(found, expected)
    routing = StepRouting(experts, start_runtime(), 1)
    routing.loss(stack([moe(x)[1]]), x.shape)
    torch.testing.assert_close(routing.value, plain(experts, moe, x).detach())


def test_balanced_routers_have_the_least_loss():
    even = torch.full((1, 8), 6.0, dtype=torch.float64)
    assert balance.value(even, even, BASE).item() == pytest.approx(1)
    entropy = replace(BASE, aux_style="entropy")
    assert balance.value(even, even, entropy).item() == pytest.approx(-torch.tensor(8.0).log().item())
    uneven = even + torch.arange(8)
    assert (balance.value(uneven, uneven, BASE) > 1).all()


@pytest.mark.parametrize("style", ["switch", "entropy"])
@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_global_balance_does_not_depend_on_the_split(style, micro_batches):
    """With exact_aux every gradient; without, the value, and the gradient without accumulation."""
    experts = replace(BASE, aux_style=style, global_aux=True, exact_aux=True)
    moe, x = layer(experts), inputs(rows=4)
    expected = torch.autograd.grad(plain(experts, moe, x), (moe.router.weight,))[0]
    found = torch.autograd.grad(auxiliary(experts, moe, x, micro_batches), moe.router.weight)[0]
    torch.testing.assert_close(found, expected)
    running = replace(experts, exact_aux=False)
    routing = StepRouting(running, start_runtime(), micro_batches)
    parts = [routing.loss(stack([moe(part)[1]]), part.shape) for part in x.chunk(micro_batches)]
    torch.testing.assert_close(routing.value, plain(experts, moe, x).detach())
    (last,) = torch.autograd.grad(parts[-1], moe.router.weight)
    weight = moe.router.weight.detach().clone().requires_grad_()
    tail = x.chunk(micro_batches)[-1]
    p_E = (tail.flatten(0, 1) @ weight.T).softmax(-1).sum(0) / x[..., 0].numel()
    routed = moe(x)[1]
    slope = balance.slope(routed.counts_E.detach(), routed.probs_E.detach(), experts)
    torch.testing.assert_close(last, torch.autograd.grad(0.5 * (slope * p_E).sum(), weight)[0])


def test_local_balance_is_a_mean_over_micro_batches():
    moe, x = layer(BASE), inputs(rows=4)
    expected = torch.stack([plain(BASE, moe, part) for part in x.chunk(2)]).mean()
    found = torch.autograd.grad(auxiliary(BASE, moe, x, 2), moe.router.weight)
    torch.testing.assert_close(found, torch.autograd.grad(expected, moe.router.weight))


def test_z_loss():
    experts = replace(BASE, aux_gamma=0.0, router_z_loss=0.1)
    moe, x = layer(experts), inputs()
    expected = 0.1 * logits(moe, x).logsumexp(-1).square().mean()
    torch.testing.assert_close(auxiliary(experts, moe, x), expected)
    found = torch.autograd.grad(auxiliary(experts, moe, x), moe.router.weight)
    torch.testing.assert_close(found, torch.autograd.grad(expected, moe.router.weight))


def test_weight_zero_is_off():
    """No loss, no graph behind the statistics; the router learns from the language model's loss alone."""
    experts = replace(BASE, aux_gamma=0.0)
    moe, x = layer(experts), inputs()
    y, routed = moe(x)
    assert not any(value.requires_grad for value in routed)
    y.square().sum().backward()
    assert (moe.router.weight.grad.abs().sum(1) > 0).all()


ONE_ACTIVE = {"k1": Experts(4, 1, gate="all"), "k2_shared": Experts(4, 2, shared=True, gate="all", sqrt_gate=True)}


@pytest.mark.parametrize("experts", [BASE, *ONE_ACTIVE.values()], ids=["base", *ONE_ACTIVE])
@pytest.mark.parametrize("backend", [name for name, usable, _ in explain(torch.device("cpu")) if usable])
def test_routers_of_a_model_learn_in_every_backend(backend, experts):
    gpt = GPT(config(replace(experts, aux_gamma=0.0)), compute_dtype=torch.bfloat16, expert_backend=backend)
    fill(gpt)
    tokens = torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    gpt(tokens, tokens.roll(-1, 1)).loss.backward()
    assert all(block.ffn.router.weight.grad.abs().sum() > 0 for block in gpt.blocks)


class Recorder(torch.optim.SGD):
    """Keeps the gradients of its last step."""

    def step(self, closure=None):
        self.gradients = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        return super().step(closure)


def one_step(experts: Experts, micro_batches: int, skip: bool = False):
    gpt = GPT(config(experts))
    fill(gpt)
    optimizer = Recorder(gpt.parameters(), lr=0.1)
    tokens = torch.randint(0, VOCAB, (4, LENGTH), generator=torch.Generator().manual_seed(2)).numpy()
    parts = [SimpleNamespace(tokens=t, targets=t) for t in tokens.reshape(micro_batches, -1, LENGTH)]
    if skip:
        with torch.no_grad():
            gpt.norm.weight[0] = float("nan")
    result = train_step(gpt, optimizer, parts, micro_batches, tokens.size, start_runtime(), grad_clip=0.0)
    return gpt, optimizer, result


@pytest.mark.parametrize("style", ["switch", "entropy"])
def test_a_step_does_not_depend_on_its_micro_batches(style):
    experts = replace(BASE, aux_style=style, global_aux=True, exact_aux=True, router_z_loss=0.01, bias_rate=0.01)
    whole, first, expected = one_step(experts, 1)
    for micro_batches in (2, 4):
        split, second, found = one_step(experts, micro_batches)
        torch.testing.assert_close(second.gradients, first.gradients, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.routing, expected.routing)
        torch.testing.assert_close(dict(split.named_buffers()), dict(whole.named_buffers()))


def test_without_a_balance_loss_nothing_is_counted_first(monkeypatch):
    forwards = []
    monkeypatch.setattr(GPT, "hidden", lambda *a, then=GPT.hidden, **k: forwards.append(1) or then(*a, **k))
    for gamma, expected in ((0.1, 4), (0.0, 2)):
        forwards.clear()
        one_step(replace(BASE, aux_gamma=gamma, global_aux=True, exact_aux=True), 2)
        assert len(forwards) == expected


def test_selection_biases_move_against_the_load():
    experts = replace(BASE, aux_gamma=0.0, bias_rate=0.01)
    gpt, _, result = one_step(experts, 2)
    counts = result.routing[:16].view(2, 8)
    for block, row in zip(gpt.blocks, counts):
        expected = 0.01 * torch.sign(row.mean() - row)
        torch.testing.assert_close(block.ffn.balance, expected)
    gpt, _, result = one_step(experts, 2, skip=True)
    assert result.skipped == 1 and not any(block.ffn.balance.any() for block in gpt.blocks)


def test_metrics():
    experts, gpt = replace(BASE, aux_gamma=0.0), model(BASE)
    tokens = torch.randint(0, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    routed = gpt(tokens, head=False).routed
    values = unpack(pack(routed, torch.tensor(0.25)).tolist(), experts.routed, tokens.numel())
    assert values["metric/bal_loss"] == 0.25
    for i, counts_E in enumerate(routed.counts_E):
        violation = (counts_E.max() / counts_E.mean()).item() - 1
        assert values[f"metric/loop_{i}_maxvio_batch"] == pytest.approx(violation)
        loads = [values[f"metric/loop_{i}_expert_{j}_load"] for j in range(8)]
        assert sum(loads) == pytest.approx(8) and max(loads) == pytest.approx(1 + violation)
        assert values[f"metric/router_z_layer_{i}"] == pytest.approx(routed.z[i].item() / tokens.numel())
    square = values["metric/expert_output_rms_layer_0"] ** 2
    assert square == pytest.approx(routed.square[0].item() / tokens.numel())
