"""Every native optimizer against its plain float64 reference, against torch's where there is one, and its own rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_optimizers import DECAY, LR, NAMES, SHAPES, Bag, build, gradients, options, plan_for
from torch import Tensor

from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS, ademamix
from lit_gpt.optim.engine import reference
from lit_gpt.optim.engine.groups import describe_groups

MATRICES = ("wide", "tall", "small", "up", "router")


def run(bag: Bag, optimizer: Any, steps: int = 5, scale: float = 1.0) -> None:
    for step in range(steps):
        run_step(bag, optimizer, step, scale)


def run_step(bag: Bag, optimizer: Any, step: int, scale: float = 1.0) -> None:
    for name, g in gradients(step).items():
        bag.get_parameter(name).grad = g * scale
    optimizer.step()


def weights(bag: Bag) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in bag.named_parameters()}


@pytest.mark.parametrize("name", sorted(reference.STEPS))
def test_equals_its_reference(name: str) -> None:
    """The readable version stands beside the fast one, and is what it is measured by."""
    bag = Bag()
    start = weights(bag)
    run(bag, build(bag, name, plan_for(name, steps=20, optimizer_args=options(name))))
    for key, p in bag.named_parameters():
        grads = [gradients(step)[key].numpy() for step in range(5)]
        expected = reference.train(name, SHAPES[key][0], start[key].numpy(), grads, LR, DECAY)
        # fp32 rounds weights of about 4 by 2e-7 a step; a step is 3e-2 long. The power iterations of muonball have had
        # 50 rounds by now, and some singular values are close.
        tolerance = 1e-2 if name == "muonball" else 1e-5
        assert np.abs(p.detach().numpy() - expected).max() < tolerance, key


def test_momentum_is_that_of_the_moment() -> None:
    bag = Bag()
    optimizer = build(bag, "muon")
    for step, mu in enumerate((0.5, 0.9)):
        for group in optimizer.param_groups:
            group["mu"] = mu
        run_step(bag, optimizer, step)
    g0, g1 = (gradients(step)["wide"].numpy().astype(np.float64) for step in (0, 1))
    found = optimizer.state[bag.get_parameter("wide")]["momentum"].numpy()
    assert np.abs(found - (0.9 * g0 + g1)).max() < 1e-6


def test_the_native_ones_are_all_here() -> None:
    assert set(NAMES) <= set(OPTIMIZERS.names())


@pytest.mark.parametrize("factor", ["spectral", "clip", "rms", "none"])
def test_muon_factors(factor: str) -> None:
    bag = Bag()
    start = weights(bag)
    run(bag, build(bag, "muon", ns_dtype="fp32", adjust=factor), steps=1)
    for key in MATRICES:
        g = gradients(0)[key].numpy().astype(np.float64)
        expected = reference.muon(start[key].numpy().astype(np.float64), g, {}, LR, DECAY, factor=factor)
        assert np.abs(bag.get_parameter(key).detach().numpy() - expected).max() < 3e-6, key


@pytest.mark.parametrize(("adjust", "torchs"), [("clip", "original"), ("rms", "match_rms_adamw")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torchs(adjust: str, torchs: str, nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon averages the momentum, which Newton-Schulz cannot see. Its products in bf16 are in fp32 here:
    in bf16 they put 15 elements off by 1 or 2%, depending on the draw.
    """
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    bag, other = Bag(), Bag()
    run(bag, build(bag, "muon", ns="muon", adjust=adjust, nesterov=nesterov, ns_dtype="fp32"))
    theirs = [other.get_parameter(key) for key in MATRICES]
    start = weights(other)
    reference = torch.optim.Muon(theirs, lr=LR, weight_decay=DECAY, nesterov=nesterov, adjust_lr_fn=torchs)
    for step in range(5):
        for key, p in zip(MATRICES, theirs):
            p.grad = gradients(step)[key]
        reference.step()
    for key, p in zip(MATRICES, theirs):
        moved = (p - start[key]).norm()
        assert (bag.get_parameter(key) - p).norm() < 1e-4 * moved, key


@pytest.mark.parametrize("name", ["lion", "normuon"])
def test_is_that_of_pytorch_optimizer(name: str) -> None:
    """NorMuon's products are in bf16 there; ours in fp32 differ from it as from torch's Muon."""
    po = pytest.importorskip("pytorch_optimizer")
    cls = getattr(po, {"lion": "Lion", "normuon": "NorMuon"}[name], None)
    if cls is None:
        pytest.skip(f"this version of pytorch_optimizer has no {name}")
    bag, other = Bag(), Bag()
    run(bag, build(bag, name, **({} if name == "lion" else {"ns": "muon", "adjust": "rms", "ns_dtype": "fp32"})))
    keys = tuple(SHAPES) if name == "lion" else MATRICES
    theirs, start = [other.get_parameter(key) for key in keys], weights(other)
    if name == "lion":
        reference = cls(theirs, LR, betas=(0.9, 0.95), weight_decay=DECAY)
    else:
        group = {"params": theirs, "lr": LR, "weight_decay": DECAY, "use_muon": True}
        reference = cls([group], update_scale="match_rms")
    for step in range(5):
        for key, p in zip(keys, theirs):
            p.grad = gradients(step)[key]
        reference.step()
    for key, p in zip(keys, theirs):
        bound = (1e-6 if name == "lion" else 2e-2) * (p - start[key]).norm()
        assert (bag.get_parameter(key) - p).norm() <= bound, key


def test_normuon_of_the_longer_side() -> None:
    """Columns of a wide matrix are rows of its transpose; all others are as without the option."""
    bag, rows = Bag(), Bag()
    start, states = weights(bag), dict[str, dict[str, Any]]()
    args = options("normuon") | {"normuon_beta2": 0.9}
    run(bag, build(bag, "normuon", normuon_of="longer", **args), steps=3)
    run(rows, build(rows, "normuon", **args), steps=3)
    wide = [key for key in MATRICES if start[key].shape[0] < start[key].shape[1]]
    assert 0 < len(wide) < len(MATRICES)
    for key, p in bag.named_parameters():
        assert key in wide or torch.equal(p, rows.get_parameter(key)), key
    for key in wide:
        w = start[key].numpy().astype(np.float64).T
        for step in range(3):
            g = gradients(step)[key].numpy().astype(np.float64).T
            w = reference.normuon(w, g, states.setdefault(key, {}), LR, DECAY, beta2=0.9)
        assert np.abs(bag.get_parameter(key).detach().numpy() - w.T).max() < 1e-5, key


def test_hadam_is_torchs_nadam_and_adamw() -> None:
    bag, other = Bag(), Bag()
    run(bag, build(bag, "hadam"))
    run(other, torch.optim.NAdam(other.parameters(), LR, (0.9, 0.95), 1e-8, DECAY, decoupled_weight_decay=True))
    for key in (*MATRICES, "experts"):
        torch.testing.assert_close(bag.get_parameter(key), other.get_parameter(key), rtol=1e-5, atol=1e-6)
    other = Bag()
    run(other, torch.optim.AdamW(other.parameters(), LR, (0.8, 0.95), 1e-10, DECAY))
    for key in ("table", "head", "gain", "kernel"):
        torch.testing.assert_close(bag.get_parameter(key), other.get_parameter(key), rtol=1e-5, atol=1e-6)


def test_spheres_hold_for_a_hundred_steps() -> None:
    """Each matrix, the head, and each expert by itself; the table and the vectors are free."""
    bag = Bag()
    start = weights(bag)
    run(bag, build(bag, "muonh"), steps=100)
    for key in (*MATRICES, "head"):
        assert bag.get_parameter(key).norm().item() == pytest.approx(start[key].norm().item(), rel=1e-6), key
        assert (bag.get_parameter(key) - start[key]).norm() > 0.1 * start[key].norm(), key
    torch.testing.assert_close(
        bag.experts.flatten(1).norm(dim=1), start["experts"].flatten(1).norm(dim=1), rtol=1e-6, atol=0
    )
    for key in ("table", "gain", "kernel"):
        assert abs(bag.get_parameter(key).norm() / start[key].norm() - 1) > 1e-3, key


def test_spectral_spheres() -> None:
    bag = Bag()
    optimizer = build(bag, "muonball")
    run(bag, optimizer, steps=30)
    for key in MATRICES:
        p = bag.get_parameter(key)
        assert torch.linalg.matrix_norm(p, 2).item() == pytest.approx((p.shape[0] / p.shape[1]) ** 0.5, rel=3e-3), key
    norms = torch.linalg.matrix_norm(bag.experts, 2)
    torch.testing.assert_close(norms, torch.full((5,), (6 / 4) ** 0.5), rtol=3e-3, atol=0)


@pytest.mark.parametrize("rate", [1e-6, 1e-3, 0.1])
def test_spectral_spheres_from_zero(rate: float) -> None:
    """After a short first step the norm was 1,500 times too large, and without bound after a gradient of zeros."""
    bag = Bag()
    optimizer = build(bag, "muonball")
    for group in optimizer.param_groups:
        group["lr"] = rate
    with torch.no_grad():
        bag.wide.zero_()
        bag.experts.zero_()
    run(bag, optimizer, steps=1, scale=0.0)
    assert not bag.wide.any() and not bag.experts.any()
    for step in range(1, 5):
        run_step(bag, optimizer, step)
        norms = torch.cat([torch.linalg.matrix_norm(bag.wide, 2).view(1), torch.linalg.matrix_norm(bag.experts, 2)])
        radius = torch.tensor([(94 / 256) ** 0.5] + 5 * [(6 / 4) ** 0.5])
        torch.testing.assert_close(norms, radius, rtol=0.2, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_of_zero_moves_nothing(name: str) -> None:
    bag = Bag()
    optimizer = build(bag, name)
    run(bag, optimizer, steps=2)
    before = weights(bag)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    run(bag, optimizer, steps=2)
    assert all(torch.equal(p, before[key]) for key, p in bag.named_parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_divided_on_the_device(name: str) -> None:
    bag, scaled = Bag(), Bag()
    run(bag, build(bag, name))
    optimizer: Any = build(scaled, name)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    run(scaled, optimizer, scale=8.0)
    for key, p in bag.named_parameters():
        torch.testing.assert_close(scaled.get_parameter(key), p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_that_is_skipped_leaves_no_trace(name: str) -> None:
    bag, plain = Bag(), Bag()
    optimizer: Any = build(bag, name)
    before = weights(bag)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(torch.inf), torch.tensor(1.0)
    for p in bag.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    assert all(torch.equal(p, before[key]) for key, p in bag.named_parameters())
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    run(bag, optimizer)
    run(plain, build(plain, name))
    assert all(torch.equal(p, plain.get_parameter(key)) for key, p in bag.named_parameters())


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "normuon", "hadam"])
def test_cautious_decay_shrinks_what_the_update_shrinks(name: str) -> None:
    """X - eta D - eta lambda X where X and D have the same sign, which a run without decay shows."""
    free, cautious = Bag(), Bag()
    start, args = weights(free), {} if name in ("adamw", "lion", "hadam") else {"ns_dtype": "fp32"}
    roles = plan_for(name).roles
    without = {r: type(v)(v.lr, 0.0, v.init, v.update_rule) for r, v in roles.items()}
    run(free, build(free, name, plan_for(name, without, optimizer_args=args)), steps=1)
    run(cautious, build(cautious, name, plan_for(name, cautious_weight_decay=True, optimizer_args=args)), steps=1)
    for key, p in free.named_parameters():
        agree = (start[key] - p) * start[key] >= 0
        expected = p - torch.where(agree, LR * DECAY * start[key], 0)
        torch.testing.assert_close(cautious.get_parameter(key).detach(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_blocks_of_rows_are_matrices_of_their_own() -> None:
    """`up` is two maps; `tall` has 17 heads of one row, whose orthogonal factor is the row over its norm."""
    bag, blocks = Bag(), Bag()
    start = weights(bag)
    run(bag, build(bag, "muon", ns_dtype="fp32", adjust="none"), steps=1)
    split = {"split_maps": True, "split_heads": True}
    run(blocks, build(blocks, "muon", ns_dtype="fp32", adjust="none", **split), steps=1)
    for key, count in (("up", 2), ("tall", 17)):
        p = start[key].double().numpy()
        g = gradients(0)[key].double().numpy()
        parts = [
            reference.muon(a, b, {}, LR, DECAY, factor="none") for a, b in zip(np.split(p, count), np.split(g, count))
        ]
        assert np.abs(blocks.get_parameter(key).detach().numpy() - np.concatenate(parts)).max() < 3e-6
        assert not torch.allclose(bag.get_parameter(key), blocks.get_parameter(key))
    assert torch.equal(bag.wide, blocks.wide)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"ns": "tunde"}, "Unknown Newton-Schulz coefficients 'tunde'. Did you mean 'tuned'"),
        ({"ns_steps": 0}, "ns_steps of the optimizer muon is 0; it must be a whole number from 1 on"),
        ({"ns_dtype": "int8"}, "Newton-Schulz in 'int8' is not possible. Use one of fp32, bf16, fp16, auto"),
        ({"adjust": "loud"}, "adjust loud is unknown. Use one of spectral, clip, rms, none"),
        ({"ns_backend": "quak"}, 'ns_backend of the optimizer muon is "quak"; it must be one of auto, quack, torch'),
        ({"nesterov": "maybe"}, 'nesterov of the optimizer muon is "maybe"; it must be true or false'),
        ({"ns_steps": 2.5}, r"ns_steps of the optimizer muon is 2.5; it must be a whole number. The default is 5"),
        ({"ns_steps": True}, "must be a whole number"),
    ],
)
def test_options_that_cannot_be_used(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Bag(), "muon", **args)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("normuon", {"normuon_beta2": 2}, "must be numbers from 0 to below 1"),
        ("rmnp", {"beta": 1.5}, "must be numbers from 0 to below 1"),
        ("sophia", {"period": 0}, "must be a whole number from 1 on"),
        ("sophia", {"period": "abc"}, "must be a whole number"),
        ("sophia", {"rho": -1}, "must be a number from 0 on"),
        ("apollo", {"rank": 2.5}, "must be a whole number"),
        ("apollo", {"betas": [0.9]}, "must be 2 numbers"),
        ("apollo", {"scale_type": "row"}, "must be one of channel, tensor"),
        ("dmuon", {"adjust": "clip"}, "no option 'adjust' .* It has nesterov"),
        ("adamw", {"betas": [0.9, 0.9]}, "no option 'betas' .* It has state"),
        ("lion", {"momentum": 0.9}, "It has state"),
    ],
)
def test_arguments_of_others_that_cannot_be_used(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Bag(), name, **args)


def test_heads_where_there_are_none() -> None:
    bag = Bag()
    bag.tall.heads = 1
    with pytest.raises(UserError, match="No matrix of this model has heads"):
        build(bag, "muon", split_heads=True)


@pytest.mark.parametrize("name", NAMES)
def test_options_that_do_not_exist(name: str) -> None:
    with pytest.raises(UserError, match=f"The optimizer {name} has no option 'momentun'.* It has"):
        build(Bag(), name, momentun=0.9)


def test_the_group_table() -> None:
    rows = {row["role"]: row for row in describe_groups(build(Bag(), "muonh"))}
    assert {role: row["update_rule"] for role, row in rows.items()} == {
        "embedding": "adamw",
        "head": "adamh",
        "matrix": "muonh",
        "expert": "muonh",
        "router": "muonh",
        "vector": "adamw",
        "conv": "adamw",
    }
    assert rows["matrix"]["tensors"] == 6 and rows["expert"]["parameters"] == 120


@pytest.mark.parametrize(
    ("name", "given", "as_written"),
    [
        ("signum", {"momentum": 0.95, "nesterov": True}, {"mu": 0.95, "ahead": True}),
        ("lamb", {"bias_correction": False}, {"corrected": False}),
        ("ademamix", {"alpha_warmup": 3, "beta3_warmup": 40, "alpha": 2.0}, {"warmups": (3, 40), "alpha": 2.0}),
        ("ademamix", {"alpha_warmup": 0, "beta3_warmup": 2}, {"warmups": (0, 2)}),
    ],
)
def test_options_against_the_reference(name: str, given: dict[str, Any], as_written: dict[str, Any]) -> None:
    bag = Bag()
    start = weights(bag)
    run(bag, build(bag, name, plan_for(name, steps=20, optimizer_args=given)))
    for key in ("table", "tall", "gain", "kernel"):
        step, state = getattr(reference, name), {}
        w = start[key].numpy().astype(np.float64)
        for i in range(5):
            w = step(w, gradients(i)[key].numpy().astype(np.float64), state, LR, DECAY, **as_written)
        assert np.abs(bag.get_parameter(key).detach().numpy() - w).max() < 1e-5, key


def test_ademamix_of_one_warmup_is_the_librarys() -> None:
    po = pytest.importorskip("pytorch_optimizer")
    bag, other = Bag(), Bag()
    theirs = po.AdEMAMix(
        other.parameters(), LR, (0.9, 0.95, 0.999), DECAY, weight_decouple=True, alpha=8.0, t_alpha_beta3=20
    )
    run(bag, build(bag, "ademamix", plan_for("ademamix", steps=20)))
    run(other, theirs)
    for key, p in bag.named_parameters():
        torch.testing.assert_close(p, other.get_parameter(key), rtol=1e-5, atol=1e-5)


def test_warm_ups_of_ademamix_end_with_a_ramped_run() -> None:
    """With the steps that a run without its ramp would have, alpha ended at a third under --bramp_ratio 3."""
    plan = plan_for("ademamix", tokens=12_000, batch_tokens=40, context=4, steps=300, batch_ramp=3)
    rule = ademamix.rules(plan)["ademamix"]([])
    assert (rule.direction.alpha_warmup, rule.direction.beta3_warmup) == (
        104,
        104,
    )  # 9 of 40 to 104, which are 600 tokens, then 95 of 120
