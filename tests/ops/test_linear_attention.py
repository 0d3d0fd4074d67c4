"""Linear attention against its definition in float64 and against transformers' lightning attention."""

from __future__ import annotations

import itertools
import types

import pytest
import recurrences as naive
import torch
from torch.nn import functional as F
from transformers.models.minimax.configuration_minimax import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

from lit_gpt.errors import UserError
from lit_gpt.ops import linear_attention as ops
from lit_gpt.ops import linear_recurrence
from lit_gpt.ops.linear_attention import linear_attention
from lit_gpt.ops.linear_recurrence import Call, Request

FORMS = ["none", "constant", "head", "channel"]
SCALE = 0.3


def start() -> torch.Tensor:
    return naive.normal(naive.BATCH, naive.HEADS, naive.KEY, naive.VALUE, seed=5)


@pytest.mark.parametrize("length", [1, 7, 64, 80])
@pytest.mark.parametrize("form", FORMS)
def test_definition(form, length):
    inputs = (*naive.qkv(length), naive.log_decay(form, length))
    o, state = linear_attention(*inputs, scale=SCALE, state=start())
    expected = naive.recurrence(*inputs, SCALE, state=start())
    torch.testing.assert_close((o, state), expected)


def test_scale_and_state_have_defaults():
    q, k, v = naive.qkv(9)
    o, state = linear_attention(q, k, v)
    torch.testing.assert_close(o, naive.recurrence(q, k, v, None, naive.KEY**-0.5)[0])
    assert state is None


@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_equal_separate_ones(form):
    """Values, last states and every gradient, with other boundaries in each row."""
    given = [*naive.qkv(), naive.log_decay(form)]
    leaves = [x.requires_grad_() for x in given if x is not None]
    pad = [None] * (4 - len(leaves))
    zeros = torch.zeros_like(start())
    packed = linear_attention(*given, scale=SCALE, doc_ids=naive.ids(), state=zeros)
    separate = naive.separately(lambda *x: naive.recurrence(*x, *pad, SCALE), *leaves)
    torch.testing.assert_close(packed, separate)
    weights = naive.normal(*packed[0].shape, seed=3), naive.normal(*zeros.shape, seed=4)
    gradients = [torch.autograd.grad([(a * w).sum() for a, w in zip(r, weights)], leaves) for r in (packed, separate)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 50, 79])
def test_the_state_carries_over(form, cut):
    q, k, v = naive.qkv()
    g = naive.log_decay(form)
    whole, final = linear_attention(q, k, v, g, state=start())
    state, outputs = start(), []
    for part in (slice(0, cut), slice(cut, None)):
        decay = g if g is None or g.ndim == 1 else g[:, part]
        o, state = linear_attention(q[:, part], k[:, part], v[:, part], decay, state=state)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 1), whole)
    torch.testing.assert_close(state, final)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form):
    ids = torch.tensor([[0, 0, 1, 1, 1], [3, 3, 3, 3, 4]])
    given = [*naive.qkv(5), start(), naive.log_decay(form, 5)]
    leaves = [x.requires_grad_() for x in given if x is not None]
    assert torch.autograd.gradcheck(
        lambda q, k, v, s, g=None: linear_attention(q, k, v, g, doc_ids=ids, state=s), leaves, fast_mode=True
    )


@pytest.mark.parametrize("form", FORMS[1:])
def test_strong_decays_stay_finite(form):
    """A chunk's decays multiply to far below what fp32 holds; no quotient of them is ever taken."""
    inputs = [
        x.requires_grad_() for x in (*naive.qkv(dtype=torch.float32), naive.log_decay(form, strength=30.0).float())
    ]
    o, _ = linear_attention(*inputs)
    expected, _ = naive.recurrence(*(x.detach().double() for x in inputs), naive.KEY**-0.5)
    torch.testing.assert_close(o.double(), expected, rtol=1e-4, atol=1e-4)
    o.square().sum().backward()
    assert all(x.grad.isfinite().all() for x in inputs)


def test_half_precision_inputs():
    q, k, v = naive.qkv(dtype=torch.bfloat16)
    g = naive.log_decay("channel", dtype=torch.float32)
    o, _ = linear_attention(q, k, v, g)
    exact, _ = linear_attention(q.double(), k.double(), v.double(), g.double())
    assert o.dtype == torch.bfloat16
    torch.testing.assert_close(o, exact.bfloat16())


def test_against_lightning_attention():
    """MiniMax: constant decays, silu, a norm over all heads and a gate around them; with a state too."""
    config = MiniMaxConfig(
        hidden_size=24,
        num_attention_heads=3,
        head_dim=8,
        num_hidden_layers=4,
        block_size=16,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    theirs = MiniMaxLightningAttention(config, layer_idx=1).double()
    x = naive.normal(2, 45, 24, seed=0)
    expected, final = theirs(x, None, None)
    q, k, v = F.silu(theirs.qkv_proj(x)).unflatten(-1, (3, 24)).split(8, dim=-1)
    decay = -theirs.slope_rate.flatten().double()
    o, state = linear_attention(q, k, v, decay, scale=1.0, state=torch.zeros(2, 3, 8, 8).double())
    ours = theirs.out_proj(theirs.output_gate(x).sigmoid() * theirs.norm(o.flatten(2)))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state, final, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("row", "form"), [*itertools.product(["fla_steps", "fla"], FORMS), ("fla_gla", "head")])
def test_how_the_kernels_are_called(form, row, packed, monkeypatch):
    """On kernels written out in Python: which argument a decay is, and documents as one long row."""
    names = ("fused_recurrent_simple_gla", "fused_recurrent_gla", "chunk_simple_gla", "chunk_gla")
    documents = (naive.ids(), naive.offsets()) if packed else (None, None)
    call = Call(*naive.qkv(), None, naive.log_decay(form), SCALE, False, *documents, start())
    naive.check_call(ops, row, names, call, monkeypatch)


def test_which_kernel_is_chosen(monkeypatch):
    for decay in ("none", "constant", "head", "channel"):
        assert naive.chosen(ops, Request(decay=decay), monkeypatch) == "fla"
        assert naive.chosen(ops, Request(decay=decay, gradients=False, length=1), monkeypatch) == "fla_steps"
        assert naive.chosen(ops, Request(decay=decay, device="cpu"), monkeypatch) == "plain"
        assert naive.chosen(ops, Request(decay=decay, dtype=torch.float32), monkeypatch) == "plain"
    assert naive.chosen(ops, Request(decay="constant", key_dim=3), monkeypatch) == "plain"
    assert naive.chosen(ops, Request(decay="head"), monkeypatch, "miscompiled") == "fla_gla"
    assert naive.chosen(ops, Request(decay="head", gradients=False), monkeypatch, "miscompiled") == "fla"
    assert naive.chosen(ops, Request(decay="constant"), monkeypatch, "miscompiled") == "fla"


@pytest.mark.parametrize(
    ("triton", "capability", "tilelang", "wrong"),
    [("3.6.0", 9, False, True), ("3.7.0+git1", 9, False, True), ("3.7.1", 9, False, False), ("3.3.1", 9, False, False),
     ("3.6.0", 10, False, False), ("3.6.0", 9, True, False)],
)  # fmt: skip
def test_miscompiled_gradients_are_refused(triton, capability, tilelang, wrong, monkeypatch):
    monkeypatch.setattr(linear_recurrence, "optional", lambda name: types.SimpleNamespace(__version__=triton))
    monkeypatch.setattr(linear_recurrence, "missing", lambda name: "" if tilelang else "no tilelang")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    reason = linear_recurrence.wrong_gradients.__wrapped__(tilelang_helps=True)
    assert bool(reason) == wrong
    assert not wrong or ("triton>=3.7.1" in reason and "tilelang" in reason)
    assert bool(linear_recurrence.wrong_gradients.__wrapped__(tilelang_helps=False)) == (wrong or tilelang)


def test_a_kernel_that_cannot_run_here_is_an_error():
    with pytest.raises(UserError, match="run on CUDA devices"):
        linear_attention(*naive.qkv(4), backend="fla")
