"""Averages of the weights through pretrain.py's own words: trained, stopped and continued, validated, exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from spawn import run_distributed
from test_resume import assert_same_run, newest
from tiny_model import same
from tiny_run import folder_of, pretrain, rows, run, words

from lit_gpt.checkpoint import list_checkpoints, load_full
from lit_gpt.checkpoint.untrusted import stored_shapes
from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.evals.trained_model import load_model, load_weights_and_meta
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.tools import average, convert, generate
from lit_gpt.train.build import build_model
from lit_gpt.train.stopping import EXIT_INTERRUPTED

# The batch grows from 128 to 512 tokens.
OPTIONS: dict[str, Any] = {"total_bsz": 128, "micro_bsz": 2, "bramp_ratio": 4, "max_tokens": 3000, "ema": "2k,200"}
OPTIONS |= {"eval_step": 2, "eval_sequences": 4}
NAMES = {200: "ema_200", 2000: "ema_2k"}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ema")
    assert run(data, out, val_data_dir=data, save_step=1, keep_last=100, **OPTIONS) == 0
    return out


def test_they_are_the_naive_averages_of_all_steps(data, trained):
    """From the initial weights on, in float64, with the tokens of each step."""
    steps = list_checkpoints(folder_of(trained) / "checkpoints")
    seen = [0, *(int(tokens) for tokens in rows(trained, "total_tokens").values())]
    batches = np.diff(seen)
    assert len(steps) == len(batches) and len(set(batches)) > 1, "the batch grows"
    model = build_model(resolve_run(parse(words(data, trained, **OPTIONS)), 1), start_runtime())
    weights = [{name: p.detach() for name, p in model.named_parameters()}, *(load_full(path)[0] for path in steps)]
    for half_life, name in NAMES.items():
        found = load_full(steps[-1], name)[0]
        for key, first in weights[0].items():
            expected = first.double()
            for after, tokens in zip(weights[1:], batches):
                rho = 2.0 ** (-float(tokens) / half_life)
                expected = rho * expected + (1 - rho) * after[key].double()
            assert (found[key] - expected).abs().max() < 1e-6, key


def test_stopped_and_continued(data, trained, tmp_path):
    options = {"val_data_dir": data, **OPTIONS}
    for _ in range(2):
        assert run(data, tmp_path, resume="auto", stop_after=2, **options) == EXIT_INTERRUPTED
    assert run(data, tmp_path, resume="auto", **options) == 0
    assert_same_run(tmp_path, trained)
    for name in NAMES.values():
        assert rows(tmp_path, f"metric/val_loss_{name}@1x") == rows(trained, f"metric/val_loss_{name}@1x")
        assert same(load_full(newest(tmp_path), name)[0], load_full(newest(trained), name)[0])


def test_from_two_processes_to_one(data, trained, tmp_path):
    argv = words(data, tmp_path, val_data_dir=data, stop_after=3, **{**OPTIONS, "micro_bsz": 1})
    assert run_distributed(pretrain.main, 2, argv) == [EXIT_INTERRUPTED] * 2
    assert run(data, tmp_path, val_data_dir=data, resume="auto", **OPTIONS) == 0
    for name in ("", *(f"_{name}" for name in NAMES.values())):
        key = f"metric/val_loss{name}@1x"
        assert rows(tmp_path, key) == pytest.approx(rows(trained, key), rel=1e-4)


def test_experts_of_two_processes(data, tmp_path, capsys):
    """Their shards are no unit of FSDP2's, and the selection biases of the day are used."""
    options = {**OPTIONS, "train_model": "transformer_gqa4_h2_moe", "base_hps__d0": 4, "ar": 8, "sparsity": 2}
    options |= {"bias_rate": 0.01, "val_data_dir": data, "micro_bsz": 1, "tie_embeddings": True}
    assert run_distributed(pretrain.main, 2, words(data, tmp_path, expert_parallel=True, **options)) == [0, 0]
    file = tmp_path / "average.safetensors"
    assert convert.main([str(folder_of(tmp_path)), str(file), "--weights", "ema_2k"]) == 0
    biases = [t for name, t in load_full(newest(tmp_path))[0].items() if name.endswith(".balance")]
    assert biases and all(t.any() for t in biases), "they have moved"
    capsys.readouterr()
    assert run(data, tmp_path, **{**options, "train_name": "mup_validation", "init_from": file}) == 0
    found = dict(line.split() for line in capsys.readouterr().out.splitlines())
    logged = list(rows(tmp_path, "metric/val_loss_ema_2k@1x").values())[-1]
    assert logged == pytest.approx(float(found["metric/val_loss@1x"]), rel=1e-5)
    assert logged != rows(tmp_path, "metric/val_loss@1x").popitem()[1]


def test_training_is_as_without(data, trained, tmp_path):
    options = {key: value for key, value in OPTIONS.items() if key != "ema"}
    assert run(data, tmp_path, val_data_dir=data, **options) == 0
    assert_same_run(tmp_path, trained)
    lines = (folder_of(tmp_path) / "metrics.jsonl").read_text() + (folder_of(tmp_path) / "summary.json").read_text()
    assert "_ema_" not in lines
    assert {name.partition(".")[0] for name in stored_shapes(newest(tmp_path))} == {"model", "optim"}


def test_validation_is_that_of_the_exported_average(data, trained, tmp_path, capsys):
    """At every multiple of the context; and it is in the summary."""
    summary = json.loads((folder_of(trained) / "summary.json").read_text())
    losses = set()
    for name in NAMES.values():
        file = tmp_path / f"{name}.safetensors"
        assert convert.main([str(folder_of(trained)), str(file), "--weights", name]) == 0
        options = {**OPTIONS, "train_name": "mup_validation", "init_from": file, "val_data_dir": data}
        capsys.readouterr()
        assert run(data, tmp_path, **options) == 0
        found = {key: float(value) for key, value in (line.split() for line in capsys.readouterr().out.splitlines())}
        assert {"metric/val_loss@1x", "metric/val_loss@2x", "metric/val_ppl@1x", "metric/val_bpb@1x"} <= found.keys()
        for key, value in found.items():
            logged = key.replace("@", f"_{name}@")
            assert list(rows(trained, logged).values())[-1] == pytest.approx(value, abs=2e-6, rel=1e-6)
            assert summary[logged] == pytest.approx(value, abs=2e-6, rel=1e-6)
        losses.add(found["metric/val_loss@1x"])
    assert len(losses | {round(summary["metric/val_loss@1x"], 6)}) == 3, "they differ"


def test_the_console_names_them(data, tmp_path, capsys):
    assert run(data, tmp_path, val_data_dir=data, **{**OPTIONS, "max_tokens": 1100}) == 0
    said = capsys.readouterr().err
    assert "averages     EMA with half-lives of 200 and 2k tokens (decay 0.641713 and 0.956608 per step of 128)" in said
    line = next(line for line in said.splitlines() if line.startswith("validation loss: 1x "))
    assert line.count("; ema_") == 2 and "; ema_200 1x " in line and "; ema_2k 1x " in line and line.count("2x ") == 3


def test_tools_take_an_average(trained, tmp_path, capsys):
    folder = folder_of(trained)
    weights, _ = load_full(newest(trained), "ema_2k")
    assert same(load_weights_and_meta(folder, "ema_2000")[0], weights)
    assert same(dict(load_model(folder, weights="ema_2k")[0].state_dict()), weights)
    steps = list_checkpoints(folder / "checkpoints")[-2:]
    mean, _ = average.average(steps, "ema_2k")
    before, _ = load_full(steps[0], "ema_2k")
    assert all(torch.equal(mean[k], ((before[k].double() + weights[k]) / 2).float()) for k in mean)
    file = tmp_path / "a.pth"
    assert convert.main([str(folder), str(file), "--weights", "ema_2k"]) == 0
    assert load_weights_and_meta(file)[1]["weights"] == "ema_2k"
    line = ["--prompt", "the", "--max_new_tokens", "8", "--temperature", "0", "--device", "cpu"]
    capsys.readouterr()
    assert generate.main([str(folder), "--weights", "ema_2k", *line]) == 0
    chosen = capsys.readouterr().out
    assert generate.main([str(file), *line]) == 0 and capsys.readouterr().out == chosen
    with pytest.raises(UserError, match=r"no average 'ema_5B'. It has ema_200, ema_2k; without --weights"):
        convert.main([str(folder), str(tmp_path / "b.pth"), "--weights", "ema_5B"])
    with pytest.raises(UserError, match=r"is an exported file, which holds one set of weights; --weights ema_2k"):
        generate.main([str(file), "--weights", "ema_2k", *line])


def test_other_half_lives_are_another_run(data, tmp_path, capsys):
    assert run(data, tmp_path, stop_after=1, **OPTIONS) == EXIT_INTERRUPTED
    for ema, said in (("200", "[200.0]"), (None, "[]"), ("200,400", "[200.0, 400.0]")):
        capsys.readouterr()
        assert run(data, tmp_path, resume="auto", **{**OPTIONS, "ema": ema}) == 2
        assert f"--ema: [200.0, 2000.0] -> {said}" in capsys.readouterr().err
