"""Mixtures of experts in the trainer: ArchScale's command, every routing, resume, refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_resume import assert_same_run, weights
from tiny_run import folder_of, rows, run

from lit_gpt.parallel import parallelize
from lit_gpt.parallel.kept_casts import keep_casts
from lit_gpt.train.stopping import EXIT_INTERRUPTED

STEP = 256  # tokens; few, for heads are of 128 dimensions
MOE: dict[str, Any] = {"train_model": "transformer_gqa4_h2_moe", "depth": 4, "base_hps__d0": 4, "ar": 8}
MOE |= {"total_bsz": STEP, "micro_bsz": 4, "base_hps__b0": STEP, "base_hps__warmup_tokens": 2 * STEP}
MOE |= {"async_save": False}
# The words of ArchScale's guide, less sizes.
GUIDE = {"share_expert": True, "global_aux": True, "sqrt_gate": True, "fsdp2": True}
GUIDE |= {"train_name": "v2scale_mup_muonh_ga_qknorm_sgate_shexp", "sparsity": 4, "top_k": 4}


def test_the_command_of_the_guide(data, tmp_path):
    options = {**MOE, **GUIDE, "base_hps__eta0": 0.02, "max_tokens": 10 * STEP, "base_hps__warmup_tokens": 0}
    assert run(data, tmp_path, val_data_dir=data, eval_sequences=4, **options) == 0
    folder, losses = folder_of(tmp_path), rows(tmp_path)
    assert folder.name == f"{GUIDE['train_name']}_transformer_gqa4_h2_moe_s4_k4_d4_ar8_ctx64"
    assert losses[10] < losses[1] - 0.5
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-2])
    loads = [last[f"metric/loop_0_expert_{j}_load"] for j in range(15)]
    assert sum(loads) == pytest.approx(15) and max(loads) - 1 == pytest.approx(last["metric/loop_0_maxvio_batch"])
    assert last["metric/bal_loss"] >= 0.004 * 0.999  # gamma times 1 at balance, summed over four layers
    assert {"metric/maxvio_batch_avg", "metric/router_z_mean", "metric/expert_output_rms_mean"} < last.keys()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_loss": {"aux_gamma": 0.0},
    "sequences": {"aux_style": "switch_seq", "aux_gamma": 0.1},
    "entropy": {"aux_style": "entropy", "aux_gamma": 0.1},
    "z": {"router_z_loss": 0.1},
    "sigmoid": {"router_gate": "sigmoid"},
    "capacity": {"expert_capacity": 0.5},
    "expert_choice": {"expert_routing": "expert_choice"},
    "expert_choice_capacity": {"expert_routing": "expert_choice", "expert_capacity": 1.5},
    "two_shared": {"share_expert": 2, "top_k": 4},
    "parallel": {"parallel_block": True, "dropout": 0.1},
    "relu2": {"mlp": "relu2"},
}


def test_one_expert_per_token(data, tmp_path):
    """Switch Transformer's gate, so that the loss reaches the router."""
    options = {**MOE, "depth": 2, "base_hps__d0": 2, "sparsity": 4, "top_k": 1, "aux_gamma": 0.0}
    assert run(data, tmp_path, max_tokens=3 * STEP, **options) == 0
    config = json.loads((folder_of(tmp_path) / "model.json").read_text())
    assert config["experts"]["gate"] == "all"


def test_every_option_changes_the_run(data, tmp_path):
    short = {**MOE, "ar": 16, "depth": 2, "base_hps__d0": 2, "sparsity": 2, "top_k": 2, "max_tokens": 3 * STEP}
    found = {}
    for name, changes in OPTIONS.items():
        assert run(data, tmp_path / name, **{**short, **changes}) == 0
        found[name] = rows(tmp_path / name)[3]
    assert len(set(found.values())) == len(OPTIONS), found
    assert run(data, tmp_path / "plain torch", expert_backend="plain", **short) == 0
    assert rows(tmp_path / "plain torch")[3] == pytest.approx(found["plain"], rel=1e-4)


def test_stopped_and_continued_with_its_selection_biases(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {**MOE, "train_model": "sambay_gqa4_moe", "ar": 16, "sparsity": 2, "top_k": 2, "bias_rate": 0.01}
    options |= {"max_tokens": 4 * STEP, "micro_bsz": 2, "val_data_dir": data, "eval_step": 2, "eval_sequences": 4}
    assert run(data, whole, **options) == 0
    assert run(data, parts, resume="auto", stop_after=2, **options) == EXIT_INTERRUPTED
    assert run(data, parts, resume="auto", **options) == 0
    assert_same_run(parts, whole)
    assert weights(whole)["blocks.0.ffn.balance"].any()


@pytest.mark.parametrize("room", [0, 2**40])
def test_in_bf16_gradients_by_way_of_sinks_change_nothing(data, tmp_path, room, monkeypatch):
    """Nor do kept casts: two micro-batches in a step, evaluation between steps, stopped and continued."""
    sunk, plain = tmp_path / "sunk", tmp_path / "plain"
    options = {**MOE, "ar": 16, "sparsity": 2, "top_k": 2, "precision": "bf16", "max_tokens": 3 * STEP, "micro_bsz": 2}
    options |= {"val_data_dir": data, "eval_step": 1, "eval_sequences": 4}
    monkeypatch.setattr(parallelize, "keep_casts", lambda model, dtype, _: keep_casts(model, dtype, room))
    assert run(data, sunk, resume="auto", stop_after=2, **options) == EXIT_INTERRUPTED
    assert run(data, sunk, resume="auto", **options) == 0
    prepared = []
    monkeypatch.setattr(parallelize, "sum_in_one_pass", lambda model, *rest: prepared.append(model))
    assert run(data, plain, **options) == 0
    assert_same_run(sunk, plain)
    assert len(prepared) == 1 and not prepared[0].blocks[0].ffn.sinks


def test_a_dense_run_notes_options_of_experts_once(data, tmp_path, capsys):
    """ArchScale's launch scripts give them to every model; here they ended in an error."""
    options = {"sparsity": 32, "top_k": 4, "aux_style": "switch", "expert_parallel": True, "max_tokens": 512}
    assert run(data, tmp_path, base_hps__warmup_tokens=0, **options) == 0
    note = "note         nothing in transformer reads --sparsity, --top_k, --aux_style, --expert_parallel (no experts)"
    assert capsys.readouterr().err.splitlines().count(note) == 1


def test_refusals(data, tmp_path, capsys):
    for options, message in (
        ({"top_k": 3}, "it must divide the hidden width 128"),
        ({"expert_routing": "expert_choice", "aux_gamma": 0.1}, "give --aux_gamma 0"),
        ({"expert_parallel": True}, "it needs torchrun"),
        ({"sparsity": 8, "top_k": 1, "router_gate": "selected"}, "give --router_gate all"),
        ({"train_name": "mup_fnorm"}, "experts have no biases"),
        ({"expert_backend": "sonic"}, "Unknown grouped matmul backend 'sonic'"),
    ):
        assert run(data, tmp_path, **{**MOE, **options}) != 0
        assert message in capsys.readouterr().err
