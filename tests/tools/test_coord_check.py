"""The coordinate check, on rules that transfer and on some that do not (arXiv:2203.03466, 2310.02244).

Measured with `check` below, at steps 1 to 3. Over sites that must be flat, the largest
|power|: width 0.16 (muP), 0.18 (muP++); depth 0.15 (muP++). Of the stream where it must
not be flat: width 1.09 to 1.33 and depth 0.71 to 0.79 (SP), depth 0.64 to 0.76 (muP). With
muP's learning-rate factor forgotten, the stream goes as width^0.40 at step 2 and 0.49 at
step 3. The tolerance is 0.25.

Two sizes give the line of three: of sizes at equal ratios, the middle one has no weight in the slope of least squares.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_model import CONFIG, ONE_LAYER, build_model

from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.errors import UserError
from lit_gpt.parallel import start_runtime
from lit_gpt.scaling.rules import mup
from lit_gpt.tools import _coord_report as report
from lit_gpt.tools._coord_fit import Axis, CoordResult, slope_of
from lit_gpt.tools._coord_measure import FOLLOWS, activations, toy_stream
from lit_gpt.tools.coord_check import main, run_check

RUN = RunConfig(
    train_name="coord",
    vocab_size=256,
    ctx_len=32,
    micro_bsz=4,
    precision="fp32",
    base_hps=BaseHyperparameters(eta0=2e-3),
)


def check(rule: str, widths=(64, 256), depths=(4, 8, 16), seeds=2) -> CoordResult:
    return run_check(replace(RUN, parameterization=rule), widths, depths, steps=3, seeds=seeds)


def power(result: CoordResult, axis: Axis, site: str, step: int) -> float:
    """Of the activation."""
    wanted = (axis, site, step, "activation")
    return next(f.slope for f in result.fits if (f.axis, f.site, f.step, f.quantity) == wanted)


def test_mupp_is_flat_in_width_and_in_depth():
    result = check("mupp")
    assert result.passed("width") and result.passed("depth"), report.table(result)
    # What the rule's definition says exactly: branches of one size, summed with 1/sqrt(2L). Without it, under muP, the
    # power is 0.65.
    assert abs(power(result, "depth", "stream", 0)) < 0.3
    # Adam's first steps are of the size of the learning rate, which falls as 1/sqrt(L); under muP the power is 0.
    assert power(result, "depth", "embedding", 3) == pytest.approx(-0.5, abs=0.1)


HYBRIDS = {"sambay": {"mamba": {"d_state": 4}}, "gdny": {"gdn": {"key_dim": 16}}}


@pytest.mark.parametrize("family", HYBRIDS)
def test_hybrids_are_flat_under_mupp(family):
    """In depth from 16 on: at 8 one layer alone reads shared keys, and the stream is a third smaller.

    The largest power over sites that must be flat: width 0.09 and 0.07, depth 0.18 and 0.04.
    """
    run = replace(RUN, train_model=family, mixer_options=HYBRIDS[family], parameterization="mupp")
    width = run_check(run, (64, 256), (8,), steps=2, seeds=2)
    assert width.passed("width"), report.table(width)
    depth = run_check(run, (64,), (16, 64), steps=2, seeds=2)
    assert depth.passed("depth"), report.table(depth)
    standard = run_check(replace(run, parameterization="sp"), (64, 256), (8,), steps=2, seeds=1)
    assert power(standard, "width", "stream", 2) > 0.5


def test_the_baseline_is_flat_under_its_own_rule():
    """As configs/baseline.yaml trains it. The vocabulary and the tokens of a batch bound the rank of the gradients, and
    the Frobenius norm of NorMuon's steps is that of full rank, so both are larger than the width.

    The largest power over sites that must be flat is 0.08 in width, where the table's rate falls as the root of n, and
    what the embedding changes with it, and 0.08 in depth. Without its factors L0 / L the branches' sum goes as L^0.95
    at step 1, and the stream, which has e x0 of every layer, as L^0.5 before any step.
    """
    hps = BaseHyperparameters(eta0=0.02, weight_decay=0.2, muon_beta=0.97)
    run = replace(RUN, train_model="baseline", parameterization="baseline", optimizer="normuon", base_hps=hps)
    run = replace(run, embedding_init_std=0.8, head_init_std=0.001, grad_clip=0.0, micro_bsz=16, vocab_size=1024)
    result = run_check(replace(run, cautious_weight_decay=True), (64, 256), (4, 16), steps=3, seeds=1)
    assert result.passed("width") and result.passed("depth"), report.table(result)


def test_dmuon_is_flat_under_mup():
    """Its steps grow as the square root of the width. Times 5, entries of matrices move as far as Adam's."""
    hps = BaseHyperparameters(eta0=2e-3, weight_lr_scale=5)
    run = replace(RUN, optimizer="dmuon", base_hps=hps, parameterization="mup")
    result = run_check(run, (64, 256), (2,), steps=4, seeds=2)
    assert result.passed("width"), report.table(result)


def test_the_logits_of_muonh_grow_with_the_width_unless_they_start_flat():
    """HyperP's docstring said that no width factor is needed; the rest of the model is flat, its logits are not.

    Powers at 4 seeds and widths 64 to 512: 0.50 at the start and 0.53 after 4 steps, flat 0.00 and 0.06.
    """
    hps = BaseHyperparameters(eta0=0.02)
    run = replace(RUN, parameterization="hyperp", optimizer="muonh", base_hps=hps)
    for start, grows in (("fixed", 0.5), ("flat", 0.0)):
        result = run_check(replace(run, head_start=start), (64, 256), (2,), steps=2, seeds=2)
        assert power(result, "width", "logits", 0) == pytest.approx(grows, abs=0.05)
        assert power(result, "width", "logits", 2) == pytest.approx(grows, abs=0.15)
        assert {f.site for f in result.failures("width")} == ({"logits"} if grows else set()), report.table(result)


def test_mup_is_flat_in_width_but_not_in_depth():
    result = check("mup")
    assert result.passed("width"), report.table(result)
    assert not result.passed("depth")
    assert {f.site for f in result.failures("depth")} == {"branches", "stream"}
    assert power(result, "depth", "stream", 3) > 0.5


def test_sp_is_flat_in_neither():
    result = check("sp", widths=(64, 256), depths=(4, 16), seeds=1)
    for axis in ("width", "depth"):
        assert not result.passed(axis)
        assert power(result, axis, "stream", 3) > 0.5


def test_a_forgotten_learning_rate_factor_is_found(monkeypatch):
    right = mup.transfer

    def wrong(situation):
        transfer = right(situation)
        return replace(transfer, lr=dict.fromkeys(transfer.lr, 1.0))

    monkeypatch.setattr(mup, "transfer", wrong)
    result = check("mup", widths=(64, 128, 256, 512), depths=(4,), seeds=1)
    assert "stream" in {f.site for f in result.failures("width")}, report.table(result)


def test_branches_are_the_sum_of_what_the_layers_add():
    """With e x0 in front of each of three layers, the last norm reads (1 + 3 e) x0 and that sum."""
    model = build_model(start_runtime(), config=CONFIG.replace(residual_scalars=True))
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        for block in model.blocks:
            block.scalars.stream.fill_(1.0)
            block.scalars.first.fill_(0.25)
    seen = activations(model, tokens)
    torch.testing.assert_close(seen["branches"], seen["stream"] - 1.75 * seen["embedding"])
    assert seen["branches"].abs().mean() > 0.1 * seen["stream"].abs().mean()
    assert "branches" not in activations(build_model(start_runtime(), config=CONFIG.replace(post_norm=True)), tokens)


def test_powers_are_fitted():
    sizes = [64, 128, 512]
    assert slope_of(sizes, [3 * s**-0.5 for s in sizes]) == pytest.approx(-0.5)
    assert slope_of(sizes, [0, 0, 0]) == 0
    assert math.isnan(slope_of(sizes, [1, math.nan, 1]))


def test_the_toy_stream_can_be_learned_and_repeats():
    first, second = (next(toy_stream(256, 64, 200, seed=5)) for _ in range(2))
    assert np.array_equal(first.tokens, second.tokens) and np.array_equal(first.targets, second.targets)
    assert np.array_equal(first.tokens[:, 1:], first.targets[:, :-1])
    pairs = np.bincount(256 * first.tokens.ravel() + first.targets.ravel(), minlength=256**2).reshape(256, 256)
    assert pairs.max(1).sum() / pairs.sum() == pytest.approx(FOLLOWS, abs=0.03)


def test_the_command_prints_and_writes(tmp_path, capsys):
    line = f"--widths 32 64 --depths 2 --steps 1 --seeds 1 --parameterization sp --output_dir {tmp_path}"
    assert main(line.split()) == 1
    assert "width: FAIL" in capsys.readouterr().out
    written = json.loads((tmp_path / "coord_sp.json").read_text())
    assert written["sizes"] == {"width": [32, 64]}
    assert (tmp_path / "coord_sp.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "widths, depths, message",
    [((64, 64), (4,), "different"), ((66,), (4, 8), "multiples"), ((64,), (4,), "nothing to compare")],
)
def test_sizes_that_do_not_compare_are_user_errors(widths, depths, message):
    with pytest.raises(UserError, match=message):
        run_check(RUN, widths, depths)


def test_under_fp8_the_activations_are_those_that_train():
    """Before a step only the products differ, so all sites but the embedding, which has none."""
    config = ONE_LAYER.replace(n_embd=256, head_dim=128, intermediate_size=256)
    model, tokens = build_model(start_runtime(), config=config, fp8="tensorwise"), torch.arange(32).view(2, 16)
    plain, rounded = (activations(model, tokens, training) for training in (False, True))
    assert {site for site, x in plain.items() if not torch.equal(x, rounded[site])} == plain.keys() - {"embedding"}
    for site, x in plain.items():
        torch.testing.assert_close(rounded[site].abs().mean(), x.abs().mean(), rtol=0.2, atol=0, msg=site)


def test_fp8_needs_widths_that_have_something_in_8_bits():
    with pytest.raises(UserError, match=r"width 128 trains in 8 bits.*--widths, such as 256 512 1024"):
        run_check(replace(RUN, fp8=True), (128, 512), (4,))
