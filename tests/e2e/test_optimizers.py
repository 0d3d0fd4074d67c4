"""Native optimizers in the trainer: they learn, resume to the bit, take their options, and refuse what cannot work."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_resume import assert_same_run, newest, stopped_and_continued, weights
from tiny_run import folder_of, rows, run

from lit_gpt.checkpoint.load import stored_shapes

NAMES = {"muon": 0.02, "muonh": 0.02, "muonball": 0.02, "normuon": 0.02, "hadam": 4e-3, "lion": 5e-4}  # with eta0
SHORT: dict[str, Any] = {"async_save": False, "max_tokens": 12 * 512, "depth": 2}


@pytest.mark.parametrize("name", NAMES)
def test_learns(name, data, tmp_path):
    """By 1.5 to 4 in thirty steps, whatever seed; in twelve the slowest, whose rates are small, were near the bound."""
    options = {**SHORT, "max_tokens": 30 * 512}
    assert run(data, tmp_path, optimizer=name, base_hps__eta0=NAMES[name], **options) == 0
    losses = rows(tmp_path)
    assert len(losses) == 30 and losses[30] < losses[1] - 0.5


@pytest.mark.parametrize("name", ["muonh", "muonball"])
def test_stopped_and_continued(name, data, tmp_path):
    options = {**SHORT, "train_name": f"x_{name}", "base_hps__eta0": 0.02, "max_tokens": 5 * 512}
    options |= {"val_data_dir": data, "eval_step": 2, "eval_sequences": 4}
    parts, whole = stopped_and_continued(data, tmp_path, **options)
    assert_same_run(parts, whole)
    kept = {"muonh": "norm", "muonball": "singular_vector"}[name]
    assert f"optim.blocks.0.mixer.q.weight.{kept}" in stored_shapes(newest(parts))


def test_the_sphere_of_another_runs_weights(data, tmp_path):
    """--init_from: the norm that is kept is that of the weights that were loaded."""
    assert run(data, tmp_path / "first", train_name="x", base_hps__eta0=0.05, **SHORT) == 0
    loaded = weights(tmp_path / "first")
    out, start = tmp_path / "second", folder_of(tmp_path / "first")
    assert run(data, out, train_name="x_muonh", base_hps__eta0=0.02, init_from=start, **SHORT) == 0
    found = weights(out)
    for key in ("blocks.0.mixer.q.weight", "blocks.1.ffn.up.weight", "head.weight"):
        assert found[key].norm().item() == pytest.approx(loaded[key].norm().item(), rel=1e-6)
        assert not torch.equal(found[key], loaded[key])


def test_options_reach_the_optimizer(data, tmp_path, capsys):
    options = {**SHORT, "optimizer": "muon", "base_hps__eta0": 0.02, "max_tokens": 3 * 512}
    outs = {"plain": {}, "ns": {"optimizer_args__ns": "polar_express"}, "split": {"optimizer_args__split_maps": True}}
    outs |= {"momentum": {"base_hps__muon_beta": 0.5}, "cautious": {"cautious_weight_decay": True}}
    losses = set()
    for name, changes in outs.items():
        assert run(data, tmp_path / name, **options, **changes) == 0
        losses.add(rows(tmp_path / name)[3])
    assert len(losses) == len(outs)
    capsys.readouterr()
    assert run(data, tmp_path / "wrong", **options, optimizer_args__momentun=0.9) == 2
    assert "The optimizer muon has no option 'momentun' (--optimizer_args)" in capsys.readouterr().err
    assert run(data, tmp_path / "wrong", **options, optimizer_args__ns="tunde") == 2
    assert "Did you mean 'tuned'" in capsys.readouterr().err


def test_arguments_are_refused_before_anything_is_written(data, tmp_path, capsys):
    """SOAP's merge_dims crashed in the first step, with a run folder already there."""
    pytest.importorskip("pytorch_optimizer")
    assert run(data, tmp_path, **SHORT, optimizer="soap", optimizer_args__merge_dims=True) == 2
    assert "--optimizer_args.merge_dims True cannot be used by soap" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_plan_has_the_name_that_was_meant(data, tmp_path):
    """A published spelling is resolved once; the run folder says what trained."""
    assert run(data, tmp_path, **{**SHORT, "max_tokens": 3 * 512}, optimizer="D-Muon", base_hps__eta0=1e-3) == 0
    folder = folder_of(tmp_path)
    assert json.loads((folder / "plan.json").read_text())["optimizer"] == "dmuon"
    assert "optimizer: dmuon" in (folder / "config.yaml").read_text()


def test_a_head_that_starts_at_zero(data, tmp_path, capsys):
    assert run(data, tmp_path, train_name="x_muonh", head_init_std="null", **SHORT) == 2
    assert "the head would start at zero and never move. Give --head_init_std 0.02" in capsys.readouterr().err
