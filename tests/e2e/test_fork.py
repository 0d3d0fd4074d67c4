"""Extensions and forks are the runs that their Plans describe, to the bit; what cannot be one names what to type."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from spawn import run_distributed
from tiny_run import folder_of, make_corpus, pretrain, rows, run, words

from lit_gpt.checkpoint.layout import read_meta, step_folder
from lit_gpt.checkpoint.untrusted import read_tensors, stored_shapes
from lit_gpt.data.prepare import prepare
from lit_gpt.errors import UserError
from lit_gpt.metrics.curve import _names, draw_loss_curve
from lit_gpt.preflight.fork import start_of
from lit_gpt.scaling.base import Fork
from lit_gpt.train.stopping import EXIT_INTERRUPTED

STEP = 512  # tokens
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {},
    "normuon": {},
    "muonh": {"head_init_std": 0.02},
}
EXPERTS = {"train_model": "transformer_gqa4_h2_moe", "sparsity": 4, "top_k": 4, "base_hps__d0": 4, "ar": 8}
CONSTANT: dict[str, Any] = {"schedule": "constant", "save_step": 2, "keep_last": 99}


def tensors(out: Path, step: int) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a checkpoint."""
    path = step_folder(folder_of(out) / "checkpoints", step)
    state = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in stored_shapes(path).items()}
    read_tensors(path, state, no_dist=True)
    return state


def assert_same(one: Path, other: Path, step: int) -> None:
    """Checkpoints of one step have the same bits, counts and places in the data."""
    a, b = tensors(one, step), tensors(other, step)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    metas = [read_meta(step_folder(folder_of(out) / "checkpoints", step)) for out in (one, other)]
    assert metas[0]["tokens"] == metas[1]["tokens"] and metas[0]["data"] == metas[1]["data"]


def trunk_and_step(out: Path, step: int) -> Path:
    return step_folder(folder_of(out) / "checkpoints", step)


@pytest.fixture(scope="module")
def trunk(data, tmp_path_factory) -> Path:
    """Four steps at a constant rate; tests that change the folder train their own."""
    out = tmp_path_factory.mktemp("trunk")
    assert run(data, out, **CONSTANT, max_tokens=4 * STEP) == 0
    return out


@pytest.fixture(scope="module")
def forked(data, trunk, tmp_path_factory) -> Path:
    """The fifth step of that."""
    out, options = tmp_path_factory.mktemp("forked"), {**CONSTANT, "max_tokens": 6 * STEP}
    assert run(data, out, **options, fork_from=folder_of(trunk), stop_after=1) == EXIT_INTERRUPTED
    return out


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_larger_budget_goes_on(data, tmp_path, capsys, optimizer):
    """A finished run at a constant rate, given a larger budget, is the run that had it from the start."""
    options = {"optimizer": optimizer, **OPTIMIZERS[optimizer], **CONSTANT}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(data, whole, **options | {"max_tokens": 9 * STEP}) == 0
    assert run(data, parts, **options | {"max_tokens": 5 * STEP - 100}) == 0
    assert run(data, parts, resume="auto", **options | {"max_tokens": 9 * STEP}) == 0
    assert "2,460 tokens and is 4,608 now" in capsys.readouterr().err
    assert_same(whole, parts, 9)
    assert rows(whole) == rows(parts)


def test_wsd_goes_on_before_its_decay_and_not_in_it(data, tmp_path, capsys):
    options = {"schedule": "wsd", "decay_tokens": 2 * STEP}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(data, whole, **options, max_tokens=10 * STEP) == 0
    assert run(data, parts, **options, max_tokens=8 * STEP, stop_after=6) == EXIT_INTERRUPTED
    assert run(data, parts, **options, max_tokens=10 * STEP, resume="auto", stop_after=3) == EXIT_INTERRUPTED
    capsys.readouterr()
    assert run(data, parts, **options, max_tokens=20 * STEP, resume="auto") == 2, "its decay has begun"
    said = capsys.readouterr().err
    assert "--max_tokens: 5120 -> 10240" in said and "--fork_from" in said
    assert run(data, parts, **options, max_tokens=10 * STEP, resume="auto") == 0
    assert_same(whole, parts, 10)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"schedule": "linear"}, "every rate would be another"),
        ({"schedule": "constant", "bramp_ratio": 2, "micro_bsz": 2}, "every batch would be another"),
        ({"schedule": "constant", "parameterization": "hyperp", "optimizer": "muonh"}, "every rate would be another"),
    ],
)
def test_other_budgets_are_refused_with_the_fork_to_type(data, tmp_path, capsys, options, why):
    options = {"train_name": "run", "base_hps__warmup_tokens": 0, **options}
    assert run(data, tmp_path, **options, max_tokens=64 * STEP, stop_after=2) == EXIT_INTERRUPTED
    capsys.readouterr()
    assert run(data, tmp_path, **options, max_tokens=128 * STEP, resume="auto") == 2, why
    assert f"--fork_from {folder_of(tmp_path)}" in capsys.readouterr().err


def test_a_finished_run_with_another_option_names_it(data, tmp_path, capsys):
    """The last step rounds the budget up, so this said that --max_tokens was too small."""
    assert run(data, tmp_path, max_tokens=5 * STEP - 100) == 0
    capsys.readouterr()
    assert run(data, tmp_path, max_tokens=5 * STEP - 100, seed=7, resume="auto") == 2
    assert "--seed: 3407 -> 7" in capsys.readouterr().err


def test_defaults_that_follow_the_budget_are_named_and_kept(data, tmp_path, capsys):
    """The warm-up that nobody gave was another one under the larger budget; the refusal named no way to keep it."""
    options = {"schedule": "constant", "base_hps__warmup_tokens": None, "optimizer": "adamw"}
    assert run(data, tmp_path, **options, max_tokens=19 * STEP) == 0
    capsys.readouterr()
    assert run(data, tmp_path, **options, max_tokens=20 * STEP, resume="auto") == 2
    said = capsys.readouterr().err
    kept = re.search(r"the warm-up follows the budget; --base_hps.warmup_tokens (\d+) keeps it", said)
    assert kept and int(kept[1]) == 19 * STEP * 1e9 // 9.5e9
    options["base_hps__warmup_tokens"] = int(kept[1])
    assert run(data, tmp_path, **options, max_tokens=20 * STEP, resume="auto") == 0
    assert "is 10,240 now" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_fork_under_the_same_options_is_the_run_itself(data, tmp_path, optimizer):
    options = {"optimizer": optimizer, **OPTIMIZERS[optimizer], **CONSTANT, "max_tokens": 8 * STEP}
    trunk, fork = tmp_path / "trunk", tmp_path / "fork"
    assert run(data, trunk, **options) == 0
    options["fork_from"] = trunk_and_step(trunk, 4)
    assert run(data, fork, **options, stop_after=2) == EXIT_INTERRUPTED
    assert run(data, fork, **options, resume="auto") == 0
    assert_same(trunk, fork, 8)


def test_the_trunk_may_be_deleted_and_trained_on(data, tmp_path):
    """What a fork came from is in its own Plan: a newer checkpoint of the trunk, or none, changes nothing."""
    trunk, fork, whole = tmp_path / "trunk", tmp_path / "fork", tmp_path / "whole"
    options = {**CONSTANT, "max_tokens": 4 * STEP}
    decay = {"decay_tokens": 4 * STEP, "save_step": 2, "keep_last": 99}
    assert run(data, trunk, **options) == 0
    typed = folder_of(trunk)
    assert run(data, whole, **decay, max_tokens=None, fork_from=typed) == 0
    assert run(data, fork, **decay, max_tokens=None, fork_from=typed, stop_after=1) == EXIT_INTERRUPTED
    assert run(data, trunk, **options | {"max_tokens": 6 * STEP}, resume="auto") == 0
    assert run(data, fork, **decay, max_tokens=None, fork_from=typed, resume="auto", stop_after=1) == EXIT_INTERRUPTED
    typed.rename(tmp_path / "gone")
    assert run(data, fork, **decay, max_tokens=None, fork_from=typed, resume="auto") == 0
    assert_same(whole, fork, 8)


def decays(at: list[int]) -> dict[str, Any]:
    return {
        "decay_at": ",".join(str(n * STEP) for n in at),
        "decay_tokens": 2 * STEP,
        "max_tokens": None,
        "save_step": 2,
        "keep_last": 99,
    }


def test_the_first_decay_of_wsd_s_is_a_fork_that_decays_there(data, tmp_path):
    trunk, fork, several = tmp_path / "trunk", tmp_path / "fork", tmp_path / "several"
    assert run(data, trunk, **CONSTANT, max_tokens=20 * STEP, stop_after=4) == EXIT_INTERRUPTED
    options = {"decay_tokens": 2 * STEP, "max_tokens": 6 * STEP}
    assert run(data, fork, **options, fork_from=folder_of(trunk)) == 0
    assert run(data, several, **decays([6, 12])) == 0
    assert_same(fork, several, 6)
    assert rows(fork) == {step: loss for step, loss in rows(several).items() if 4 < step <= 6}


def test_periods_go_on_after_a_stop(data, tmp_path):
    """Stopped in a decay and after one, with a validation and a checkpoint at the end of each."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {**decays([5, 9, 13]), "lower_peaks": True, "val_data_dir": data, "eval_sequences": 4, "save_step": 100}
    assert run(data, whole, **options) == 0
    for steps in (4, 2, 5):
        assert run(data, parts, **options, resume="auto", stop_after=steps) == EXIT_INTERRUPTED
    assert run(data, parts, **options, resume="auto") == 0
    assert_same(whole, parts, 13)
    assert_same(whole, parts, 9)
    assert list(rows(whole, "metric/val_loss@1x")) == [5, 9, 13]
    rates = rows(whole, "metric/weight_learning_rate")
    peak = rates[3]
    assert rates[6] == pytest.approx(peak * (5 / 9) ** 0.5) and rates[10] == pytest.approx(peak * (5 / 13) ** 0.5)
    assert rates[5] == pytest.approx(peak / 4) and rates[4] == pytest.approx(peak * 3 / 4), "middles of two steps"


def test_wsd_s_refuses_rates_of_one_budget(data, tmp_path, capsys):
    for options in (
        {"train_name": "x", "parameterization": "hyperp", "optimizer": "muonh"},
        {"weight_decay_rule": "power_lines"},
    ):
        assert run(data, tmp_path, **decays([6, 12]), **options) == 2
        assert "--fork_from RUN --decay_tokens N" in capsys.readouterr().err


def test_two_processes_and_another_number_of_them(data, tmp_path):
    """On two processes as on one; from two to one, equal but for rounding."""
    two, parts, fork, one = (tmp_path / name for name in ("two", "parts", "fork", "one"))
    options = {**CONSTANT, "micro_bsz": 2, "optimizer": "muon", "max_tokens": 8 * STEP}
    assert run_distributed(pretrain.main, 2, words(data, two, **options)) == [0, 0]
    short = words(data, parts, **options | {"max_tokens": 4 * STEP})
    assert run_distributed(pretrain.main, 2, short) == [0, 0]
    longer = words(data, parts, resume="auto", **options)
    assert run_distributed(pretrain.main, 2, longer) == [0, 0]
    assert_same(two, parts, 8)
    forked = words(data, fork, fork_from=trunk_and_step(two, 4), **options)
    assert run_distributed(pretrain.main, 2, forked) == [0, 0]
    assert_same(two, fork, 8)
    assert run(data, one, fork_from=trunk_and_step(two, 4), **options) == 0
    a, b = tensors(one, 8), tensors(two, 8)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=2e-3, atol=2e-3)
    assert rows(one) == pytest.approx({s: loss for s, loss in rows(two).items() if s > 4}, rel=1e-4)


def test_what_starts_anew_is_said(data, trunk, tmp_path, capsys):
    """From AdamW to Muon the matrices' state is another; vectors and tables keep theirs."""
    fork = tmp_path / "fork"
    options = {**CONSTANT, "optimizer": "muon", "fork_from": folder_of(trunk), "max_tokens": 6 * STEP}
    assert run(data, fork, **options) == 0
    said = capsys.readouterr().err
    assert "that of matrix starts anew (muon, which was adamw)" in said and "embedding starts" not in said
    moments = {name: t for name, t in tensors(fork, 6).items() if name.endswith(".step")}
    assert set(torch.stack(list(moments.values())).tolist()) == {6.0}, "of AdamW's roles, all of which go on"
    assert run(data, fork, **options | {"optimizer": "lion", "train_name": "mup_lion"}) == 0
    assert "that of embedding starts anew (lion, which was adamw)" in capsys.readouterr().err


def test_chains(data, tmp_path, capsys):
    """A fork of a fork names both; its counts go on from the first run."""
    first, second, third = (tmp_path / str(i) for i in range(3))
    options = {**CONSTANT, "base_hps__warmup_tokens": 512}
    assert run(data, first, **options, max_tokens=2 * STEP) == 0
    assert run(data, second, **options, max_tokens=4 * STEP, fork_from=folder_of(first), total_bsz=1024) == 0
    assert run(data, third, **options, max_tokens=8 * STEP, fork_from=folder_of(second), grad_clip=0.5) == 0
    said = capsys.readouterr().err
    assert f"which is a fork of {folder_of(first)}/checkpoints/step-000002, after 1,024 tokens" in said
    assert rows(third, "total_tokens") == {s: 2048 + 512 * (s - 3) for s in range(4, 8)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fork_from": "nowhere"}, "there is no checkpoint"),
        ({"init_from": "x", "fork_from": "y"}, "give one of them"),
        ({"resume": True, "fork_from": "y"}, "--resume auto with --fork_from"),
        ({"schedule": "wsd_s"}, "--decay_at 0.5x"),
        ({"schedule": "linear", "decay_tokens": 100}, "--decay_tokens acts in wsd"),
        ({"decay_at": "2x,1x"}, "--decay_at"),
        ({"decay_at": "0.5x,soon"}, "--decay_at"),
        ({"decay_at": "2048,2500", "decay_tokens": 512, "max_tokens": None}, "further apart"),
        ({"decay_at": "2048", "max_tokens": 4096}, "Drop --max_tokens"),
        ({"decay_at": "2048,4096", "decay_tokens": 20, "max_tokens": None}, "fewer than the 512 of a step"),
        ({"decay_at": "1e999x", "max_tokens": None}, "--decay_at"),
        ({"decay_at": "999999999x", "max_tokens": None}, "at most 1e+16"),
        ({"lower_peaks": True}, "--lower_peaks"),
    ],
)
def test_what_cannot_be(data, tmp_path, capsys, options, said):
    assert run(data, tmp_path, **options) == 2
    assert said in capsys.readouterr().err


def test_forks_that_cannot_be(data, trunk, tmp_path, capsys):
    cases = [
        ({"max_tokens": 4 * STEP}, "--decay_tokens N to decay over N more"),
        ({"depth": 3}, "does not fit this run"),
        ({"optimizer": "muon", "out_dir": str(trunk)}, "not the run that"),
        (EXPERTS, "Give --init_from instead"),
    ]
    for options, said in cases:
        typed = {"max_tokens": 8 * STEP, "fork_from": folder_of(trunk), **CONSTANT, **options}
        assert run(data, typed.pop("out_dir", tmp_path), **typed) == 2
        assert said in capsys.readouterr().err


def test_a_budget_below_what_is_trained(data, tmp_path, capsys):
    assert run(data, tmp_path, **CONSTANT, max_tokens=8 * STEP) == 0
    assert run(data, tmp_path, **CONSTANT, max_tokens=6 * STEP, resume="auto") == 2
    assert "has trained on 4,096 tokens already" in capsys.readouterr().err


def mixed(tmp_path: Path, name: str, weights: Any) -> Path:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(weights))
    return path


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sources")
    for name in ("web", "code"):
        make_corpus(root / name, 20).rename(root / f"{name}_data")
    return root


def test_a_fork_with_another_mixture_reads_its_sources_on(two_sources, tmp_path, capsys):
    """No window of a source is read again, and the fork of such a fork goes on to the sample."""
    even, uneven = (mixed(tmp_path, str(share), {"web_data": 1, "code_data": share}) for share in (1, 3))
    trunk, fork, second = (tmp_path / str(i) for i in range(3))
    options = {**CONSTANT, "micro_bsz": 2}
    assert run(two_sources, trunk, **options, data_mixture=even, max_tokens=4 * STEP) == 0
    capsys.readouterr()
    forked = {**options, "data_mixture": uneven, "max_tokens": 10 * STEP}
    assert run(two_sources, fork, **forked, fork_from=folder_of(trunk)) == 0
    assert "web_data goes on after 16 windows, code_data goes on after 16 windows" in capsys.readouterr().err
    before, after = (rows(out, "data/epoch/web_data") for out in (trunk, fork))
    assert before[4] < after[5] < before[4] + (after[10] - before[4]) / 2
    assert run(two_sources, second, **forked, fork_from=trunk_and_step(fork, 6)) == 0
    assert "the place in the data is kept" in capsys.readouterr().err
    assert_same(fork, second, 10)


def test_a_fork_of_a_curriculum_counts_from_the_first_run(two_sources, tmp_path):
    """Its phases begin where they would have begun, also where the order of samples begins anew."""
    phases = [{"until": 6 * STEP, "weights": {"web_data": 1}}, {"weights": {"code_data": 1}}]
    later = [{"until": 7 * STEP, "weights": {"web_data": 1}}, {"weights": {"code_data": 1}}]
    trunk, same, other = (tmp_path / name for name in ("trunk", "same", "other"))
    options = {**CONSTANT, "max_tokens": 9 * STEP}
    assert run(two_sources, trunk, **options, data_mixture=mixed(tmp_path, "a", phases)) == 0
    start = {"fork_from": trunk_and_step(trunk, 4)}
    assert run(two_sources, same, **options, **start, data_mixture=mixed(tmp_path, "a", phases)) == 0
    assert_same(trunk, same, 9)
    assert run(two_sources, other, **options, **start, data_mixture=mixed(tmp_path, "b", later)) == 0
    read = rows(other, "data/epoch/code_data")
    assert read[7] == 0 and read[8] > 0
    assert rows(trunk, "data/epoch/code_data")[6] == 0


def test_a_fork_of_a_fork_may_drop_a_source(two_sources, tmp_path, capsys):
    """What the first fork had read of the dropped source is no matter; so is it where another mixture is refused."""
    both, uneven, one = (
        mixed(tmp_path, name, weights)
        for name, weights in (
            ("both", {"web_data": 1, "code_data": 1}),
            ("uneven", {"web_data": 1, "code_data": 3}),
            ("one", {"code_data": 1}),
        )
    )
    trunk, fork, second = (tmp_path / str(i) for i in range(3))
    assert run(two_sources, trunk, **CONSTANT, data_mixture=both, max_tokens=4 * STEP) == 0
    forked = {**CONSTANT, "fork_from": folder_of(trunk), "max_tokens": 8 * STEP}
    assert run(two_sources, fork, **forked, data_mixture=uneven, stop_after=2) == EXIT_INTERRUPTED
    assert run(two_sources, fork, **forked, data_mixture=one, resume="auto") == 2
    assert "the mixture" in capsys.readouterr().err
    onward = {**CONSTANT, "fork_from": folder_of(fork), "data_mixture": one, "max_tokens": 7 * STEP}
    assert run(two_sources, second, **onward) == 0
    assert "code_data goes on after 28 windows" in capsys.readouterr().err


def test_a_longer_context_under_a_curriculum(two_sources, tmp_path):
    """32 samples of 64 tokens are more than 2,048 / 128: the other order is found out, and nothing is asserted."""
    phases = [{"until": 6 * STEP, "weights": {"web_data": 1}}, {"weights": {"code_data": 1}}]
    trunk, fork = tmp_path / "trunk", tmp_path / "fork"
    options = {**CONSTANT, "micro_bsz": 2, "data_mixture": mixed(tmp_path, "phases", phases)}
    assert run(two_sources, trunk, **options, max_tokens=4 * STEP) == 0
    assert run(two_sources, fork, **options, max_tokens=8 * STEP, fork_from=folder_of(trunk), ctx_len=128) == 0
    read = rows(fork, "data/epoch/code_data")
    assert read[6] == 0 < read[7]


def test_other_data_begins_at_its_start(data, trunk, two_sources, tmp_path, capsys):
    fork = {**CONSTANT, "max_tokens": 6 * STEP, "fork_from": folder_of(trunk)}
    assert run(two_sources / "web_data", tmp_path / "a", **fork) == 0
    assert run(data, tmp_path / "b", **fork, ctx_len=32) == 0
    assert capsys.readouterr().err.count("the order of samples is another: all sources from the start") == 2
    assert rows(tmp_path / "b", "total_tokens") == {5: 5 * STEP, 6: 6 * STEP}


def test_averages_go_on_in_a_fork(data, tmp_path, capsys):
    """One that the trunk has is taken over, and a new one begins as the weights."""
    trunk, fork, more = (tmp_path / name for name in ("trunk", "fork", "more"))
    options = {**CONSTANT, "max_tokens": 8 * STEP}
    assert run(data, trunk, **options, ema="1k") == 0
    options |= {"fork_from": trunk_and_step(trunk, 4), "save_step": 1}
    assert run(data, fork, **options, ema="1k") == 0
    assert_same(trunk, fork, 8)
    assert run(data, more, **options, ema="1k,4k") == 0
    capsys.readouterr()
    assert run(data, tmp_path / "none", **options, dry_run=True) == 0
    assert "the averages with half-lives of 1,000 tokens are not kept" in capsys.readouterr().out
    found = tensors(more, 8)
    assert all(torch.equal(found[name], t) for name, t in tensors(trunk, 8).items())
    weights = {n.removeprefix("model."): t for n, t in tensors(trunk, 4).items() if n.startswith("model.")}
    rho = 0.5 ** (STEP / 4000)
    for step in range(5, 9):
        now = tensors(more, step)
        weights = {n: t.double() * rho + now[f"model.{n}"].double() * (1 - rho) for n, t in weights.items()}
    for name, average in weights.items():
        torch.testing.assert_close(found[f"ema.4000.{name}"].double(), average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"path": 5},
        {"tokens": "x"},
        {"step": None},
        {"samples": -1},
        {"offsets": {"data": "many"}},
        {"offsets": [1]},
        {"fresh": 5},
        {"parents": [[1]]},
    ],
    ids=str,
)
def test_a_plan_with_a_fork_that_is_none(data, trunk, forked, tmp_path, wrong):
    """The fork is found out anew, and the run goes on where only places of other runs, which may move, differ."""
    fork = Path(shutil.copytree(forked, tmp_path / "fork", symlinks=True))
    options = {**CONSTANT, "max_tokens": 6 * STEP, "fork_from": folder_of(trunk)}
    path = folder_of(fork) / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "fork": {**plan["fork"], **wrong}}))
    assert run(data, fork, **options, resume="auto") == (0 if wrong.keys() <= {"path", "parents"} else 2)


def test_a_step_that_was_moved_and_linked_back(data, tmp_path):
    """The fork is known again by the run that was typed, also when that has trained on or is gone."""
    trunk, fork = tmp_path / "trunk", tmp_path / "fork"
    assert run(data, trunk, **CONSTANT, max_tokens=4 * STEP) == 0
    typed, step = folder_of(trunk), trunk_and_step(trunk, 4)
    step.rename(tmp_path / "elsewhere")
    step.symlink_to(tmp_path / "elsewhere")
    options = {**CONSTANT, "max_tokens": 6 * STEP, "fork_from": typed}
    assert run(data, fork, **options, stop_after=1) == EXIT_INTERRUPTED
    assert run(data, trunk, **CONSTANT, max_tokens=6 * STEP, resume="auto") == 0
    assert run(data, fork, **options, stop_after=1, resume="auto") == 0
    typed.rename(tmp_path / "gone")
    assert run(data, fork, **options, resume="auto") == 0


def test_a_start_that_was_replaced_is_refused(data, tmp_path, capsys):
    """A fork that was killed before its first checkpoint would begin from other weights than its Plan says."""
    trunk, other, fork = (tmp_path / name for name in ("trunk", "other", "fork"))
    options = {**CONSTANT, "max_tokens": 4 * STEP}
    assert run(data, trunk, **options) == 0 == run(data, other, **options, grad_clip=0.5)
    forked = {**CONSTANT, "max_tokens": 6 * STEP, "fork_from": folder_of(trunk)}
    assert run(data, fork, **forked, stop_after=1) == EXIT_INTERRUPTED
    shutil.rmtree(folder_of(fork) / "checkpoints")
    shutil.rmtree(trunk_and_step(trunk, 4))
    shutil.copytree(trunk_and_step(other, 4), trunk_and_step(trunk, 4))
    assert run(data, fork, **forked, resume="auto") == 2
    assert "is another checkpoint by now" in capsys.readouterr().err


def test_processes_that_found_different_starts():
    """The trunk saved a checkpoint between two looks at it."""
    with pytest.raises(UserError, match="saved a checkpoint while this one started"):
        start_of(Fork("/run/checkpoints/step-000002", "a", 2, 2 * STEP), ["a", "b"])


def test_a_rate_that_jumps_is_noted(data, trunk, tmp_path, capsys):
    """A decay that would have begun before the fork does begin before it, and that is said."""
    start = {"fork_from": folder_of(trunk), "dry_run": True}
    assert run(data, tmp_path / "a", **start, max_tokens=6 * STEP, decay_tokens=4 * STEP) == 0
    said = capsys.readouterr().out
    assert "was 0.00283 where the fork begins and is 0.00141 now" in said, "4e-3 over the root of the depth"
    assert run(data, tmp_path / "b", **start, max_tokens=6 * STEP, decay_tokens=2 * STEP) == 0
    assert "where the fork begins" not in capsys.readouterr().out


def test_data_of_another_tokenizer_is_refused(data, tmp_path, capsys):
    """The trunk read bytes; ids of a tokenizer of characters would be other words to it."""
    trunk = tmp_path / "trunk"
    assert run(data, trunk, **CONSTANT, max_tokens=4 * STEP, vocab_size=300) == 0
    (tmp_path / "a.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    prepare(str(tmp_path / "a.txt"), str(tmp_path / "chars"), tokenizer="char", num_workers=1, progress=False)
    options = {**CONSTANT, "max_tokens": 6 * STEP, "vocab_size": 300, "fork_from": folder_of(trunk)}
    assert run(tmp_path / "chars", tmp_path / "fork", **options) == 2
    assert "different tokenizers" in capsys.readouterr().err
    copied = tmp_path / "copy/checkpoints/step-000004"  # without tokenizer/ beside it
    shutil.copytree(trunk_and_step(trunk, 4), copied)
    assert run(tmp_path / "chars", tmp_path / "fork", **options | {"fork_from": copied}) == 2
    assert "different tokenizers" in capsys.readouterr().err


def test_every_figure_says_where_a_fork_comes_from(trunk, forked, tmp_path):
    (title,) = _names([folder_of(forked)])
    assert title == f"{folder_of(forked).name}\nfork of {folder_of(trunk).name} after 2,048 tokens"
    assert draw_loss_curve(folder_of(forked), output=tmp_path / "fork.png").stat().st_size > 1000
