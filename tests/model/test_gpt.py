"""GPT as a whole: caches, documents, counts, FLOPs, block variants, training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import CONFIGS, DENSE, LENGTH, VOCAB, model_of, optioned, small_family, tokens
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from lit_gpt.architectures import build
from lit_gpt.errors import UserError
from lit_gpt.evals.decoding import Decoder
from lit_gpt.metrics.counting import flops_per_token, param_counts
from lit_gpt.model import GPT, Output
from lit_gpt.nn.mixers.attention import visible_keys
from lit_gpt.ops.loss import IGNORE
from lit_gpt.roles import ROLES
from lit_gpt.scaling.base import Multipliers

EVERY = pytest.mark.parametrize("name", CONFIGS)
EVERY_DENSE = pytest.mark.parametrize("family", DENSE)


def config_of(name: str):
    make, argument = CONFIGS[name]
    return make(argument)


@EVERY
@torch.no_grad()
def test_cached_decoding_equals_the_full_forward(name):
    model, x = model_of(config_of(name)), tokens()
    full = model(x).logits
    assert full.shape == (2, LENGTH, VOCAB)
    decoder = Decoder(model, 2, LENGTH)
    pieces = [x[:, :9], x[:, 9:13], *x[:, 13:].split(1, dim=1)]
    stepwise = torch.cat([decoder(piece) for piece in pieces], dim=1)
    assert decoder.length == LENGTH
    torch.testing.assert_close(stepwise, full, rtol=1e-5, atol=1e-6)


@EVERY
@torch.no_grad()
def test_packed_documents_equal_separate_ones(name):
    model, x = model_of(config_of(name)), tokens(rows=1)
    doc_ids = torch.tensor([0] * 7 + [1] * 1 + [2] * 16)[None]
    packed = model(x, doc_ids_BT=doc_ids).logits
    separate = torch.cat([model(piece).logits for piece in x.split([7, 1, 16], dim=1)], dim=1)
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-6)


@EVERY
@torch.no_grad()
def test_the_future_is_not_seen(name):
    model, x = model_of(config_of(name)), tokens()
    y = x.clone()
    y[:, 10:] = (y[:, 10:] + 1) % VOCAB
    before, after = model(x).logits, model(y).logits
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])


@EVERY
def test_every_parameter_learns(name):
    """Nothing is built that the forward pass does not read."""
    model = model_of(config_of(name))
    model(tokens(), tokens().roll(1)).loss.backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


@EVERY
def test_flops_are_those_torch_counts(name):
    """torch counts attention over all T keys and, in this backend, as plain products."""
    config = config_of(name)
    model = model_of(config, attention_backend="plain", loss_backend="plain")
    with FlopCounterMode(display=False) as counter:
        model(tokens(), tokens()).loss.backward()
    per_key = 3 * 4 * config.n_head * config.head_dim
    unseen = sum(LENGTH - visible_keys(LENGTH, s.window) for s in config.layers)
    expected = 2 * LENGTH * (flops_per_token(model, LENGTH) + per_key * unseen)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-12)


def test_a_forward_gives_what_it_was_asked_for():
    """It gave a tensor, a record of routers, or both, depending on an argument."""
    model, x = model_of(optioned("gate")), tokens()
    logits, loss, nothing = model(x), model(x, x), model(x, head=False)
    assert {type(output) for output in (logits, loss, nothing)} == {Output}
    given = [[field for field, value in output._asdict().items() if value is not None] for output in (logits, loss)]
    assert given == [["logits"], ["loss"]] and loss.loss.ndim == 0
    assert nothing == Output(), "a model without experts has no routers"


@pytest.mark.parametrize("window", [None, 1, 4, 9, 20])
def test_visible_keys_counts_the_mask(window):
    distance = torch.arange(9)[:, None] - torch.arange(9)
    visible = (distance >= 0) & (distance < (window or 9))
    assert visible_keys(9, window) == visible.sum().item() / 9


@EVERY
def test_counts_are_exact(name):
    model = model_of(config_of(name))
    counts = param_counts(model)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    assert sum(counts[r] for r in ROLES) == counts["total"]
    positions = LENGTH if model.config.position == "learned" else 0
    assert counts["embedding"] == (64 + positions) * model.config.n_embd
    assert counts["head"] == (0 if model.config.tie_embeddings else 64 * model.config.n_embd)
    outside = sum(counts[table] for table in ("embedding", "value_table", "head"))
    assert counts["non_embedding"] == counts["total"] - outside


@pytest.mark.parametrize("depth", [4, 8, 12])
@EVERY_DENSE
def test_families_build_without_memory(family, depth):
    with torch.device("meta"):
        model = GPT(build(family, depth))
    assert all(p.is_meta for p in model.parameters())
    assert not list(model.buffers())
    config = model.config
    attention = 2 * config.n_embd * config.head_dim * (config.n_head + config.n_kv_head)
    gate = config.n_embd * config.n_head if config.attn_gate else 0
    multiple, maps = config.ffn_multiple, 2 if config.layers[0].ffn in ("relu2", "gelu") else 3
    ffn = maps * (config.intermediate_size if multiple is None else multiple * config.n_embd)
    counts = param_counts(model)
    assert counts["matrix"] + counts["output"] == depth * (attention + gate + config.n_embd * ffn)


@EVERY_DENSE
def test_families_learn_a_sequence(family):
    model = model_of(small_family(family), dtype=torch.float32)
    x = tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(16):
        loss = model(x[:, :-1], x[:, 1:]).loss / x[:, 1:].numel()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("backend", ["chunked", "plain"])
def test_loss_is_the_sum_over_targets_that_count(backend):
    model, x = model_of(optioned("qk_norm"), loss_backend=backend, loss_chunk=7), tokens()
    targets = x.roll(-1, dims=1)
    targets[:, -1] = IGNORE
    loss = model(x, targets, label_smoothing=0.1).loss
    expected = F.cross_entropy(
        model(x).logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE, label_smoothing=0.1
    )
    torch.testing.assert_close(loss, expected)


def test_half_precision_stays_near_and_streams_keep_their_dtypes():
    config = optioned("gate")
    exact, half = model_of(config), GPT(config, Multipliers(0.5, 0.7, 0.2), compute_dtype=torch.bfloat16)
    half.load_state_dict(exact.state_dict())
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert half.hidden(tokens())[0].dtype == torch.bfloat16
    seen = []
    half.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0].x.dtype))
    logits = half(tokens()).logits
    assert (logits.dtype, seen) == (torch.float32, [torch.float32])
    torch.testing.assert_close(logits.double(), exact(tokens()).logits, rtol=0.1, atol=0.1)


@EVERY
@torch.no_grad()
def test_weights_that_are_cast_once_give_the_same_to_the_bit(name):
    config = config_of(name)
    half, x = GPT(config, Multipliers(), compute_dtype=torch.bfloat16).eval(), tokens()
    half.load_state_dict(model_of(config).state_dict())
    logits, before = half(x).logits, param_counts(half)
    assert torch.equal(half.cast_products()(x).logits, logits)
    assert {p.dtype for p in half.parameters()} == {torch.float32, torch.bfloat16} and param_counts(half) == before


def test_post_norm_stream_is_in_compute_dtype():
    model = GPT(optioned("post_norm"), compute_dtype=torch.bfloat16)
    assert model.stream_dtype == torch.bfloat16


def test_unknown_backends_are_user_errors():
    with pytest.raises(UserError, match="attention backend"):
        model_of(optioned("gate"), attention_backend="flush")(tokens())
    with pytest.raises(UserError, match="loss"):
        model_of(optioned("gate"), loss_backend="chunk")(tokens(), tokens())


def test_cache_that_is_too_small_is_caught():
    model = model_of(optioned("gate"))
    with pytest.raises(AssertionError, match="room for 8 more tokens"):
        Decoder(model, 2, 8)(tokens())


def test_blocks_compile_without_graph_breaks_and_share_their_code():
    """Captured by dynamo with an eager backend; kernels are not generated here."""
    config = small_family("transformerls")
    layers = tuple(replace(spec, window=spec.window and 5) for spec in config.layers)
    model = model_of(config.replace(layers=layers), dtype=torch.float32)
    expected = model(tokens()).logits
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for block in model.blocks:
        block.forward = torch.compile(block.forward, fullgraph=True, backend=count)
    torch.testing.assert_close(model(tokens()).logits, expected)
    assert len(graphs) == 2, "one per window"


@pytest.mark.parametrize("name", ["baseline", "tied", "learned"])
def test_what_lies_outside_the_blocks_compiles_in_one_piece_each(name):
    model = model_of(optioned(name), dtype=torch.float32)
    expected, graphs = model(tokens()).logits, []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for part in ("start", "final"):
        setattr(model, part, torch.compile(getattr(model, part), fullgraph=True, backend=count))
    torch.testing.assert_close(model(tokens()).logits, expected)
    assert len(graphs) == 2
