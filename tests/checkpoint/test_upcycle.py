"""--init_from a dense model into its mixture of experts: logits, what is said, what is refused, several processes."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import moe_models
import pytest
import torch
from small_models import model_of, small, tokens
from spawn import run_distributed
from tiny_model import CONFIG, build_adamw, build_model, same, snapshot

from lit_gpt.architectures import FAMILIES, build, experts_of
from lit_gpt.checkpoint import Checkpointer, load_exported, load_weights, write_exported
from lit_gpt.checkpoint.upcycle import groups, mixture_of
from lit_gpt.config.model import Experts, LayerSpec, ModelConfig
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.parallel import start_runtime
from lit_gpt.scaling.base import Multipliers

MULTIPLIERS = Multipliers(logit=0.5, residual=0.7, attention=0.2, router=3.0)
FOUR = Experts(sparsity=4, top_k=4)
EXACT = {
    "two": (Experts(4, 2), "swiglu", 2.0),
    "many": (Experts(16, 8), "swiglu", 8.0),  # of more groups than there are pairs of coordinates
    "roots": (replace(FOUR, sqrt_gate=True), "swiglu", 2.0),
    "sigmoid": (replace(FOUR, gate="sigmoid"), "swiglu", 4.0),
    "sigmoid_roots": (Experts(3, 4, gate="sigmoid", sqrt_gate=True), "swiglu", 2.0),
    "shared": (replace(FOUR, shared=True), "swiglu", 3.0),
    "shared_two": (replace(FOUR, shared=2), "swiglu", 2.0),
    "shared_two_roots": (Experts(3, 4, shared=2, sqrt_gate=True), "relu2", 6**0.5),
    "shared_roots": (Experts(3, 4, shared=True, sqrt_gate=True), "swiglu", 6**0.5),  # two experts are left over
    "relu2": (FOUR, "relu2", 4.0),
    "shared_relu2": (replace(FOUR, shared=True), "relu2", 3.0),
    "oss": (FOUR, "oss_swiglu", 4.0),
    "biased": (replace(FOUR, bias_rate=0.01, aux_gamma=0.0), "swiglu", 4.0),
    "enough_capacity": (replace(FOUR, capacity=4.0), "swiglu", 4.0),
    "one_of_one": (Experts(1, 1), "swiglu", 1.0),
    "all_of_four": (Experts(1, 4, gate="all"), "swiglu", 4.0),
    "everyone_chooses_all": (Experts(1, 4, routing="expert_choice", aux_gamma=0.0), "swiglu", 4.0),
}
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}  # in float64


def without_experts(config: ModelConfig) -> ModelConfig:
    return config.replace(layers=tuple(replace(s, experts=False) for s in config.layers), experts=None)


def gpt(config: ModelConfig, seed: int = 0, multipliers: Multipliers = MULTIPLIERS) -> GPT:
    model = GPT(config, multipliers, compute_dtype=torch.float64, residual_dtype=torch.float64).double()
    moe_models.fill(model, seed)
    return model


def export(model: GPT, path: Path) -> Path:
    meta = {"version": 1, "model": model.config.to_dict(), "multipliers": asdict(model.multipliers)}
    return write_exported({name: t.detach().clone() for name, t in model.state_dict().items()}, meta, path)


def pair(tmp_path: Path, config: ModelConfig, **changes: Any) -> tuple[GPT, GPT]:
    """(a dense model, the mixture that started from it). changes: to the dense model's description."""
    dense, mixture = gpt(without_experts(config).replace(**changes)), gpt(config, seed=1)
    load_weights(export(dense, tmp_path / "dense.safetensors"), mixture, start_runtime())
    return dense, mixture


def logits(model: GPT) -> torch.Tensor:
    with torch.no_grad():
        found = model(tokens(4)).logits
    assert found is not None
    return found


@pytest.mark.parametrize("case", EXACT)
def test_logits_are_the_dense_models(case, tmp_path, capsys):
    experts, kind, factor = EXACT[case]
    dense, mixture = pair(tmp_path, moe_models.config(experts, kind))
    torch.testing.assert_close(logits(mixture), logits(dense), **ROUNDING)
    said = capsys.readouterr().err
    assert "logits at the start equal the dense model's" in said and f"projections times {factor:.4g})" in said
    # And not because all tokens go to one place.
    routed = mixture(tokens(4)).routed
    used = [(counts > 0).sum().item() for counts in routed.counts_E]
    assert experts.sparsity == 1 or min(used) >= 2 * experts.active


def test_what_is_said(tmp_path, capsys):
    pair(tmp_path, moe_models.config(Experts(3, 4, shared=True)))
    assert capsys.readouterr().err == (
        "init_from: 2 dense feed-forward networks became 2 x 11 experts (slices of 1/4, 3 or 4 of each, down "
        "projections times 3), and 2 shared experts; routers start anew; 15 other tensors copied; "
        "logits at the start equal the dense model's.\n"
    )


def test_experts_are_slices_and_copies(tmp_path):
    dense, mixture = pair(tmp_path, moe_models.config(Experts(3, 4, shared=True)))
    ffn, moe = dense.blocks[1].ffn, mixture.blocks[1].ffn
    group_E, slice_E = groups(moe.experts)
    assert group_E.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2] and slice_E.tolist() == [0, 1, 2] * 3 + [0, 1]
    for up, down, part, factor in [
        *((moe.up[e], moe.down[e], int(slice_E[e]), 3.0) for e in range(11)),
        (moe.shared.up.weight, moe.shared.down.weight, 3, 1.0),
    ]:
        units = slice(16 * part, 16 * part + 16)
        assert torch.equal(up, torch.cat([ffn.up.weight[:64][units], ffn.up.weight[64:][units]]))
        assert torch.equal(down, ffn.down.weight[:, units] * factor)
    for name, tensor in dense.state_dict().items():
        assert ".ffn." in name or torch.equal(mixture.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("experts", "width"),
    [(Experts(8, 2), 48), (Experts(32, 2), 21), (Experts(5, 4, shared=True), 33), (Experts(3, 8, shared=True), 20)],
)
def test_scores_of_a_group_are_equal_bits(experts, width):
    """Whatever kernel adds them up: rows of random numbers give sums that differ in their last bits on some CPUs."""
    moe = gpt(moe_models.config(experts, n_embd=width, n_head=1, head_dim=4, layers=1)).blocks[0].ffn.float()
    dense = {"ffn.up.weight": torch.zeros(128, width), "ffn.down.weight": torch.zeros(width, 64)}
    rows_EN = mixture_of("ffn", moe, dense)["ffn.router.weight"]
    drawn, length = moe.router.weight.norm() * len(rows_EN) ** -0.5, rows_EN.norm(dim=1)
    assert (length > 0.7 * drawn).all() and (length < 1.42 * drawn).all()
    group_E, _ = groups(experts)
    ends_E2 = torch.stack([rows_EN.max(1).values, -rows_EN.min(1).values], 1)
    assert (rows_EN != 0).sum(1).eq(2).all() and ends_E2.frexp().mantissa.eq(0.5).all()  # powers of two
    assert len({tuple(row) for row in rows_EN.tolist()}) == group_E[-1] + 1
    for rows in (1, 3, 250):
        x_TN = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows))
        scores_TE = torch.nn.functional.linear(x_TN, rows_EN)
        first_E = group_E * experts.active
        assert torch.equal(scores_TE, scores_TE[:, first_E])


INEXACT = {
    "all": (Experts(4, 2, gate="all"), "gates of router_gate all change from token to token"),
    "switch": (Experts(8, 1, gate="all"), "gates of router_gate all change from token to token"),
    "all_roots": (Experts(4, 4, gate="all", sqrt_gate=True, shared=True), "gates of router_gate all change"),
    "choice": (
        Experts(4, 2, routing="expert_choice", aux_gamma=0.0),
        "experts choose tokens, so a token may have more",
    ),
}


@pytest.mark.parametrize("case", INEXACT)
def test_where_gates_vary_their_mean_is_undone(case, tmp_path, capsys):
    experts, why = INEXACT[case]
    dense, mixture = pair(tmp_path, moe_models.config(experts))
    said = capsys.readouterr().err
    assert f"the start is not exact: {why}" in said and "equal" not in said
    assert not torch.allclose(logits(mixture), logits(dense), rtol=1e-3)
    moe, ffn = mixture.blocks[0].ffn, dense.blocks[0].ffn
    x = moe_models.inputs(rows=50, length=20)
    with torch.no_grad():
        found, wanted = moe(x)[0].flatten(), ffn(x).flatten()
    assert torch.dot(found, wanted) / torch.dot(wanted, wanted) == pytest.approx(1, abs=0.1)


def test_a_capacity_that_drops_tokens(tmp_path, capsys):
    dense, mixture = pair(tmp_path, moe_models.config(replace(FOUR, capacity=1.0)))
    assert "the start is not exact: expert_capacity 1.0 drops tokens." in capsys.readouterr().err
    assert not torch.allclose(logits(mixture), logits(dense), rtol=1e-3)


def test_what_else_changes_logits_is_said(tmp_path, capsys):
    config = moe_models.config(FOUR)
    file = export(gpt(without_experts(config).replace(block_size=99, rope_base=500.0)), tmp_path / "dense.pth")
    load_weights(file, gpt(config, multipliers=replace(MULTIPLIERS, logit=1.0, router=1.0)), start_runtime())
    said = capsys.readouterr().err
    assert "not exact: rope_base: 500.0 -> 10000.0; multipliers.logit: 0.5 -> 1.0." in said


def test_what_no_logits_depend_on_may_differ(tmp_path, capsys):
    """A dense run with --zero_output true was refused, though no model with experts can have it; and with --dropout."""
    other = {"family": "dense", "zero_output": True, "dropout": 0.1, "varlen": True, "padding_multiple": 32}
    dense, mixture = pair(tmp_path, moe_models.config(FOUR), **other)
    torch.testing.assert_close(logits(mixture), logits(dense), **ROUNDING)
    assert "logits at the start equal the dense model's" in capsys.readouterr().err


def test_some_layers_and_shared_blocks(tmp_path, capsys):
    """A dense layer keeps its network; a block that two layers share is made once."""
    config = moe_models.config(FOUR, tie_embeddings=True).replace(layers=(LayerSpec(), LayerSpec(experts=True)))
    dense, mixture = pair(tmp_path, config)
    torch.testing.assert_close(logits(mixture), logits(dense), **ROUNDING)
    assert "init_from: 1 dense feed-forward networks became 1 x 16" in capsys.readouterr().err
    dense, mixture = pair(tmp_path, moe_models.config(FOUR, share_per_layer=1))
    torch.testing.assert_close(logits(mixture), logits(dense), **ROUNDING)


TWINS = {name: name.removesuffix("_moe") for name in FAMILIES.names() if experts_of(name)}
del TWINS["llama_520m_moe"]  # nobody published it without its experts
TWINS["sambay_gqa4_moe"] = "sambay"  # whose heads agree at depth 16; the small ones always


@pytest.mark.parametrize("family", TWINS)
def test_every_family(family, tmp_path):
    dense, mixture = model_of(small(TWINS[family])), model_of(small(family))
    load_weights(export(dense, tmp_path / "dense.safetensors"), mixture, start_runtime())
    torch.testing.assert_close(logits(mixture), logits(dense), **ROUNDING)
    own, twin = build(family, 16), build(TWINS[family], 16)
    assert without_experts(own).replace(family="") == twin.replace(family="")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_embd": 32}, "n_embd: 32 -> 16"),
        ({"n_head": 4}, "n_head: 4 -> 2"),
        ({"tie_embeddings": True}, "tie_embeddings: True -> False"),
        ({"vocab_size": 60}, "vocab_size: 60 -> 61"),
        ({"norm": "layernorm"}, "norm: layernorm -> rmsnorm"),
        ({"qk_norm": True}, "qk_norm: True -> False"),
        ({"intermediate_size": 32}, "intermediate_size: 32 -> 64"),
        ({"mlp_bias": True}, "mlp_bias: True -> False"),
        ({"depth": 3, "layers": (LayerSpec(),) * 3}, "depth: 3 -> 2"),
        ({"layers": (LayerSpec(ffn="relu2"), LayerSpec())}, "layers.0.ffn: relu2 -> swiglu"),
        ({"layers": (LayerSpec(), LayerSpec(mixer="fox"))}, "layers.1.mixer: fox -> attention"),
    ],
)
def test_another_model_is_refused_by_name(changes, named, tmp_path):
    with pytest.raises(UserError, match="only its own mixture of experts can start from it") as caught:
        pair(tmp_path, moe_models.config(FOUR), **changes)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_other_refusals(tmp_path):
    with pytest.raises(UserError, match=r"30 hidden units, which are not 4 slices .* with which 20 / top_k is even"):
        pair(tmp_path, moe_models.config(FOUR, "relu2", intermediate_size=20))
    dense, mixture = pair(tmp_path, moe_models.config(FOUR))
    with pytest.raises(UserError, match=r"needs the same model\.\n.*missing: .*ffn.down.weight"):  # no way back
        load_weights(export(mixture, tmp_path / "mixture.pth"), dense, start_runtime())
    other = gpt(moe_models.config(Experts(2, 4)))
    with pytest.raises(UserError, match=r"of another shape: .*ffn\.down is"):  # of other experts
        load_weights(tmp_path / "mixture.pth", other, start_runtime())
    weights, meta = load_exported(tmp_path / "dense.safetensors")
    weights["blocks.0.ffn.up.weight"] = weights["blocks.0.ffn.up.weight"][:, :5].clone()
    file = write_exported(weights, meta, tmp_path / "cut.pth")
    with pytest.raises(UserError, match=r"blocks.0.ffn.up.weight is \(128, 5\), the model has \(128, 16\)"):
        load_weights(file, mixture, start_runtime())
    file = write_exported(weights, {**meta, "multipliers": {"of": 1}}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match="in a way that this version does not know"):
        load_weights(file, mixture, start_runtime())


def test_the_same_mixture_loads_as_before(tmp_path, capsys):
    """Its routers and selection biases too."""
    experts = replace(FOUR, bias_rate=0.01, aux_gamma=0.0)
    _, mixture = pair(tmp_path, moe_models.config(experts))
    mixture.blocks[0].ffn.balance.fill_(0.5)
    again = gpt(mixture.config, seed=3)
    capsys.readouterr()
    load_weights(export(mixture, tmp_path / "mixture.pth"), again, start_runtime())
    assert same(again.state_dict(), mixture.state_dict()) and not capsys.readouterr().err


# On two processes: 5 routed experts, 3 on one of them and 2 on the other.
EXPERTS = Experts(sparsity=2, top_k=3, shared=True, sqrt_gate=True)
DENSE = CONFIG.replace(intermediate_size=18)
PLAN = {"multipliers": asdict(Multipliers(logit=0.5, residual=0.7))}


def started(paths: list[Path], **options: Any) -> list[dict[str, torch.Tensor]]:
    """The whole weights of mixtures that start from these places."""
    runtime, found = start_runtime(), []
    layers = tuple(replace(spec, experts=True) for spec in DENSE.layers)
    for path in paths:
        model = build_model(runtime, config=DENSE.replace(layers=layers, experts=EXPERTS), **options)
        load_weights(path, model, runtime)
        found.append(snapshot(model))
    return found


def parallel(paths: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [*started(paths), *started(paths, expert_parallel=True)]


def save_dense(run: Path) -> None:
    runtime = start_runtime()
    model = build_model(runtime, config=DENSE)
    saver = Checkpointer(run / "checkpoints", runtime, keep_last=1, async_save=False)
    saver.save(1, model, build_adamw(model, "fused"), {"tokens": 0, "model": DENSE.to_dict(), "plan": PLAN})
    saver.close()


def test_two_processes_start_as_one(tmp_path, capsys):
    """From a run, a step and a file; from shards of two processes and of one; with experts at home on one of them."""
    run_distributed(save_dense, 2, tmp_path / "two")
    save_dense(tmp_path / "one")
    step = tmp_path / "one" / "checkpoints" / "step-000001"
    model = build_model(start_runtime(), config=DENSE)
    load_weights(step, model, start_runtime())
    meta = {"version": 1, "model": DENSE.to_dict(), "plan": PLAN}
    file = write_exported(snapshot(model), meta, tmp_path / "dense.pth")
    paths = [tmp_path / "two", step, file]
    alone = started(paths)
    assert capsys.readouterr().err.count("init_from: 3 dense feed-forward networks became 3 x 5 experts") == 3
    for found in run_distributed(parallel, 2, paths):
        assert all(same(weights, alone[0]) for weights in [*found, *alone])
