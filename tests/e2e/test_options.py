"""Options reach the run: short trainings, one option each, against the run without it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from tiny_run import folder_of, pretrain, rows, run, words

from lit_gpt.metrics.summary import read_metrics
from lit_gpt.train.stopping import EXIT_INTERRUPTED

SHORT: dict[str, Any] = {"max_tokens": 3 * 512, "base_hps__warmup_tokens": 512, "async_save": False, "depth": 2}
SAME: dict[str, dict[str, Any]] = {
    "recompute": {"act_ckpt": True},
    "recompute some": {"act_ckpt": "cheap", "act_offload": 0.5},  # not compiled, which is selective; nothing moves
    "old spelling": {"gradient_checkpointing": True},
    "micro-batches": {"micro_bsz": 2},
    "threads": {"num_workers": 2},
    "plain loss": {"use_flce": False},
    "plain attention": {"attention": "plain"},
    "old name of plain torch": {"attention": "reference", "kernels": "reference"},
    "not compiled": {"compile": False},
    "old spelling of warm-up": {"base_hps__warmup_tokens": None, "base_hps__warmup_tokens0": 512},
    "old switches": {"fsdp2": True, "logging_multiprocessing": False},
}
OTHER: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "qk norm": {"train_name": "mup_qknorm"},
    "gate": {"train_name": "mup_ga"},
    "tied": {"train_name": "mup_tie"},
    "no rotary": {"train_name": "mup_nope"},
    "varlen": {"train_name": "mup_varlen"},
    "cut documents": {"train_name": "mup_varlen", "doc_len": 8, "eos_token_id": 0},  # without a cut, no row has two
    "post-norm": {"post_norm": True},
    "decoupled": {"train_name": "mup_postnorm_decouple_skipgain", "post_norm": True},
    "no skip": {"train_name": "mup_noskip"},
    "sum": {"train_name": "mup_noskip_sum"},
    "biases and norms": {"train_name": "mup_bias_anorm_fnorm", "norm_class": "LayerNorm"},
    "relu2": {"mlp": "relu2"},
    "biases of keys": {"qkv_bias": True},
    "norms behind": {"reordered_norm": True, "qk_norm": True, "joint_qk_norm": True},
    "as GPT-2": {"position": "learned", "mlp": "gelu", "norm_class": "layernorm", "bias": True, "qkv_bias": True},
    "soft cap": {"logit_softcap": 1.0},
    "value embeddings": {"value_embeddings": True},
    "residual scalars": {"residual_scalars": True},
    "norm of embeddings": {"embedding_norm": True},
    "larger queries and keys": {"qk_norm": True, "qk_norm_scale": 1.5},
    "no gains": {"norm_gain": False},
    "zero outputs": {"zero_output": True},
    "smear": {"token_smear": True},
    "backout": {"backout": True},
    "narrow networks": {"mlp": "relu2", "ffn_multiple": 2},
    "large table": {"embedding_init_std": 0.8},
    "baseline": {"train_model": "baseline", "optimizer": "muon"},
    "stream of a hybrid": {"train_model": "sambay", "depth": 4, "base_hps__d0": 4, "varlen": True}
    | dict.fromkeys(("value_embeddings", "zero_output", "residual_scalars", "token_smear", "backout"), True),
    "no feed-forward networks": {"mlp": "none"},
    "wsd": {"train_name": "mup_wsd"},
    "cosine": {"train_name": "mup_cosine"},
    "constant": {"schedule": "constant"},
    "sde": {"batch_rule": "sde", "total_bsz": 1024, "micro_bsz": 8, "max_tokens": 3 * 1024},
    "label smoothing": {"train_name": "mup_ls"},
    "independent decay": {"independent_weight_decay": True, "base_hps__weight_decay": 0.01},
    "no clipping": {"grad_clip": 0},
    "clipping of tensors": {"grad_clip": 0.05, "grad_clip_type": "local"},
    "clipping of entries": {"grad_clip": 1e-3, "grad_clip_type": "elementwise"},
    "parallel blocks": {"parallel_block": True},
    "eps of norms": {"norm_eps": 0.1},
    "width of networks": {"ffn_multiple_of": 24},
    "start": {"train_name": "x", "parameterization": "plain", "init_std": 0.05},
    "dropout": {"dropout": 0.2},
    "cosine with an end": {"schedule": "cos_inf", "cos_inf_tokens": 512, "base_hps__min_lr_mult": 0.1},
    "no schedule": {"schedule": "none", "base_hps__warmup_tokens": None},
    "decay by an exponential": {"train_name": "mup_wsd", "decay": "exp", "base_hps__min_lr_mult": 0.1},
    "orthogonal": {"ortho_init": True},
    "seed": {"seed": 1},
    "windows": {"train_model": "transformerls", "swa_len": 16},
    "sinks": {"train_model": "transformersa"},
    "super muP": {"train_name": "super_mup"},
    "standard": {"train_name": "x"},
}


@pytest.fixture(scope="module")
def plain(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("plain")
    assert run(data, out, **SHORT) == 0
    return out


@pytest.mark.parametrize("case", SAME)
def test_options_that_change_no_number(case, data, plain, tmp_path):
    assert run(data, tmp_path, **{**SHORT, **SAME[case]}) == 0
    assert rows(tmp_path) == pytest.approx(rows(plain), rel=1e-6)


@pytest.mark.parametrize("case", OTHER)
def test_options_that_change_the_run(case, data, plain, tmp_path):
    assert run(data, tmp_path, **{**SHORT, **OTHER[case]}) == 0
    losses = rows(tmp_path)
    assert len(losses) == 3 and all(map(math.isfinite, losses.values()))
    assert losses[3] != pytest.approx(rows(plain)[3], rel=1e-6)


def test_the_batch_ramps_up(data, tmp_path):
    """x4 over the first 5 percent: of 10,240 tokens, after 512, which is two steps here."""
    options = {"total_bsz": 256, "micro_bsz": 2, "max_tokens": 10240, "bramp_ratio": 4, "stop_after": 4}
    assert run(data, tmp_path, **options) == EXIT_INTERRUPTED
    assert list(rows(tmp_path, "metric/effective_batch_size").values()) == [256, 640, 1024, 1024]
    assert list(rows(tmp_path, "metric/grad_accum_steps").values()) == [2, 5, 8, 8]
    assert list(rows(tmp_path, "total_tokens").values()) == [256, 896, 1920, 2944]
    rates = rows(tmp_path, "metric/weight_learning_rate")
    middle = [128, 576, 1408, 2432]  # of each step, in tokens; the warm-up ends at 1024
    schedule = [t / 1024 if t < 1024 else (10240 - t) / (10240 - 1024) for t in middle]
    expected = [s * (b / 512) ** 0.5 for s, b in zip(schedule, [256, 640, 1024, 1024])]
    peak = 4e-3 * 0.5**0.5 * 4  # sqrt(1 / 2) for the depth, 128 / 32 for the width
    assert list(rates.values()) == pytest.approx([peak * e for e in expected])


def test_weights_of_another_run(data, plain, tmp_path, capsys):
    """--init_from starts at step 0 with those weights; a validation run measures them and writes nothing."""
    options = {**SHORT, "val_data_dir": data, "eval_sequences": 4, "num_extrp": 2}
    assert run(data, tmp_path, **{**options, "init_from": folder_of(plain), "base_hps__eta0": 1e-9}) == 0
    assert list(rows(tmp_path)) == [1, 2, 3] and rows(tmp_path)[1] < rows(plain)[1] - 0.1
    expected = {key: rows(tmp_path, f"metric/{key}")[3] for key in ("val_loss@1x", "val_loss@2x", "val_bpb@1x")}
    capsys.readouterr()
    assert run(data, tmp_path / "v", **{**options, "train_name": "mup_validation", "load_dir": folder_of(plain)}) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    for key, value in expected.items():  # the first steps of training moved the weights by 1e-9
        assert float(shown[f"metric/{key}"]) == pytest.approx(value, abs=2e-6)
    assert not (tmp_path / "v").exists()


def test_config_files(data, tmp_path, capsys):
    """What --print_config prints, and what a run folder holds, say the same as the command line."""
    line = words(data, tmp_path / "out", **SHORT, gradient_checkpointing=True, loggers="[csv]")
    assert pretrain.main([*line, "--print_config"]) == 0
    printed = tmp_path / "run.yaml"
    printed.write_text(capsys.readouterr().out)
    assert pretrain.main(["--config", str(printed)]) == 0
    folder = folder_of(tmp_path / "out")
    assert len((folder / "metrics.csv").read_text().splitlines()) == 4
    capsys.readouterr()
    for arguments in (line, ["--config", str(printed)], ["--config", str(folder / "config.yaml")]):
        assert pretrain.main([*arguments, "--resume=auto"]) == 0
        assert "finished already" in capsys.readouterr().out
    assert pretrain.main(["--config", str(printed), "--seed", "1", "--resume=auto"]) == 2, "a flag beats the file"
    assert "--seed: 3407 -> 1" in capsys.readouterr().err


def test_a_tracker_gets_the_plan_and_where_the_run_belongs(data, tmp_path, monkeypatch):
    """It was sent the options only, so that runs could not be compared by what they mean."""
    wandb = MagicMock()
    wandb.init.return_value.id = "id"
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    tracked = {"tracker_name": "row", "tracker_group": "sweep", "tracker_tags": "a,b", "wandb_entity": "team"}
    assert run(data, tmp_path, **SHORT, loggers="wandb,csv", **tracked) == 0
    told = wandb.init.call_args.kwargs
    assert told["config"]["plan"] == json.loads((folder_of(tmp_path) / "plan.json").read_text())
    assert [told[k] for k in ("name", "group", "tags", "entity")] == ["row", "sweep", ("a", "b"), "team"]


def test_the_archive_of_a_run(plain):
    folder = folder_of(plain)
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["finished"], summary["step"], summary["tokens"]) == (True, 3, 1536)
    assert summary["train_loss"] == rows(plain)[3]
    told = read_metrics(folder)
    tokens, seconds = (np.diff(told[key][-2:]).item() for key in ("total_tokens", "time/train"))  # of the third step
    assert summary["throughput/tokens_per_sec"] == pytest.approx(tokens / seconds)
    assert json.loads((folder / "plan.json").read_text())["tokens"] == 1536
    assert json.loads((folder / "environment.json").read_text())["world_size"] == 1
    assert not [path for path in folder.rglob("*") if path.name.startswith(".tmp") or path.suffix == ".tmp"]
