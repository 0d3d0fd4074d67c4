"""The optimizer benchmark: its table, its commands, and a run of it that is interrupted, continued and reported."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pytest
from script_module import script_module
from tiny_run import make_corpus

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.optim import OPTIMIZERS

ROOT = Path(__file__).parents[2]
benchmark = script_module("launch_scripts/optimizer_benchmark.py")

TINY = "--ar 8 --depth 2 --ctx_len 32 --micro_bsz 4 --total_bsz 256 --eval_sequences 8 --base_hps.d0 2 --num_workers 0"


def words(data: Path, out: Path, optimizers: str, *more: str, tokens: int = 2048) -> list[str]:
    given = f"--scale 60m --optimizers {optimizers} --train_data_dir {data} --val_data_dir {data} --output {out}"
    return [*given.split(), "--max_tokens", str(tokens), "--", *TINY.split(), "--eval_step", "4", *more]


def test_every_optimizer_has_one_row_at_every_scale() -> None:
    for scale in benchmark.SCALES:
        assert sorted(benchmark.read_table(benchmark.TABLE, scale)) == OPTIMIZERS.names()
    with benchmark.TABLE.open(newline="") as file:
        pairs = [(row["optimizer"], scale) for row in csv.DictReader(file) for scale in row["sizes"].split()]
    assert len(pairs) == len(set(pairs))


def test_runs_go_on_and_are_reported(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("pytorch_optimizer")
    data, out = make_corpus(tmp_path), tmp_path / "out"
    assert benchmark.main(words(data, out, "adamw,schedulefree_adamw", "--stop_after", "3")) == os.EX_TEMPFAIL
    assert benchmark.main(words(data, out, "adamw,schedulefree_adamw")) == 0
    with (out / "60m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["optimizer"] for row in rows} == {"adamw", "schedulefree_adamw"}
    losses = [float(row["val_loss"]) for row in rows]
    assert losses == sorted(losses) and all(row["state"] == "finished" for row in rows)
    assert (out / "60m.png").stat().st_size > 1000 and "| `adamw` |" in (out / "60m.md").read_text()
    capsys.readouterr()
    assert benchmark.main(words(data, out, "adamw,schedulefree_adamw")) == 0
    assert "step" not in capsys.readouterr().err, "nothing is trained again"


def test_a_run_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    data, out = make_corpus(tmp_path), tmp_path / "out"
    table = tmp_path / "table.csv"
    header = "optimizer,sizes,eta0,weight_lr_scale,beta1,beta2,eps,muon_beta,args,source\n"
    bad = 'adamw,60m,1e-3,1,0.9,0.99,1e-8,0.95,"{""nonsense"": 1}",x\n'
    table.write_text(header + bad + "lion,60m,1e-3,1,0.9,0.99,1e-8,0.95,,x\n")
    assert benchmark.main(["--table", str(table), *words(data, out, "all", tokens=1024)]) == 1
    report = (out / "60m.md").read_text()
    assert "failed: The optimizer adamw has no option 'nonsense'" in report and "| `lion` |" in report


def test_what_cannot_be_given(tmp_path: Path, capsys: Any) -> None:
    assert exit_code(benchmark.main, words(tmp_path, tmp_path, "schedulefre_sgd")) == 2
    assert "Did you mean 'schedulefree_sgd'" in capsys.readouterr().err
    assert exit_code(benchmark.main, words(tmp_path, tmp_path, "adamw", "--max_tokens=100")) == 2
    assert "before the --" in capsys.readouterr().err


def test_names_as_the_papers_spell_them() -> None:
    """SF-AdamW was not in the table, schedulefree_adamw was."""
    rows = benchmark.read_table(benchmark.TABLE, "60m")
    assert benchmark.choose(rows, "SF-AdamW,sophiag,adamw") == ["schedulefree_adamw", "sophia", "adamw"]
    with pytest.raises(UserError, match="Unknown optimizer 'adamz'"):
        benchmark.choose(rows, "adamz")
