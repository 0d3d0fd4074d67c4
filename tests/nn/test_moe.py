"""The layer against transformers' blocks, the dense network, and one token after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from moe_models import WIDTH, N, by_token, config, expert, fill, inputs, layer, with_gate
from transformers import DeepseekV3Config, MixtralConfig, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from lit_gpt.config.model import Experts
from lit_gpt.errors import UserError
from lit_gpt.nn import mlp
from lit_gpt.nn.router import choose_experts

S2K4 = Experts(sparsity=2, top_k=4, aux_gamma=0.0)
THEIRS = {"hidden_size": N, "hidden_act": "silu", "num_experts_per_tok": 4}


def check_against(theirs: torch.nn.Module, moe: torch.nn.Module) -> None:
    """The same output and gradients, with our weights copied over."""
    theirs = theirs.double().train()
    with torch.no_grad():
        theirs.gate.weight.copy_(moe.router.weight)
        theirs.experts.gate_up_proj.copy_(moe.up)
        theirs.experts.down_proj.copy_(moe.down)
    x, y = inputs().requires_grad_(), inputs().requires_grad_()
    ours, expected = moe(x)[0], theirs(y)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)  # their gates are in fp32
    ours.square().sum().backward()
    expected.square().sum().backward()
    pairs = ((x, y), (moe.router.weight, theirs.gate.weight), (moe.up, theirs.experts.gate_up_proj))
    for mine, other in (*pairs, (moe.down, theirs.experts.down_proj)):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-4)


def test_mixtral():
    given = MixtralConfig(**THEIRS, intermediate_size=WIDTH // 4, num_local_experts=8, experts_implementation="eager")
    check_against(MixtralSparseMoeBlock(given), layer(S2K4))


@pytest.mark.parametrize("normalised", [True, False])
def test_qwen3_moe(normalised):
    sizes = {"moe_intermediate_size": WIDTH // 4, "num_experts": 8, "norm_topk_prob": normalised}
    given = Qwen3MoeConfig(**THEIRS, **sizes, experts_implementation="eager")
    check_against(Qwen3MoeSparseMoeBlock(given), layer(replace(S2K4, gate="selected" if normalised else "all")))


def test_deepseek_v3_with_selection_biases_and_a_shared_expert():
    sizes = {"moe_intermediate_size": WIDTH // 5, "n_routed_experts": 9, "num_local_experts": 9, "n_shared_experts": 1}
    groups = {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True}
    given = DeepseekV3Config(**THEIRS, **sizes, **groups, experts_implementation="eager")
    experts = Experts(2, 5, shared=True, gate="sigmoid", bias_rate=0.1, aux_gamma=0.0)
    moe = type(layer(S2K4))(config(experts, intermediate_size=WIDTH // 5 * 5), 0, 1.0).double()
    fill(moe)
    bias = torch.randn(9, generator=torch.Generator().manual_seed(3)).double()
    theirs = DeepseekV3MoE(given)
    with torch.no_grad():
        moe.balance.copy_(bias)
        theirs.gate.e_score_correction_bias.copy_(bias)
        gate, up = moe.shared.up.weight.chunk(2)
        theirs.shared_experts.gate_proj.weight.copy_(gate)
        theirs.shared_experts.up_proj.weight.copy_(up)
        theirs.shared_experts.down_proj.weight.copy_(moe.shared.down.weight)
    without, _ = replace_bias(moe, inputs())
    assert not torch.allclose(moe(inputs())[0], without)
    check_against(theirs, moe)


def replace_bias(moe, x):
    kept = moe.balance.clone()
    moe.balance.zero_()
    result = moe(x)
    moe.balance.copy_(kept)
    return result


@pytest.mark.parametrize("kind", ["swiglu", "relu2", "oss_swiglu"])
@pytest.mark.parametrize("gate", ["selected", "all", "sigmoid"])
@pytest.mark.parametrize("sqrt_gate", [False, True])
def test_one_token_after_the_other(kind, gate, sqrt_gate):
    moe = layer(with_gate(S2K4, gate, sqrt_gate), kind, multiplier=0.7)
    x = inputs()
    torch.testing.assert_close(moe(x)[0].flatten(0, 1), by_token(moe, x.flatten(0, 1)))


def dense_of(moe, kind: str = "swiglu"):
    """A dense network whose hidden units are those of all experts."""
    dense = mlp.of_width(kind, config(moe.experts, kind), WIDTH).double()
    with torch.no_grad():
        maps = moe.up.unflatten(1, (-1, moe.down.shape[-1]))  # E, maps, I, n
        dense.up.weight.copy_(maps.transpose(0, 1).flatten(0, 2))
        dense.down.weight.copy_(moe.down.transpose(0, 1).flatten(1, 2))
    return dense


@pytest.mark.parametrize("kind", ["swiglu", "relu2", "oss_swiglu"])
def test_one_expert_is_the_dense_network(kind):
    moe, x = layer(Experts(1, 1), kind), inputs()
    torch.testing.assert_close(moe(x)[0], dense_of(moe, kind)(x))


def test_all_experts_are_the_dense_network():
    """S = 1: a token uses every expert; with equal logits each gate is 1 / k."""
    moe, x = layer(Experts(1, 4)), inputs()
    with torch.no_grad():
        moe.router.weight.zero_()
    torch.testing.assert_close(4 * moe(x)[0], dense_of(moe)(x))


def test_order_of_tokens_and_of_experts_does_not_matter():
    moe, x = layer(replace(S2K4, sqrt_gate=True)), inputs()
    y = moe(x)[0]
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(moe(x[:, order])[0], y[:, order])
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for p in (moe.router.weight, moe.up, moe.down):
            p.copy_(p[order].clone())
    torch.testing.assert_close(moe(x)[0], y)


def test_ties_go_to_the_lower_index():
    logits = torch.tensor([[0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-1.0, 0.0, -1.0, 0.0]])
    chosen = choose_experts(logits, Experts(2, 2)).experts_TK
    assert chosen.tolist() == [[1, 2], [0, 1], [1, 3]]


def test_sqrt_gates_have_unit_norm_and_stay_finite():
    logits = torch.tensor([[300.0, 0.0, -300.0, 1.0]], requires_grad=True)
    gates = choose_experts(logits, Experts(1, 4, sqrt_gate=True)).gates_TK
    assert gates.square().sum().item() == pytest.approx(1)
    gates.sum().backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("sqrt_gate", [False, True])
def test_shared_expert(sqrt_gate):
    moe, x = layer(Experts(2, 4, shared=True, sqrt_gate=sqrt_gate)), inputs()
    assert moe.up.shape == (7, 2 * WIDTH // 4, N) and moe.experts.active == 3
    expected = by_token(moe, x.flatten(0, 1)).view_as(x) + moe.shared(x)
    torch.testing.assert_close(moe(x)[0], expected * (0.5**0.5 if sqrt_gate else 1))


@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
@pytest.mark.parametrize("sqrt_gate", [False, True])
def test_several_shared_experts(kind, sqrt_gate):
    """DeepSeekMoE's (arXiv:2401.06066, equation 9): the sum of networks of an expert's width."""
    moe, x = layer(Experts(2, 4, shared=2, sqrt_gate=sqrt_gate), kind), inputs()
    assert (moe.up.shape[0], moe.experts.active) == (6, 2)
    ups, downs = moe.shared.up.weight.chunk(2 if kind == "relu2" else 4), moe.shared.down.weight.chunk(2, 1)
    total = by_token(moe, x.flatten(0, 1)).view_as(x)
    for i, down in enumerate(downs):
        assert down.shape == moe.down[0].shape
        h = (x @ ups[i].T).relu().square() if kind == "relu2" else F.silu(x @ ups[i].T) * (x @ ups[i + 2].T)
        total = total + h @ down.T
    torch.testing.assert_close(moe(x)[0], total / (3**0.5 if sqrt_gate else 1))


@pytest.mark.parametrize("factor", [None, 0.5, 2.0])
def test_expert_choice(factor):
    """factor: an expert takes this many times T k / E tokens, so the paper's capacity factor is 4 times it here."""
    moe, x = layer(replace(S2K4, routing="expert_choice", capacity=factor)), inputs()
    x_ND = x.flatten(0, 1)
    probs = (x_ND @ moe.router.weight.T).softmax(-1)
    expected, capacity = torch.zeros_like(x_ND), int(len(x_ND) // 2 * (factor or 1))
    assert moe.experts.mean_active * len(x_ND) == 8 * capacity
    for e in range(8):
        for t in probs[:, e].argsort(descending=True)[:capacity]:
            expected[t] += probs[t, e] * expert(moe, e, x_ND[t])
    y, routed = moe(x)
    torch.testing.assert_close(y.flatten(0, 1), expected)
    assert routed.counts_E.tolist() == [capacity] * 8


def test_capacity_of_the_layer():
    x = inputs()
    free, wide, tight = (layer(replace(S2K4, capacity=c)) for c in (None, 8.0, 0.5))
    torch.testing.assert_close(free(x)[0], wide(x)[0])
    assert not torch.allclose(free(x)[0], tight(x)[0])


def test_bf16_activations_are_routed_in_fp32():
    moe = layer(S2K4).float()
    x = inputs().bfloat16()
    y, routed = moe(x)
    assert y.dtype == torch.bfloat16 and routed.probs_E.dtype == torch.float32
    logits = x.float().flatten(0, 1) @ moe.router.weight.T
    torch.testing.assert_close(routed.z, logits.logsumexp(-1).square().sum())
    exact = by_token(moe.double(), x.double().flatten(0, 1)).view_as(y)
    assert (y.double() - exact).norm() < 0.02 * exact.norm()


def test_what_cannot_be_built():
    for experts, message in (
        (Experts(2, 5), "top_k is 5; it must divide the hidden width 64"),
        (Experts(2, 1, shared=True), "a shared expert is one of the top_k, so top_k must be at least 2"),
        (Experts(2, 4, shared=4), "a shared expert is one of the top_k, so top_k must be at least 5"),
        (Experts(2, 2, capacity=0.0), "capacity is 0.0; it must be positive"),
        (Experts(2, 2, routing="expert_choice"), "expert choice has no use for"),
        (Experts(2, 2, routing="expert_choice", aux_gamma=0.0, global_aux=True), "router_gate and global_aux cannot"),
        (Experts(2, 2, routing="expert_choice", aux_gamma=0.0, gate="all"), "router_gate and global_aux cannot"),
        (Experts(8, 1), "the loss would not train the router: give --router_gate all"),
        (Experts(8, 2, shared=True, gate="sigmoid"), "the loss would not train the router"),
        (Experts(2, 2, exact_aux=True), "exact_aux is a way to count for global_aux"),
        (Experts(2, 2, global_aux=True, aux_style="switch_seq"), "switch_seq balances single sequences"),
        (Experts(2, 2, aux_gamma=-1.0), "must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            config(experts)
    with pytest.raises(UserError, match="experts have no biases"):
        config(Experts(2, 2), mlp_bias=True)
    with pytest.raises(UserError, match="layers have experts, but the model does not say which"):
        config(Experts(2, 2)).replace(experts=None)
