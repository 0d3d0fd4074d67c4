"""The plan tool: the same Plan as --dry_run, and tables that add up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.metrics.counting import flops_per_token, param_counts
from lit_gpt.model import GPT
from lit_gpt.preflight.resolved_run import dry_run_text, resolve_run
from lit_gpt.tools import plan
from lit_gpt.utils.text import aligned

NAMED = "--train_model transformerls --depth 4 --train_name mup_tie"
LINE = [*NAMED.split(), "--base_hps.t0", "1e9", "--base_hps.warmup_tokens", "1e6"]


def cells(table: str) -> dict[str, list[str]]:
    """First cell -> the others."""
    rows = [line.split() for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows}


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_it_prints_what_a_dry_run_prints(capsys):
    assert plan.main(LINE) == 0
    printed = capsys.readouterr().out
    assert printed == dry_run_text(resolve_run(parse([*LINE, "--dry_run", "true"]), 1)) + "\n"
    assert "GiB per GPU" in printed


def test_ranks_divide_the_batch(capsys):
    sizes = ["--total_bsz", "65536", "--micro_bsz", "4", "--ctx_len", "1024"]
    assert plan.main([*LINE, *sizes, "--ranks", "16"]) == 0
    assert "steps of 65,536" in capsys.readouterr().out
    with pytest.raises(UserError, match="rounds to zero"):
        plan.main([*LINE, *sizes, "--ranks", "64"])
    with pytest.raises(UserError, match="--ranks is 0"):
        plan.main([*LINE, "--ranks", "0"])


@pytest.mark.parametrize("name", ["mup_tie", "mup", "mup_tie_bias_qknorm"])
def test_layers_add_up_to_the_model(name, capsys):
    line = [*LINE, "--train_name", name, "--layers", "true"]
    assert plan.main(line) == 0
    table = cells(capsys.readouterr().out.split("\n\n")[-1])
    with torch.device("meta"):
        model = GPT(resolve_run(parse(line[:-2]), 1).model)
    layers = [table[str(i)] for i in range(4)]
    tied = table["head"][0] == "tied"
    assert tied == ("tie" in name)
    parameters = [number(r[-2]) for r in [*layers, table["embedding"], table["norm"]]]
    parameters += [] if tied else [number(table["head"][0])]
    assert sum(parameters) == number(table["all"][0]) == param_counts(model)["total"]
    flops = sum(number(r[-1]) for r in [*layers, table["head"]])
    assert flops == number(table["all"][1]) == pytest.approx(flops_per_token(model, 4096) / 3, abs=1)
    assert [row[2] for row in layers] == ["128", "128", "128", "all"]


def test_archscales_formula_beside_the_exact_count(capsys):
    """Its count has no gains: 8 layers of 2 and the last norm, of width 1024 each (depth 8)."""
    line = "--train_model transformer --depth 8 --train_name plain --compare_analytic true"
    assert plan.main(line.split()) == 0
    row = next(r for r in capsys.readouterr().out.splitlines() if r.startswith("this model"))
    exact, analytic, _ = row.removeprefix("this model").split()
    assert number(exact) - number(analytic) == 17 * 1024


def test_what_hybrid_layers_read_and_lend(capsys):
    """A bare --layers, as the documentation types it, prints what the documentation shows."""
    assert plan.main(["--train_model", "sambay", "--depth", "8", "--train_name", "mup", "--layers"]) == 0
    table = capsys.readouterr().out.split("\n\n")[-1].strip()
    page = (Path(__file__).parents[2] / "docs/architectures.md").read_text()
    assert table == page.split("```text\n")[1].split("\n```")[0]
    rows = {line.split()[0]: re.split(" {2,}", line)[1:6] for line in table.splitlines()}
    assert rows["1"] == ["attention", "swiglu", "128", "-", "-"]
    assert rows["4"] == ["mamba", "swiglu", "-", "-", "memory (mixer)"]
    assert rows["5"] == ["attention", "swiglu", "all", "-", "K,V"]
    assert rows["6"] == ["gmu", "swiglu", "-", "memory of 4", "-"]
    assert rows["7"] == ["cross_attention", "swiglu", "all", "K,V of 5", "-"]


@pytest.mark.parametrize("family", ["fox", "sigmoid"])
def test_other_kinds_of_attention_see_all(family, capsys):
    assert plan.main(["--train_model", family, "--depth", "4", "--train_name", "x", "--layers"]) == 0
    table = cells(capsys.readouterr().out.split("\n\n")[-1])
    assert [table[str(i)][2] for i in range(4)] == ["all"] * 4


def test_layers_that_share_a_block_count_once(capsys):
    line = "--train_model transformer --depth 8 --train_name x --layers true --share_per_layer 2 --share_group 2"
    assert plan.main(line.split()) == 0
    table = cells(capsys.readouterr().out.split("\n\n")[-1])
    assert [table[str(i)][-2] for i in (2, 3, 6, 7)] == ["0", "1", "4", "5"]
    assert all(table[str(i)][-1] == table["0"][-1] for i in range(8)), "work is per layer"
    own = sum(number(table[str(i)][-2]) for i in (0, 1, 4, 5))
    assert own + sum(number(table[key][-2]) for key in ("embedding", "norm")) + number(table["head"][0]) == number(
        table["all"][0]
    )


def test_columns_line_up():
    assert aligned([("a", "12"), ("bcd", "3")], right=(1,), indent=1) == " a    12\n bcd   3"
