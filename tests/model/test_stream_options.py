"""Every option around the residual stream, the values and the logits, against the formulas, one float64 row at a time.

Positions are none here, and rotary positions are compared with transformers elsewhere.
"""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from plan_helpers import plan_of, run_of
from small_models import MULTIPLIERS, VOCAB, model_of
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.config.model import LayerSpec, ModelConfig, Starts
from lit_gpt.errors import UserError
from lit_gpt.evals.decoding import Decoder
from lit_gpt.init import init_parameters
from lit_gpt.model import GPT
from lit_gpt.roles import roles_of

WIDTH, HEADS, GROUPS, SIZE, DEPTH, LENGTH = 40, 4, 2, 8, 4, 12  # a gate of 32 channels is a part of the width
TABLES = tuple(LayerSpec(value_embedding=i in (1, 3)) for i in range(DEPTH))
SQUARED = (LayerSpec(ffn="relu2"),) * DEPTH
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "logit_softcap": {"logit_softcap": 3.0},
    "value_embeddings": {"layers": TABLES},
    "residual_scalars": {"residual_scalars": True},
    "qk_norm_scale": {"qk_norm": True, "qk_norm_scale": 1.2},
    "embedding_norm": {"embedding_norm": True},
    "norm_gain": {"norm_gain": False, "qk_norm": True, "embedding_norm": True},
    "token_smear": {"token_smear": True},
    "backout": {"backout": True},
    "backout_layer": {"backout": True, "backout_layer": 1},
    "ffn_multiple": {"layers": SQUARED, "ffn_multiple": 4.0},
    "zero_output": {"zero_output": True},
}
CASES["all"] = {
    **{key: value for case in CASES.values() for key, value in case.items()},
    "layers": tuple(LayerSpec(ffn="relu2", value_embedding=i in (1, 3)) for i in range(DEPTH)),
}
ABOUT_WEIGHTS = ("zero_output", "norm_gain", "ffn_multiple")
DOCUMENTS = torch.tensor([[0] * 5 + [1] + [2] * 6, [3] * 12])


def config_of(case: str) -> ModelConfig:
    sizes = {"n_embd": WIDTH, "n_head": HEADS, "n_kv_head": GROUPS, "head_dim": SIZE, "intermediate_size": 48}
    fields: dict[str, Any] = {"layers": (LayerSpec(),) * DEPTH, **sizes, **CASES[case]}
    return ModelConfig(case, DEPTH, vocab_size=VOCAB, block_size=LENGTH, position="none", varlen=True, **fields)


def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def rms(x: Tensor, gain: Tensor | None) -> Tensor:
    y = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return y if gain is None else y * gain


def attention(w: dict[str, Tensor], config: ModelConfig, layer: int, h: Tensor, row: Tensor) -> Tensor:
    """One document, (T, n): a loop over heads and positions."""
    at = f"blocks.{layer}.mixer."
    q, k, v = ((h @ w[f"{at}{name}.weight"].T).unflatten(-1, (-1, SIZE)) for name in "qkv")
    if config.qk_norm:
        q, k = (rms(x, w.get(f"{at}{name}_norm.weight")) * config.qk_norm_scale for name, x in (("q", q), ("k", k)))
    if config.layers[layer].value_embedding:
        for t, token in enumerate(row):
            for group in range(GROUPS):
                gate = 2 * torch.sigmoid(h[t, :32] @ w[f"{at}value_embedding.gate"][group])
                vector = w[f"{at}value_embedding.table"][token, group * SIZE : (group + 1) * SIZE]
                v[t, group] = v[t, group] + gate * vector
    out = torch.zeros(len(h), HEADS, SIZE, dtype=torch.float64)
    for t in range(len(h)):
        for head in range(HEADS):
            group = head * GROUPS // HEADS
            weights = (MULTIPLIERS.attention * k[: t + 1, group] @ q[t, head]).softmax(0)  # type: ignore[operator]
            out[t, head] = weights @ v[: t + 1, group]
    return out.flatten(1) @ w[f"{at}out.weight"].T


def feed_forward(w: dict[str, Tensor], config: ModelConfig, layer: int, h: Tensor) -> Tensor:
    up = h @ w[f"blocks.{layer}.ffn.up.weight"].T
    if config.layers[layer].ffn == "relu2":
        inner = up.clamp(min=0) ** 2
    else:
        gate, up = up.chunk(2, dim=-1)
        inner = gate * torch.sigmoid(gate) * up
    return inner @ w[f"blocks.{layer}.ffn.down.weight"].T


def naive(model: GPT, row: Tensor) -> Tensor:
    """Logits (T, V) of one document."""
    w, config = {name: p.detach().double() for name, p in model.named_parameters()}, model.config
    x = w["wte.weight"][row]
    if config.embedding_norm:
        x = rms(x, w.get("embedding_norm.weight"))
    if config.token_smear:
        gates = [w["smear.scale"] * torch.sigmoid(x[t, :24] @ w["smear.gate"][0]) for t in range(len(x))]
        x = torch.stack([x[0], *(x[t] + gates[t] * x[t - 1] for t in range(1, len(x)))])
    first, middle = x, x
    for layer in range(DEPTH):
        at = f"blocks.{layer}."
        middle = x if layer == (DEPTH // 2 if config.backout_layer is None else config.backout_layer) else middle
        if config.residual_scalars:
            x = w[f"{at}scalars.stream"] * x + w[f"{at}scalars.first"] * first
        h = rms(x, w.get(f"{at}norm1.weight"))
        x = x + MULTIPLIERS.residual * attention(w, config, layer, h, row)
        x = x + MULTIPLIERS.residual * feed_forward(w, config, layer, rms(x, w.get(f"{at}norm2.weight")))
    if config.backout:
        x = x - w["backout"] * middle
    z = MULTIPLIERS.logit * rms(x, w.get("norm.weight")) @ w["head.weight"][:VOCAB].T
    return config.logit_softcap * torch.tanh(z / config.logit_softcap) if config.logit_softcap else z


def expected_logits(model: GPT, rows: Tensor, documents: Tensor | None = None) -> Tensor:
    if documents is None:
        return torch.stack([naive(model, row) for row in rows])
    lengths = [torch.unique_consecutive(ids, return_counts=True)[1].tolist() for ids in documents]
    return torch.stack([torch.cat([naive(model, d) for d in row.split(n)]) for row, n in zip(rows, lengths)])


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_logits_are_those_of_the_formulas(case):
    model, x = model_of(config_of(case)), tokens()
    torch.testing.assert_close(model(x).logits, expected_logits(model, x), rtol=1e-9, atol=1e-9)
    packed = model(x, doc_ids_BT=DOCUMENTS).logits
    torch.testing.assert_close(packed, expected_logits(model, x, DOCUMENTS), rtol=1e-9, atol=1e-9)


# Others change which weights there are, or how they start.
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("plain", *ABOUT_WEIGHTS)])
@torch.no_grad()
def test_the_option_matters(case):
    """The comparison above is about something: the same weights without it give other logits."""
    neutral = {"logit_softcap": 0.0, "residual_scalars": False, "qk_norm_scale": 1.0, "embedding_norm": False}
    neutral |= {"token_smear": False, "backout": False, "backout_layer": None}
    config, model, x = config_of(case), model_of(config_of(case)), tokens()
    layers = tuple(LayerSpec(ffn=spec.ffn) for spec in config.layers)
    other = model_of(config.replace(layers=layers, **neutral))
    kept = {name: p for name, p in model.state_dict().items() if name in other.state_dict()}
    other.load_state_dict(kept)
    assert (model(x).logits - other(x).logits).abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["plain", "chunked"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_soft_cap_is_in_every_loss(backend, smoothing):
    """Value and both gradients, against autograd through torch's own cross-entropy; and the loss of each token."""
    model, x = model_of(config_of("logit_softcap"), loss_backend=backend, loss_chunk=5), tokens()
    hidden, _ = model.hidden(x)
    leaf, targets = hidden.detach().requires_grad_(), x.roll(-1, 1)
    weight = model.head_weight()
    found = torch.autograd.grad(model.loss(leaf, targets, smoothing), (leaf, weight))
    capped = 3.0 * torch.tanh(leaf @ weight[:VOCAB].T / 3.0)
    loss = F.cross_entropy(capped.flatten(0, 1), targets.flatten(), reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(model.loss(leaf, targets, smoothing), loss)
    for ours, theirs in zip(found, torch.autograd.grad(loss, (leaf, weight))):
        torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        each = F.cross_entropy(capped.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        torch.testing.assert_close(model.losses(leaf, targets), each)
        torch.testing.assert_close(model.loss(leaf, targets, smoothing), loss.detach())


@torch.no_grad()
def test_rows_that_are_copied_and_chosen_remember_their_last_embedding():
    """The token smear reads it; a beam search and several texts of one prompt go on from copies."""
    model, x = model_of(config_of("token_smear")), tokens()
    decoder = Decoder(model, 2, LENGTH)
    decoder(x[:, :7])
    decoder.select(torch.tensor([1, 0, 0]))
    swapped = x[[1, 0, 0]]
    expected = expected_logits(model, swapped)
    torch.testing.assert_close(decoder(swapped[:, 7:9]), expected[:, 7:9], rtol=1e-9, atol=1e-9)
    one = Decoder(model, 1, LENGTH)
    one(x[:1, :7])
    several = one.copies(2)
    torch.testing.assert_close(several(x[[0, 0], 7:]), expected[[1, 1], 7:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one(x[:1, 7:]), expected[1:2, 7:], rtol=1e-9, atol=1e-9)


def test_what_has_a_role_of_its_own():
    roles = roles_of(model_of(config_of("all")))
    assert roles["blocks.1.mixer.value_embedding.table"] == "value_table"
    assert roles["blocks.1.mixer.value_embedding.gate"] == roles["smear.gate"] == "gate"
    assert roles["blocks.0.scalars.stream"] == "residual_scalar"
    assert {roles[name] for name in ("blocks.0.scalars.first", "smear.scale", "backout")} == {"scalar"}
    ends = {name for name, role in roles.items() if role == "output"}
    assert ends == {f"blocks.{i}.{part}.weight" for i in range(DEPTH) for part in ("mixer.out", "ffn.down")}
    assert not any("value_embedding" in name for name in roles if name.startswith(("blocks.0", "blocks.2")))


def test_starts_change_what_they_name_and_nothing_else():
    """Each start of a family that has its own, beside the same weights of one that has not."""
    config, plan = config_of("all"), plan_of(run_of(parameterization="baseline"))
    starts = Starts(up=0.4, gate=0.02, stream=(1.15, 1.05), first=(0.2, 0.05))
    usual, other = GPT(config), GPT(config.replace(starts=starts))
    for model in (usual, other):
        init_parameters(model, plan.roles, seed=7)
    for (name, p), q in zip(usual.named_parameters(), other.parameters()):
        share = int(name.split(".")[1]) / (DEPTH - 1) if name.startswith("blocks") else 0.0
        if name.endswith("ffn.up.weight"):
            assert p.std() > 0 and torch.equal(q, 0.4 * p)
        elif name.endswith("gate"):
            assert not p.any() and 0 <= q.min() < q.max() < 0.02
        elif "scalars" in name:
            plain, start, end = (1.0, 1.15, 1.05) if name.endswith("stream") else (0.1, 0.2, 0.05)
            assert p.item() == pytest.approx(plain) and q.item() == pytest.approx(start + (end - start) * share)
        else:
            assert torch.equal(p, q), name
    written = json.loads(json.dumps(other.config.to_dict()))
    assert ModelConfig.from_dict(written) == other.config
    assert ModelConfig.from_dict({k: v for k, v in written.items() if k != "starts"}) == config


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"skip": "sum", "backout": True}, "leaves no residual stream for backout"),
        ({"backout": True, "backout_layer": DEPTH}, f"backout_layer is {DEPTH}; it must be a layer, below {DEPTH}"),
        ({"backout_layer": 1}, "of a model with backout"),
        ({"qk_norm_scale": 1.2}, "qk_norm_scale multiplies what qk_norm gives"),
        ({"logit_softcap": -1.0}, "must be positive, or 0"),
        ({"ffn_multiple": 0.0}, "ffn_multiple is 0.0, which times 40 is no width"),
        ({"layers": (LayerSpec(ffn=None),) * DEPTH, "ffn_multiple": 4.0}, "no layer has one"),
    ],
)
def test_what_cannot_act_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        config_of("plain").replace(**changes)


def test_value_embeddings_need_values():
    layers = (LayerSpec("mamba", value_embedding=True), *(LayerSpec(),) * (DEPTH - 1))
    with pytest.raises(UserError, match="Layer 0 has the mixer mamba, which has no values of its own"):
        GPT(config_of("plain").replace(layers=layers))


def test_naive_scores_use_both_factors():
    """1.2 on queries and on keys is 1.44 on scores: the formulas above are not the module's shortcut."""
    model = model_of(config_of("qk_norm_scale"))
    scale = model.blocks[0].mixer.scale  # type: ignore[union-attr]
    assert math.isclose(scale, 1.44 * MULTIPLIERS.attention)  # type: ignore[operator, arg-type]
