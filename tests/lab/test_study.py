"""A study's YAML becomes rows, and every mistake in it one sentence before anything starts."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from itertools import starmap
from pathlib import Path

import pytest
from script_module import script_module

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.lab.expressions import evaluate
from lit_gpt.lab.facts import CHINCHILLA, model_facts, tokens_of
from lit_gpt.lab.planning import plan_rows, plan_text
from lit_gpt.lab.rows import Row, read_pairs, word_of, words_of
from lit_gpt.lab.schedules import draw_schedules, rates_of
from lit_gpt.lab.scripts import array_script, shell_script
from lit_gpt.lab.speeds import FASTEST, IMPORTS, Speed, speed_of, speeds_for
from lit_gpt.lab.study import Study, read_study
from lit_gpt.preflight.resolved_run import resolve_run

TINY = "train_model: transformer, train_name: mup, ctx_len: 128, vocab_size: 512, ar: 16, base_hps: {d0: 2, b0: 4096}"


def study(tmp_path: Path, text: str, **extra: str) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(text if "base:" in text else f"base: {{{TINY}}}\n{text}")
    return read_study(path, extra)


def names(tmp_path: Path, text: str) -> list[str]:
    return [row.name for row in study(tmp_path, text).rows]


def test_axes_are_every_combination_and_zips_go_together(tmp_path: Path) -> None:
    text = "axes: {depth: [2, 4], base_hps.eta0: [1e-3, 2e-3]}\nzip: [{ar: [16, 32], micro_bsz: [4, 2]}]\nseeds: 2\n"
    rows = study(tmp_path, text + "name: d{depth}_w{ar}_lr{base_hps.eta0}_s{seed}").rows
    assert len(rows) == 16 and rows[0].name == "d2_w16_lr0.001_s0"
    assert {(row.options["ar"], row.options["micro_bsz"]) for row in rows} == {(16, 4), (32, 2)}
    assert rows[0].options["base_hps.d0"] == 2 and rows[0].options["base_hps.eta0"] == 0.001


def test_names_without_a_template_say_what_differs(tmp_path: Path) -> None:
    assert names(tmp_path, "axes: {depth: [2, 4], base_hps.eta0: [1e-3]}") == ["depth-2", "depth-4"]


def test_conditions_drop_rows_and_set_options_and_derived_options_follow(tmp_path: Path) -> None:
    text = """
axes: {depth: [2, 4], base_hps.eta0: [1e-3, 2e-3]}
budget: {tokens: [1M, 4M]}
conditions:
- drop: depth > 2 and eta0 > 1e-3
- {if: depth == 4, set: {micro_bsz: 8}}
derived:
  total_bsz: 128 * max(8, round(tokens / 128000))
  per_parameter: tokens / parameters
name: d{depth}_{base_hps.eta0}_{budget}_{per_parameter:.2f}
"""
    rows = study(tmp_path, text).rows
    assert len(rows) == 6
    assert {row.options.get("micro_bsz") for row in rows if row.options["depth"] == 4} == {8}
    assert {row.options["total_bsz"] for row in rows} == {1024, 128 * 31}
    assert all("per_parameter" not in row.options for row in rows)


def test_an_axis_may_be_a_value_that_derived_options_read(tmp_path: Path) -> None:
    rows = study(tmp_path, "axes: {times: [1, 2]}\nderived: {base_hps.eta0: times * 1e-3}\nname: x{times}").rows
    assert [(row.name, row.options["base_hps.eta0"]) for row in rows] == [("x1", 0.001), ("x2", 0.002)]
    assert "times" not in rows[0].options


def test_a_row_at_another_rate_has_its_name_and_what_follows_from_it(tmp_path: Path) -> None:
    """Also where the rate itself is derived."""
    text = "axes: {base_hps.eta0: [1e-3]}\nderived: {base_hps.weight_decay: 1e-4 / base_hps.eta0}\n"
    made = study(tmp_path, f"{text}name: lr{{base_hps.eta0}}").variants["lr0.001"]("base_hps.eta0", 0.002)
    assert made.name == "lr0.002" and made.options["base_hps.weight_decay"] == 0.05
    text = "axes: {times: [1]}\nderived: {base_hps.eta0: times * 1e-3}\nname: lr{base_hps.eta0}"
    made = study(tmp_path, text).variants["lr0.001"]("base_hps.eta0", 0.004)
    assert (made.name, made.options["base_hps.eta0"]) == ("lr0.004", 0.004)


def test_a_mapping_in_a_name(tmp_path: Path) -> None:
    """Folders had braces and quotes in their names."""
    text = (
        "axes: {mixer_options: [{attention: {gate: true}}, {mamba: {d_state: 4, d_conv: 2}}]}\nname: x_{mixer_options}"
    )
    assert [row.name for row in study(tmp_path, text).rows] == ["x_gate-true", "x_d_state-4_d_conv-2"]


def test_budgets_are_those_of_the_counted_model(tmp_path: Path) -> None:
    """Against the Plan's own counts; attention and head are in the FLOPs, embeddings are not in the parameters."""
    for kind, of_plan in (
        ("chinchilla", lambda plan: 0.5 * CHINCHILLA * plan.counts["non_embedding"]),
        ("flops", lambda plan: 1e12 / plan.model_flops_per_token),
    ):
        amount = 0.5 if kind == "chinchilla" else "1.0e+12"
        (planned,) = plan_rows(study(tmp_path, f"axes: {{depth: [4]}}\nbudget: {{{kind}: [{amount}]}}").rows)
        assert planned.tokens == round(of_plan(planned.resolved.plan))


def test_chinchilla_counts_the_experts_that_a_token_uses() -> None:
    options = {"train_model": "transformer_gqa4_h2_moe", "depth": 4, "sparsity": 4, "top_k": 2, "vocab_size": 512}
    facts = model_facts({**options, "train_name": "mup"})
    assert facts["parameters"] < facts["parameters_all"] / 2
    tokens = tokens_of("chinchilla", "2x", {**options, "train_name": "mup"})
    assert tokens == 2 * CHINCHILLA * facts["parameters"]


def test_isoflop_runs_of_a_budget_cost_the_same(tmp_path: Path) -> None:
    text = "isoflop: {flops: [1.0e+12, 4.0e+12], depth: [2, 4]}\nname: c{budget:.0e}_d{depth}"
    plans = plan_rows(study(tmp_path, text).rows)
    assert [p.row.name for p in plans] == ["c1e+12_d2", "c4e+12_d2", "c1e+12_d4", "c4e+12_d4"]
    for p, expected in zip(plans, [1e12, 4e12] * 2):
        assert p.flops == pytest.approx(expected, rel=1e-3)


def test_a_trunk_serves_all_budgets_with_one_batch_and_warmup(tmp_path: Path) -> None:
    """The constant parts and the decays are whole steps, each begins where the one before ends, and what is trained in
    all is the trunk and the decays.
    """
    text = "trunk: {tokens: [1M, 2M, 4M], decay_fraction: 0.25}\naxes: {depth: [2]}\nname: a"
    rows = study(tmp_path, text).rows
    assert [(row.name, row.after) for row in rows] == [
        ("a_trunk1", None),
        ("a_b1", "a_trunk1"),
        ("a_trunk2", "a_trunk1"),
        ("a_b2", "a_trunk2"),
        ("a_trunk3", "a_trunk2"),
        ("a_b3", "a_trunk3"),
    ]
    plans = plan_rows(rows)
    (batch,) = {p.resolved.plan.batch_tokens for p in plans}
    assert len({p.resolved.plan.schedule.warmup_tokens for p in plans}) == 1
    assert all(p.tokens % batch == 0 and p.row.start % batch == 0 for p in plans)
    ends = {row.name: row.tokens for row in rows}
    assert all(row.start == ends[row.after] for row in rows if row.after)
    assert [abs(ends[f"a_b{i}"] - 1e6 * 2 ** (i - 1)) <= batch for i in (1, 2, 3)] == [True] * 3
    assert sum(p.tokens for p in plans) == pytest.approx(3e6 + 0.25 * 7e6, abs=6 * batch)
    tokens, rates = rates_of(plans[1])
    assert tokens[0] == rows[1].start and rates[-1] < 0.05 * rates[0]


MISTAKES = [
    ("axes: {dpeth: [2]}", "depth"),
    ("axis: {depth: [2]}", "axes"),
    ("axes: {depth: []}", "no values"),
    ("axes: {depth: [2, 4]}\nname: same", "twice: same"),
    ("axes: {depth: [2]}\nname: a/b", "usable as a folder"),
    ("axes: {depth: [2]}\nname: '{dept}'", "Did you mean"),
    ("axes: {out_dir: [a]}", "sets itself"),
    ("budget: {steps: [1]}", "chinchilla"),
    ("budget: {tokens: [-1]}", "above 0"),
    ("budget: {tokens: [1M]}\ntrunk: {tokens: [1M]}", "both"),
    ("trunk: {tokens: [2M, 1M]}", "rise"),
    ("zip: [{depth: [2, 4], ar: [16]}]", "equally long"),
    ("conditions: [{drop: depth >}]", "expression"),
    ("conditions: [{remove: true}]", "drop: EXPRESSION"),
    ("derived: {micro_bsz: 2 * total_bsz, total_bsz: 2 * micro_bsz}", "need each other"),
    ("derived: {micro_bsz: __import__('os')}", "not allowed"),
    ("refine: {factor: 0.5}", "factor"),
    ("axes: {depth: [14]}\nbudget: {chinchilla: 1}", "depth 14"),
    (f"axes: {{seed: {list(range(101))}, micro_bsz: {list(range(1, 101))}}}", "10,100"),
    ("base: [1]", "lines such as"),
    ("base: {dpeth: 2}", "base has 'dpeth'"),
    ("base: {dry_run: true}", "sets itself"),
    ("budget: {flops: [.inf]}", "finite"),
    ("base: {max_tokens: 1M}\nbudget: {tokens: [1M]}", "max_tokens and a budget"),
    ("seeds: 0", "a count from 1"),
    ("seeds: 1000000000000", "at most|a count"),
    ("axes: {depth: [2]}\nzip: [{depth: [4]}]", "given twice"),
    ("derived: {total_bzs: 4 * depth}", "total_bsz"),
    ("conditions: [{drop: }]", "must be"),
    ("conditions: [{if: depth > 0, set: {dpeth: 1}}]", "set has"),
    ("refine: {rate: base_hps.eta}", "found none"),
    ("axes: {train_model: [transformer]}\nrefine: {rate: train_model}", "numbers above 0"),
    ("trunk: {tokens: [1M, 1000001]}", "batch"),
    ("trunk: {tokens: [1M], decay_fraction: a}", "decay_fraction"),
]


def test_a_trunk_keeps_the_checkpoints_that_its_forks_need(tmp_path: Path) -> None:
    """Those of the forks go with --keep_last 0."""
    text = "trunk: {tokens: [1M, 2M]}\naxes: {depth: [2]}\nname: a"
    rows = study(tmp_path, text, keep_last="0").rows
    assert {row.name: row.options["keep_last"] for row in rows if row.part == "trunk"} == {"a_trunk1": 1, "a_trunk2": 1}
    plans = plan_rows(rows)
    assert [p.disk == 0 for p in plans] == [row.part == "fork" for row in rows]
    (tmp_path / "recipe.yaml").write_text("keep_last: 0\n")
    with pytest.raises(UserError, match="a_trunk1, a_trunk2: other runs go on from it, and --keep_last 0"):
        plan_rows(study(tmp_path, text, config=str(tmp_path / "recipe.yaml")).rows)


@pytest.mark.parametrize(("text", "says"), MISTAKES, ids=[says for _, says in MISTAKES])
def test_mistakes_are_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        study(tmp_path, text)


def test_options_of_the_command_line_that_would_change_nothing_are_refused(tmp_path: Path) -> None:
    for extra, says in {"depth": "change nothing", "max_tokens": "and a budget", "dpeth": "no option"}.items():
        with pytest.raises(UserError, match=says):
            study(tmp_path, "axes: {depth: [2]}\nbudget: {tokens: [1M]}", **{extra: "4"})


def test_what_is_wrong_with_any_row_is_said_at_once(tmp_path: Path) -> None:
    rows = study(tmp_path, "axes: {depth: [2, 4], optimizer: [adamw, amuon]}\nbudget: {tokens: [1M]}").rows
    with pytest.raises(UserError, match="2 of 4 runs cannot start") as error:
        plan_rows(rows)
    assert "amuon" in str(error.value)


def test_the_plan_says_what_a_study_costs(tmp_path: Path) -> None:
    rows = study(tmp_path, "axes: {depth: [2, 4]}\nbudget: {tokens: [1M]}").rows
    plans = plan_rows(rows)
    text = plan_text(plans, tmp_path, [Speed(1e9, "as measured")], ["depth"])
    assert f"{sum(p.flops for p in plans):.4g} FLOPs" in text and "(as measured)" in text
    assert f"{sum(p.flops for p in plans) / 1e9 / 3600:.3g} GPU hours" in text
    figure = draw_schedules(plans, tmp_path / "rates.png")
    assert figure.stat().st_size > 1000
    row = Row(
        "moe", {"train_model": "transformer_gqa4_h2_moe", "depth": 4, "sparsity": 4, "top_k": 2, "train_name": "mup"}
    )
    assert f" {int(model_facts(row.options)['parameters']):,} " in plan_text(plan_rows([row]), tmp_path, [], [])


def test_the_plan_says_that_there_is_no_data_whose_vocabulary_it_could_count(tmp_path: Path) -> None:
    """The plan of `make study` before `make demo` had five times the FLOPs of its runs, and said nothing."""
    rows = study(tmp_path, "base: {train_data_dir: data/none}\naxes: {depth: [2, 4]}\nbudget: {tokens: [1M]}").rows
    last = plan_text(plan_rows(rows), tmp_path, [], ["depth"]).splitlines()[-1]
    assert last.endswith("FLOPs and memory depend, is the family's. The folder data/none is not there.")


@pytest.mark.parametrize("words", ["--per_run 0", "--tries -1", "--minutes nan", "--plot a.xyz"])
def test_numbers_with_which_nothing_runs_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    ladder = script_module("launch_scripts/ladder.py")
    assert exit_code(ladder.main, ["no_study.yaml", "plan", *words.split()]) == 2
    assert words.split()[0] in capsys.readouterr().err


def test_a_speed_is_above_0(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="above 0"):
        speeds_for("-5", [], tmp_path, False)


def test_the_nearest_measured_speed_is_taken() -> None:
    speeds = [Speed(1.0, "", "a", 1e6), Speed(2.0, "", "a", 1e9), Speed(3.0, "", "b", 1e6)]
    asked = [("a", 2e6), ("a", 1e10), ("c", 2e9)]
    assert [speed and speed.flops_per_sec for speed in starmap(partial(speed_of, speeds), asked)] == [1.0, 2.0, 2.0]
    assert speed_of([], "a", 1.0) is None
    with pytest.raises(UserError, match="--speed"):
        speeds_for("fast", [], Path(), False)


def test_small_models_reach_fewer_flops_and_no_run_is_faster_than_any_that_was_seen(tmp_path: Path) -> None:
    """A transformer of width 512 had the 49% of width 1,024, and one of width 192 eighteen million tokens a second."""
    known = speeds_for(None, [], tmp_path, on_cpu=False)
    large, small = (speed_of(known, "transformer", flops) for flops in (1.1e9, 2.8e8))
    assert large is not None and small is not None and 0.3 < small.flops_per_sec / large.flops_per_sec < 0.8
    assert small.seconds(1e6, 2.0e7) == pytest.approx(small.start + 1e6 / FASTEST) and small.start > 5
    hybrid = speed_of(known, "gdny", 2.8e8)
    assert hybrid is not None and hybrid.flops_per_sec <= small.flops_per_sec and hybrid.start > small.start
    (typed,) = speeds_for("1e12", [], tmp_path, on_cpu=False)
    assert typed.seconds(1e6, 1e5) == typed.start + 0.1, "who types a speed is believed"


def test_a_finished_run_of_the_study_says_how_long_its_equal_takes(tmp_path: Path) -> None:
    run = tmp_path / "a/run"
    run.mkdir(parents=True)
    facts = {"finished": True, "family": "t", "model_flops_per_token": 1e6, "tokens": 4e6, "time/total": 60.0}
    rates = {"throughput/tokens_per_sec": 2e5, "throughput/device/flops_per_sec": 1e11}
    (run / "summary.json").write_text(json.dumps({**facts, **rates}))
    (speed,) = speeds_for(None, [Row("a"), Row("b")], tmp_path, on_cpu=False)
    assert speed.seconds(4e6, 1e6, 2) == pytest.approx(2 * (60 - 20 + IMPORTS) + 40), "on two GPUs, half of it each"


def test_scripts_have_the_command_of_every_run(tmp_path: Path) -> None:
    plans = plan_rows(study(tmp_path, "trunk: {tokens: [1M]}\naxes: {depth: [2]}\nname: a").rows)
    script = shell_script(plans, 2, Path("out/a"))
    fork = f"--fork_from out/a/a_trunk1/{plans[0].resolved.folder.name} "
    assert (
        script.count("python lit_gpt/utils/torchrun.py --standalone --nproc_per_node 2 pretrain.py") == 2
        and fork in script
    )
    (tmp_path / "python").write_text('#!/bin/sh\ncase "$*" in *"out_dir out/a/a_trunk1 "*) exit $CODE;; esac\n')
    (tmp_path / "python").chmod(0o755)
    for code, says in {"3": (1, "failed: a_trunk1\n"), "75": (75, "")}.items():
        variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CODE": code}
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == says
    array = array_script(["a", "b"], ["study.yaml", "--output", "out/x"], 4, 240)
    assert "--array=0-1" in array and "--gpus-per-node=4" in array and "--time=240" in array


@pytest.mark.parametrize("value", [True, None, 3, 1e-5, "10B", ["a", "b"], {"a": 1}])
def test_values_are_typed_as_pretrain_reads_them(value: object) -> None:
    words = words_of({"x": value, "config": "f.yaml"})
    assert words[:3] == ["--config", "f.yaml", "--x"]
    assert read_pairs(words) == {"config": "f.yaml", "x": word_of(value)}


def test_options_after_the_dashes() -> None:
    assert read_pairs(["--a", "1", "--b=2", "--c", "--d"]) == {"a": "1", "b": "2", "c": "true", "d": "true"}
    with pytest.raises(UserError, match="belongs to no option"):
        read_pairs(["loose"])


def test_what_follows_from_an_option_without_a_value_is_no_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="total_bsz: 'data_seed \\* 2' has no value"):
        study(tmp_path, "axes: {depth: [2, 4]}\nderived: {total_bsz: data_seed * 2}")
    assert len(names(tmp_path, "axes: {depth: [2, 4]}\nconditions: [{drop: data_seed > 1 or depth == 4}]")) == 1


def value_of(name: str) -> object:
    return {"a": 3, "base_hps.eta0": 0.1, "kind": "moe"}[name]


EXPRESSIONS = {
    "a * 2 + 1": 7,
    "2 ** round(log2(a * 4096))": 16384,
    "kind == 'moe' and a > 2": True,
    "a in [1, 3] or base_hps.eta0 > 1": True,
    "1 if a > 5 else base_hps.eta0": 0.1,
    "1 < a < 3": False,
    "-a // 2 % 3": 1,
    "not a": False,
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_expressions_mean_what_python_means(text: str) -> None:
    assert evaluate(text, value_of) == EXPRESSIONS[text]
    python = eval(text.replace("base_hps.eta0", "0.1"), {"a": 3, "kind": "moe", "log2": __import__("math").log2})
    assert evaluate(text, value_of) == python


REFUSED = ["().__class__", "__import__('os')", "'x' * 10**9", "10**10**10", "a.b.c()", "1/0", "a +", "[x for x in a]"]
REFUSED += ["f''", "lambda: 1", "(a := 1)", "a[0]", "open('x')", "2 ** 'x'"]


@pytest.mark.parametrize("text", REFUSED)
def test_expressions_can_do_nothing_else(text: str) -> None:
    with pytest.raises((UserError, KeyError)):
        evaluate(text, value_of)


def test_a_row_is_planned_as_pretrain_would(tmp_path: Path) -> None:
    from lit_gpt.config.cli import parse

    (row,) = study(tmp_path, "axes: {depth: [4]}\nbudget: {tokens: [1M]}").rows
    (planned,) = plan_rows([row])
    typed = parse([*words_of(row.options), "--dry_run", "true"])
    assert planned.resolved.plan == resolve_run(typed, 1).plan
    assert isinstance(row, Row)
