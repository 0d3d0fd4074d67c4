"""The optimizer benchmark: its table, plans and reports, and a run that is interrupted, continued and reported."""

from __future__ import annotations

import csv
import os
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from script_module import script_module
from tiny_run import make_corpus

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.lab.planning import GIB, plan_rows
from lit_gpt.optim import OPTIMIZERS

ROOT = Path(__file__).parents[2]
benchmark = script_module("launch_scripts/optimizer_benchmark.py")
scales = script_module("launch_scripts/optimizer_scales.py")
runs = script_module("launch_scripts/optimizer_options.py")

TINY = "--ar 8 --depth 2 --ctx_len 32 --micro_bsz 4 --total_bsz 256 --eval_sequences 8 --base_hps.d0 2 --num_workers 0"


# pretrain.py that draws no figure of its losses, which takes a second of a run of four; test_curve.py draws it.
DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import pretrain
from lit_gpt.train import reporter

reporter.draw_loss_curve = lambda *_: None
pretrain.command(sys.argv[1:])
"""


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without figures."""
    (tmp_path / "driver.py").write_text(DRIVER)
    monkeypatch.setattr(benchmark, "Settings", partial(benchmark.Settings, program=tmp_path / "driver.py"))


def words(data: Path, out: Path, optimizers: str, *more: str, tokens: int = 2048) -> list[str]:
    given = f"--scale 60m --optimizers {optimizers} --train_data_dir {data} --val_data_dir {data} --output {out}"
    return [*given.split(), "--max_tokens", str(tokens), "--", *TINY.split(), "--eval_step", "4", *more]


def test_every_optimizer_has_one_row_at_every_scale() -> None:
    for scale in scales.SCALES.values():
        assert sorted(runs.read_table(scales.TABLE, scale)) == OPTIMIZERS.names()
    with scales.TABLE.open(newline="") as file:
        pairs = [(row["optimizer"], scale) for row in csv.DictReader(file) for scale in row["sizes"].split()]
    assert len(pairs) == len(set(pairs))


@pytest.mark.slow
def test_runs_go_on_and_are_reported(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, quick: None) -> None:
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
    drawn = []
    monkeypatch.setattr(benchmark.subprocess, "run", lambda line, **_: drawn.append(line[1]))
    assert benchmark.main(words(data, out, "adamw,schedulefree_adamw")) == 0
    assert drawn == [str(ROOT / "plots/plot_optimizers.py")]
    assert "step" not in capsys.readouterr().err, "nothing is trained again"


def test_a_run_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: None)  # the figure, which the test before draws
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
    assert exit_code(benchmark.main, words(tmp_path, tmp_path, "adamw", "--seed", "2")) == 2
    assert "every run has its own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--scale , --optimizers adamw", "--scale names no model. Give 60m, "),
        ("--scale 60m --optimizers ,", "--optimizers names none."),
        ("--scale 60m --optimizers adamw --micro_bsz 0", "--micro_bsz is 0; it must be at least 1"),
        ("--scale 60m --optimizers adamw --seeds 0", "--seeds is 0"),
        ("--scale 60m --optimizers adamw --max_tokens 1X", "no count of tokens; give one such as 1e9, 1B or 500M"),
        ("--scale 60m --optimizers adamw --max_tokens 0", "'0' is no count of tokens"),
        ("--scale 60m --optimizers adamw --max_tokens nan", "'nan' is no count of tokens"),
        ("--scale 60m --optimizers adamw --gpus 0,1,2 --per_run 2", "cannot be divided into places"),
        ("--scale 60m --optimizers adamw -- --optimizer muon", "Leave --optimizer out: every run has its own."),
        ("--scale 60m --optimizers adamw -- --out_dir=x", "--output before the -- is the folder of all."),
        ("--scale 60m --optimizers adamw -- --dry_run true", "--plan before the -- says what would run"),
    ],
)
def test_what_nobody_can_run_is_said_in_a_sentence(more: str, said: str, capsys: Any) -> None:
    """Some were tracebacks, some ran something else: another optimizer under the name of the one that was asked for."""
    code = exit_code(benchmark.main, ["--train_data_dir", "d", "--val_data_dir", "d", "--plan", *more.split()])
    assert code == 2 and said in capsys.readouterr().err


def test_a_table_that_is_none_is_said(tmp_path: Path) -> None:
    path, scale = tmp_path / "table.csv", scales.SCALES["60m"]
    head = "optimizer,sizes,eta0,weight_lr_scale,beta1,beta2,eps,muon_beta,args,source,warmup_steps,options\n"
    cells = "adamw,60m,1e-3,1,0.9,0.99,1e-8,0.95,,x,"
    path.write_text("optimizer,rate\nadamw,1\n")
    with pytest.raises(UserError, match="lacks the column sizes, eta0"):
        runs.read_table(path, scale)
    for cell, said in (("soon,", "warmup_steps of adamw in the table is 'soon'"), (",{grad", "must be a JSON object")):
        path.write_text(f"{head}{cells}{cell}\n")
        with pytest.raises(UserError, match=said):
            runs.options_of(runs.read_table(path, scale)["adamw"], scale, 0)


def test_names_as_the_papers_spell_them() -> None:
    """SF-AdamW was not in the table, schedulefree_adamw was."""
    rows = runs.read_table(scales.TABLE, scales.SCALES["60m"])
    assert runs.choose(rows, "SF-AdamW,sophiag,adamw,AdamW") == ["schedulefree_adamw", "sophia", "adamw"]
    with pytest.raises(UserError, match="Unknown optimizer 'adamz'"):
        runs.choose(rows, "adamz")


def asked(scale: str, optimizers: str, *more: str) -> list[str]:
    return f"--scale {scale} --optimizers {optimizers} --train_data_dir d --val_data_dir d {' '.join(more)}".split()


@pytest.mark.parametrize(("scale", "gpus"), list(zip(scales.SCALES, cycle([1, 8]))))
def test_every_model_of_both_papers_can_be_planned(scale: str, gpus: int) -> None:
    """The batch is the published one on any number of GPUs, and 128 GiB, less than an H200 has, suffice."""
    given = benchmark.parser().parse_args(asked(scale, "adamw", "--per_run", str(gpus)))
    (planned,) = benchmark.plan_rows(benchmark.rows_of(scale, given), gpus)
    plan, of = planned.resolved.plan, scales.SCALES[scale]
    assert (plan.batch_tokens, plan.steps, plan.family) == (of.batch, of.steps, of.family)
    assert 1 < planned.memory / 2**30 < 128


def test_a_plan_says_what_runs_cost_and_starts_nothing(tmp_path: Path, capsys: Any) -> None:
    words = asked("520m_moe,gla_340m", "adamw", "--seeds", "2", "--plan", "--output", str(tmp_path / "out"))
    assert benchmark.main([*words, "--", "--ctx_len", "4096", "--doc_len", "0"]) == 0
    told = capsys.readouterr().out
    assert told.count("GPU hours are left") == 2 and "adamw_seed3408" in told and not (tmp_path / "out").exists()
    assert exit_code(benchmark.main, asked("60n", "adamw")) == 2
    assert "Did you mean '60m'" in capsys.readouterr().err


def test_the_page_has_the_memory_of_plans() -> None:
    """The estimate was refined, and the page kept numbers of an earlier one, 1.7 and 1.9 GiB larger. It rounds up."""
    page = (ROOT / "docs/optimizer_benchmarks.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| `60m`, `130m`"))
    least, _, most = line.split(" | ")[-1].split(",")[0].partition(" to ")
    words = ["--scale", "60m", "--optimizers", "adamw,soap", "--train_data_dir", "none", "--val_data_dir", "none"]
    plans = plan_rows(benchmark.rows_of("60m", benchmark.read(words)[0]))
    assert [p.memory / GIB for p in plans] == pytest.approx([int(least), int(most)], abs=1.2)


def test_several_runs_at_a_time_and_several_gpus_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert benchmark.places("0,1,2,3", 2) == (("0", "1"), ("2", "3"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert benchmark.places("", 2) == (("cpu", "cpu"),)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert benchmark.places("", 1) == (("0",), ("1",), ("2",), ("3",))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert benchmark.places("", 2) == (("5", "7"),)


def finished(optimizer: str, scale: str, seed: int, loss: float | None, state: str = "finished") -> dict[str, Any]:
    values = [optimizer, scale, seed, loss, benchmark.perplexity(loss), loss, 100, 1000.0, 1.0, state]
    return dict(zip(benchmark.COLUMNS, values, strict=True))


def test_tables_have_perplexities_and_their_spread_over_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(2) and exp(2.2) are 7.389 and 9.025: mean 8.207, deviation 1.157. Unfinished runs do not count."""
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *_, **__: None)
    runs = [finished("adamw", "60m", 1, 2.0), finished("adamw", "60m", 2, 2.2), finished("muon", "60m", 1, 1.5)]
    runs += [finished("muon", "60m", 2, 9.0, "at step 3"), finished("sgd", "60m", 1, None, "not run")]
    table = {name: {"eta0": "0.1", "source": "x"} for name in ("adamw", "muon", "sgd")}
    benchmark.report(runs, table, tmp_path, "60m")
    assert (tmp_path / "60m.md").read_text().splitlines()[2:] == [
        "| `muon` | 1.5000 | 4.48 | 1 | 0.1 | 1,000 | x | at step 3 |",
        "| `adamw` | 2.1000 +- 0.1414 | 8.21 +- 1.16 | 2 | 0.1 | 1,000 | x |  |",
        "| `sgd` | - | - | 0 | 0.1 | - | x | not run |",
    ]
    table["lion"] = table["adamw"]
    paired = [finished("lion", "60m", seed, 2.0 + seed + gap) for seed, gap in ((1, 0.31), (2, 0.29))]
    paired += [finished("adamw", "60m", seed, 2.0 + seed) for seed in (1, 2)]
    benchmark.report(paired, table, tmp_path, "60m")
    rows = [line.split(" | ")[:3] for line in (tmp_path / "60m.md").read_text().splitlines()]
    assert rows[0][2] == "above the best" and rows[2][2] == "-" and rows[3][:2] == ["| `lion`", "3.8000 +- 0.6930"]
    low, high = stats.ttest_rel([3.31, 4.29], [3.0, 4.0]).confidence_interval(0.95)
    assert rows[3][2] == f"0.3000 +- {(high - low) / 2:.4f}", "what a seed does to both is no noise"
    benchmark.report(runs, table, tmp_path, "60m")
    with (tmp_path / "60m.csv").open(newline="") as file:
        assert [(row["optimizer"], row["seed"]) for row in csv.DictReader(file)][:2] == [("muon", "1"), ("muon", "2")]
    other = [finished("sgd", "130m", 1, 3.0)]
    assert benchmark.side_by_side({"60m": runs, "130m": other}).splitlines() == [
        "| perplexity | 60m | 130m |",
        "|---|---:|---:|",
        "| `muon` | 4.48 | - |",
        "| `adamw` | 8.21 +- 1.16 | - |",
        "| `sgd` | - | 20.09 |",
    ]
    assert benchmark.perplexity(1e4) == float("inf")
