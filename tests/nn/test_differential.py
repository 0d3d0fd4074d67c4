"""Differential attention against transformers' DiffLlama, and against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from attention_layers import check_caches, check_documents, layer_config, mixer_of
from torch import Tensor
from transformers import DiffLlamaConfig
from transformers.models.diffllama.modeling_diffllama import DiffLlamaAttention, DiffLlamaRotaryEmbedding

from lit_gpt.config.model import LayerSpec
from lit_gpt.errors import UserError
from lit_gpt.init import init_parameters
from lit_gpt.nn import rotary
from lit_gpt.nn.context import Context
from lit_gpt.ops.attention import describe, prepare_mask
from lit_gpt.scaling.base import Init, RolePlan

NAME = "differential_attention"
CROSS = (LayerSpec(NAME, window=4), LayerSpec(NAME), LayerSpec("differential_cross_attention", shares=1))


def grouped(weight: Tensor, heads: int) -> Tensor:
    """Rows of interleaved pairs in DiffLlama's order: all first heads, then all second ones."""
    return weight.unflatten(0, (heads // 2, 2, -1)).transpose(0, 1).flatten(0, 2)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 4), (8, 2)])
@torch.no_grad()
def test_it_is_the_one_of_transformers(heads, groups):
    config = layer_config(NAME, n_head=heads, n_kv_head=groups)
    ours = mixer_of(config, 1)
    ours.pair_norm.weight.fill_(1.0)  # theirs has no gain
    theirs_config = DiffLlamaConfig(
        hidden_size=config.n_embd,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=config.head_dim,
        rms_norm_eps=config.norm_eps,
        attn_implementation="eager",
    )
    theirs = DiffLlamaAttention(theirs_config, 1).double()
    theirs.q_proj.weight.copy_(grouped(ours.q.weight, heads))
    theirs.k_proj.weight.copy_(grouped(ours.k.weight, groups))
    theirs.v_proj.weight.copy_(grouped(ours.v.weight, groups))
    theirs.o_proj.weight.copy_(ours.out.weight)
    for name in ("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"):
        getattr(theirs, name).copy_(getattr(ours, name))

    x = torch.randn(2, 7, config.n_embd, dtype=torch.float64)
    positions = torch.arange(7)
    embedding = DiffLlamaRotaryEmbedding(theirs_config)(x, positions[None])
    mask = torch.full((7, 7), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    expected, _ = theirs(x, embedding, mask)
    y, _ = ours(x, Context(rope=rotary.tables(config, positions)))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def formula(layer, q: Tensor, k: Tensor, v: Tensor, scale: float, seen: Tensor, eps: float) -> Tensor:
    """Pair by pair."""
    heads, groups, pairs = q.shape[2], k.shape[2], []
    lam = (layer.lambda_q1 @ layer.lambda_k1).exp() - (layer.lambda_q2 @ layer.lambda_k2).exp() + layer.lambda_init
    for p in range(heads // 2):
        g = p * groups // heads
        value = torch.cat([v[:, :, 2 * g], v[:, :, 2 * g + 1]], -1)
        maps = []
        for i in range(2):
            scores = scale * q[:, :, 2 * p + i] @ k[:, :, 2 * g + i].transpose(1, 2)
            maps.append(scores.masked_fill(~seen, -torch.inf).softmax(-1))
        a = (maps[0] - lam * maps[1]) @ value
        a = a / (a.square().mean(-1, keepdim=True) + eps).sqrt() * layer.pair_norm.weight
        pairs.append(a * (1 - layer.lambda_init))
    return torch.cat(pairs, -1)


@pytest.mark.parametrize("backend", ["sdpa", "plain"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_it_is_the_formula(window, packed, backend):
    config = layer_config(NAME, window=window, n_head=8, n_kv_head=4)
    layer = mixer_of(config, 0)
    x = torch.randn(2, 9, config.n_embd, dtype=torch.float64)
    ids = torch.stack([torch.arange(9) // 4, (torch.arange(9) > 5).long()]) if packed else None
    request = describe(x.device, 9, 9, window, packed, False)
    y, _ = layer(x, Context(mask=prepare_mask(request, ids, x.device, backend), doc_ids=ids))
    distance = torch.arange(9)[:, None] - torch.arange(9)
    seen = ((distance >= 0) & (distance < (window or 9)))[None]
    seen = seen if ids is None else seen & (ids[:, :, None] == ids[:, None])
    heads = (m(x).unflatten(-1, (-1, config.head_dim)) for m in (layer.q, layer.k, layer.v))
    expected = formula(layer, *heads, config.head_dim**-0.5, seen, config.norm_eps)
    torch.testing.assert_close(y, layer.out(expected))


def test_gradients():
    config = layer_config(NAME, attn_sink=True, attn_gate=True)
    layer = mixer_of(config, 0)
    names, values = zip(*layer.named_parameters())
    x = torch.randn(1, 3, config.n_embd, dtype=torch.float64)

    def run(*lambdas: Tensor) -> Tensor:
        given = dict(zip(chosen, lambdas))
        return torch.func.functional_call(layer, given, (x, Context()))[0]

    chosen = [n for n in names if n.startswith("lambda") or n in ("sink", "pair_norm.weight")]
    assert len(chosen) == 6
    assert torch.autograd.gradcheck(run, tuple(v for n, v in zip(names, values) if n in chosen))
    assert torch.autograd.gradcheck(lambda x: layer(x, Context())[0], (x.requires_grad_(),))


@pytest.mark.parametrize("options", [{}, {"qk_norm": True, "attn_conv": True, "attn_norm": True}, {"attn_sink": True}])
@pytest.mark.parametrize("layers", [(), CROSS], ids=["self", "cross"])
def test_caches_and_documents(layers, options):
    config = layer_config(NAME, window=5, layers=layers, **options)
    check_caches(config)
    check_documents(config)


def test_lambda_at_the_start():
    """0.8 - 0.6 exp(-0.3 layer) by depth, or one constant; vectors N(0, 0.1)."""
    config = layer_config(NAME, head_dim=512)
    layers = [mixer_of(config, i) for i in (0, 1)]
    assert layers[0].lambda_init == pytest.approx(0.2)
    assert layers[1].lambda_init == pytest.approx(0.3555, abs=1e-4)
    init_parameters(layers[0], {"matrix": RolePlan(1.0, 0.0, Init())}, seed=1)
    vectors = torch.cat([getattr(layers[0], f"lambda_{n}") for n in ("q1", "k1", "q2", "k2")])
    assert abs(vectors.std() - 0.1) < 0.01 and abs(vectors.mean()) < 0.01
    constant = layer_config(NAME, mixer_options={NAME: {"lambda_init": 0.8}})
    assert mixer_of(constant, 1).lambda_init == 0.8


def test_odd_heads_are_refused():
    with pytest.raises(UserError, match="n_head=4 and n_kv_head=1"):
        mixer_of(layer_config(NAME, n_kv_head=1), 0)


def test_flops_count_both_maps_over_values_of_two_heads():
    plain, differential = (mixer_of(layer_config(name), 1) for name in ("attention", NAME))
    keys = (9 + 1) / 2
    assert differential.flops(9) - plain.flops(9) == 2 * 4 * 6 * keys
