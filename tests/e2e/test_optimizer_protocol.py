"""What the loop does for optimizers that need more than a step, through pretrain.py's own words."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_resume import assert_same_run, newest, stopped_and_continued, weights
from tiny_run import rows, run

from lit_gpt.checkpoint.load import stored_shapes

SHORT: dict[str, Any] = {"async_save": False, "max_tokens": 6 * 512, "train_name": "x", "log_step": 1, "depth": 2}
RATES = {"schedulefree_adamw": 4e-3, "sophia": 1e-3, "prodigy": 1.0, "apollo": 4e-3}
OPTIONS: dict[str, dict[str, Any]] = {
    "schedulefree_adamw": {"schedule": "constant"},
    "sophia": {"optimizer_args__period": 2, "optimizer_args__rho": 0.1},
    "prodigy": {"optimizer_args__d0": 1e-4},
    "apollo": {"optimizer_args__rank": 4, "optimizer_args__scale_type": "tensor"},
}


@pytest.mark.parametrize("name", RATES)
def test_stopped_and_continued(name, data, tmp_path):
    """Also with validations in between, which see other weights than the next step does."""
    pytest.importorskip("pytorch_optimizer")
    options = {**SHORT, **OPTIONS[name], "optimizer": name, "base_hps__eta0": RATES[name]}
    options |= {"val_data_dir": data, "eval_step": 2, "eval_sequences": 4}
    assert_same_run(*stopped_and_continued(data, tmp_path, **options))


def test_averages_are_validated_and_saved(data, tmp_path):
    """The checkpoint's weights are the averages; those that are trained are beside them."""
    pytest.importorskip("pytorch_optimizer")
    options = {**SHORT, "optimizer": "schedulefree_adamw", "schedule": "constant", "base_hps__eta0": 4e-3}
    for out, eval_step in ((tmp_path / "a", 1), (tmp_path / "b", 100)):
        assert run(data, out, val_data_dir=data, eval_step=eval_step, eval_sequences=4, **options) == 0
    assert rows(tmp_path / "a") == rows(tmp_path / "b"), "validation does not touch training"
    saved = weights(tmp_path / "a")
    name = "blocks.0.mixer.q.weight"
    assert f"optim.{name}.0/training_weights/0" in stored_shapes(newest(tmp_path / "a"))
    again = tmp_path / "c"
    assert run(data, again, validation=True, init_from=newest(tmp_path / "a"), val_data_dir=data, **options) == 0
    assert torch.isfinite(saved[name]).all()


def test_prodigy_says_its_rate(data, tmp_path):
    pytest.importorskip("pytorch_optimizer")
    options = {**SHORT, "max_tokens": 16 * 512, "schedule": "constant", "optimizer_args__d0": 1e-4}
    assert run(data, tmp_path, optimizer="prodigy", base_hps__eta0=1.0, **options) == 0
    found, rate = rows(tmp_path, "metric/optimizer_rate_factor"), rows(tmp_path, "metric/effective_learning_rate")
    assert found[16] > found[1] == pytest.approx(1e-4) and rate[16] == pytest.approx(found[16])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "schedulefree_adamw"}, "--schedule constant"),
        ({"optimizer": "adan", "optimizer_args__max_grad": 1.0}, "Did you mean 'max_grad_norm'"),
        ({"optimizer": "rmnp", "optimizer_args__momentum": 0.9}, "The optimizer rmnp has no option"),
        ({"optimizer": "prodigi"}, "Did you mean 'prodigy'"),
    ],
)
def test_refusals(options, says, data, tmp_path, capsys):
    pytest.importorskip("pytorch_optimizer")
    assert run(data, tmp_path, **{**SHORT, **options}) == 2
    assert says in capsys.readouterr().err
