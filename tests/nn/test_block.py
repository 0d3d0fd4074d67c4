"""Block variants against their formulas, with stand-ins for the mixer and the network."""

from __future__ import annotations

import pytest
import torch
from small_models import MULTIPLIERS, model_of, optioned
from torch import nn
from torch.nn import functional as F

from lit_gpt.architectures import build
from lit_gpt.model import GPT
from lit_gpt.nn import mlp
from lit_gpt.nn.block import Stream
from lit_gpt.nn.context import Context

M = MULTIPLIERS.residual


class Mix(nn.Module):
    """A mixer that is easy to write down."""

    def forward(self, x, context, shared, cache):
        return torch.sin(x).cumsum(1), None


def block_of(name: str, layer: int = 0):
    block = model_of(optioned(name)).blocks[layer]
    block.mixer, block.ffn = Mix(), nn.Tanh()
    return block, torch.randn(2, 5, 32, dtype=torch.float64)


def mix(x):
    return Mix()(x, None, None, None)[0]


def rms(x, gain=1.0):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def run(block, x, total=None):
    return block(Stream(x, total), Context())[0]


def test_pre_norm():
    block, x = block_of("qk_norm")
    y = x + M * mix(rms(x, block.norm1.weight))
    y = y + M * torch.tanh(rms(y, block.norm2.weight))
    torch.testing.assert_close(run(block, x).x, y)


def test_parallel():
    """PaLM's (arXiv:2204.02311, section 2): both branches read one norm, and there is no other."""
    block, x = block_of("parallel")
    s = rms(x, block.norm1.weight)
    torch.testing.assert_close(run(block, x).x, x + M * (mix(s) + torch.tanh(s)))
    names = [n for n, _ in model_of(optioned("parallel")).named_parameters() if "norm" in n]
    assert names == ["blocks.0.norm1.weight", "blocks.1.norm1.weight", "norm.weight"]


def test_eps_of_norms():
    norm, x = model_of(optioned("parallel_layernorm")).blocks[0].norm1, 1e-2 * torch.randn(3, 32, dtype=torch.float64)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x, torch.float64), expected)


def test_post_norm():
    block, x = block_of("post_norm")
    s = rms(x, block.norm1.weight)
    s = rms(s + M * mix(s), block.norm2.weight)
    torch.testing.assert_close(run(block, x).x, s + M * torch.tanh(s))


@pytest.mark.parametrize("name", ["decoupled", "skip_gain"])
def test_decoupled(name):
    block, x = block_of(name)
    assert block.norm1.weight is None

    def sublayer(x, path, f):
        s = rms(x)
        return s * (path.gain if name == "skip_gain" else 1) + M * f(s * path.branch_gain)

    y = sublayer(sublayer(x, block.skip1, mix), block.skip2, torch.tanh)
    torch.testing.assert_close(run(block, x).x, y)


def test_skip_projection_is_on_the_mixers_path_only():
    block, x = block_of("skip_projection", layer=1)
    s = rms(x, block.norm1.weight)
    s = rms(s @ block.skip1.projection.weight.T + M * mix(s), block.norm2.weight)
    torch.testing.assert_close(run(block, x).x, s + M * torch.tanh(s))
    names = [n for n, _ in model_of(optioned("skip_projection")).named_parameters() if "projection" in n]
    assert names == ["blocks.1.skip1.projection.weight"]


def test_skip_projection_is_not_built_in_pre_norm():
    config = optioned("skip_projection").replace(post_norm=False)
    assert not [n for n, _ in model_of(config).named_parameters() if "projection" in n]


def test_no_skip():
    block, x = block_of("skip_none")
    h = mix(rms(x, block.norm1.weight))
    torch.testing.assert_close(run(block, x).x, torch.tanh(rms(h, block.norm2.weight)))


def test_sum_of_branches():
    block, x = block_of("skip_sum")
    h1 = mix(rms(x, block.norm1.weight))
    h2 = torch.tanh(rms(h1, block.norm2.weight))
    out = run(block, x, torch.ones_like(x))
    torch.testing.assert_close(out.x, h2)
    torch.testing.assert_close(out.total, 1 + M * h1 + M * h2)


@pytest.mark.parametrize("kind", ["swiglu", "relu2", "oss_swiglu", "gelu"])
def test_feed_forward_kinds(kind):
    name = kind if kind != "swiglu" else "gate"
    ffn = model_of(optioned(name)).blocks[0].ffn
    assert type(ffn) is mlp.KINDS[kind]
    x = 4 * torch.randn(3, 32, dtype=torch.float64)
    u = x @ ffn.up.weight.T
    a, b = u.chunk(2, -1)
    limited = b.clamp(-7, 7)
    hidden = {
        "swiglu": F.silu(a) * b,
        "relu2": F.relu(u) ** 2,
        "gelu": u / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3))),
        "oss_swiglu": a.clamp(max=7) / (1 + torch.exp(-1.702 * a.clamp(max=7))) * (limited + 1),
    }[kind]
    assert hidden.shape[-1] == (72 if kind == "relu2" else 48)
    torch.testing.assert_close(ffn(x), hidden @ ffn.down.weight.T)


@pytest.mark.parametrize("family, rows", [("transformer", (128, 128, 128)), ("gdn", (256, 256, 512))])
def test_heads_are_known_to_optimizers(family: str, rows: tuple[int, ...]) -> None:
    """Rows of a head of queries, keys and values, which --optimizer_args.split_heads takes apart."""
    with torch.device("meta"):
        weights = dict(GPT(build(family, 8)).blocks[0].mixer.named_parameters())
    qkv = [weights.get(f"{name}.weight", weights.get(f"qkv.{name}.weight")) for name in "qkv"]
    assert tuple(w.shape[0] // w.heads for w in qkv if w is not None) == rows
