"""pretrain.py --init_from a dense run into its mixture of experts: it starts at its loss, learns, and goes on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_resume import assert_same_run, weights
from tiny_run import folder_of, rows, run

from lit_gpt.checkpoint import find_checkpoint, load_full, write_exported
from lit_gpt.train.stopping import EXIT_INTERRUPTED

STEP = 256  # tokens
DENSE: dict[str, Any] = {"train_model": "transformer_gqa4_h2", "depth": 4, "base_hps__d0": 4, "ar": 8}
DENSE |= {"train_name": "v2scale_mup_muonh_ga_qknorm", "base_hps__eta0": 0.02, "base_hps__warmup_tokens": STEP}
DENSE |= {"async_save": False}
DENSE |= {"total_bsz": STEP, "micro_bsz": 4, "base_hps__b0": STEP}  # heads are of 128 dimensions, so tokens are few
EXPERTS = {"train_model": "transformer_gqa4_h2_moe", "sparsity": 4, "top_k": 4, "sqrt_gate": True, "share_expert": True}
ON = {"max_tokens": 5 * STEP, "base_hps__eta0": 0.002}  # a rate with which a few steps harm no trained model
MOE = {**DENSE, **EXPERTS, **ON, "aux_gamma": 0.0}


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense")
    assert run(data, out, val_data_dir=data, eval_sequences=4, **DENSE, max_tokens=16 * STEP) == 0
    return out


def validated(data, out, capsys, **options) -> float:
    """The loss of weights on the validation data, from a run that only validates."""
    capsys.readouterr()
    options |= {"train_name": f"{DENSE['train_name']}_validation", "val_data_dir": data, "eval_sequences": 4}
    assert run(data, out, **options) == 0
    return float(dict(line.split() for line in capsys.readouterr().out.splitlines())["metric/val_loss@1x"])


def test_it_starts_at_the_dense_models_loss(data, dense, tmp_path, capsys):
    expected = rows(dense, "metric/val_loss@1x")[16]
    assert expected < rows(dense)[1] - 0.5
    step = find_checkpoint(folder_of(dense), True)
    file = write_exported(*load_full(step), tmp_path / "dense.safetensors")
    for path in (folder_of(dense), step, file):
        assert validated(data, tmp_path, capsys, **{**MOE, "init_from": path}) == pytest.approx(expected, rel=1e-5)
    one = {**MOE, "init_from": file, "top_k": 1, "share_expert": False}  # of whole copies, whose gates vary
    assert abs(validated(data, tmp_path, capsys, **one) - expected) < 0.5


def test_it_learns_and_goes_on(data, dense, tmp_path, capsys):
    """Stopped and continued as any run; spheres keep the norms of the slices."""
    whole, parts, options = tmp_path / "whole", tmp_path / "parts", {**MOE, "init_from": folder_of(dense)}
    assert run(data, whole, **options) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("init_from: ")]
    assert len(said) == 1 and "became 4 x 15 experts (slices of 1/4, 5 of each" in said[0]
    assert run(data, tmp_path / "dense", **{**DENSE, **ON, "init_from": folder_of(dense)}) == 0
    losses, fresh = rows(whole), rows(tmp_path / "dense")
    assert losses[1] == pytest.approx(fresh[1], rel=1e-5)
    assert max(losses.values()) < rows(dense)[1] - 1.5  # the dense run began 3 above
    loads = json.loads((folder_of(whole) / "metrics.jsonl").read_text().splitlines()[0])
    assert sum(loads[f"metric/loop_0_expert_{j}_load"] > 0 for j in range(15)) > 3
    for key in ("up", "down"):
        found, slices = weights(whole)[f"blocks.1.ffn.{key}"], weights(dense)[f"blocks.1.ffn.{key}.weight"]
        parts_of = slices.view(2, 4, 32, -1).transpose(0, 1).flatten(1) if key == "up" else slices.view(-1, 4, 32)
        norms = parts_of.norm(dim=1) if key == "up" else parts_of.norm(dim=(0, 2)) * 6**0.5
        assert found.flatten(1).norm(dim=1).tolist() == pytest.approx(norms[[0, 1, 2] * 5].tolist(), rel=1e-4)
    assert run(data, parts, resume="auto", stop_after=2, **options) == EXIT_INTERRUPTED
    capsys.readouterr()
    assert run(data, parts, resume="auto", **options) == 0
    assert "init_from: " not in capsys.readouterr().err
    assert_same_run(parts, whole)


def test_refusals(data, dense, tmp_path, capsys):
    options = {**MOE, "init_from": folder_of(dense)}
    for changes, message in (
        ({"ar": 16}, "n_embd: 32 -> 64"),
        ({"train_name": "v2scale_mup_muonh_ga"}, "qk_norm: True -> False"),
        ({"train_model": "transformer_gqa4_moe"}, "n_head: 8 -> 4"),
    ):
        assert run(data, tmp_path, **{**options, **changes}) == 2
        said = capsys.readouterr().err
        assert "only its own mixture of experts can start from it" in said and message in said
