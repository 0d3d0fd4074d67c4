"""docs/departures.md against ArchScale's formulas, and the formulas against ArchScale's published numbers."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from pytest import approx
from script_module import script_module
from test_budget import DEPTHS, TABLE

from lit_gpt.preflight.meta_model import count, meta_model
from lit_gpt.preflight.model_options import model_config
from lit_gpt.scaling.rules import mupp

departures = script_module("benchmarks/departures.py")
archscale = script_module("benchmarks/archscale.py")
Case, formula, plan, ALL = archscale.Case, archscale.formula, archscale.plan, archscale.ALL


def test_every_difference_of_a_plan_has_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    """The list was without numbers and its sizes, and nothing compared it with the code."""
    assert departures.check() == []
    assert f"{len(list(departures.cases()))} Plans compared" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["transformer", "sambay"])
def test_the_formulas_are_archscales(family: str) -> None:
    for row, name in zip(TABLE[family], ("scaling_mup", "v2scale_mup"), strict=True):
        for millions, depth in zip(row, DEPTHS, strict=True):
            assert formula(Case(name, family, depth), depth) / 1e6 == approx(millions, abs=0.06)
    sizes = [formula(Case("v2scale_mup", "transformer_gqa4_h2_moe", depth), depth) for depth in (8, 24)]
    assert sizes[0] == 208_142_336, "12 n^2 d + 2 n V + attention, with embeddings"
    hyperp = plan(Case("v2scale_mup_muonh", "transformer_gqa4_h2_moe", 24, hps={"t0": 10.4e9, "eta0": 0.016}))
    assert hyperp["tokens"] / 1e9 == approx(194.666, abs=5.01e-4)
    assert hyperp["rate of matrices"] == approx(0.016 * 3**-0.5 * (194.666 / 10.4) ** -0.32, rel=1e-5)


def test_a_difference_without_a_number_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case, right = Case("scaling_mup", "transformer", 16), mupp.transfer
    assert departures.explanations(case) == (
        {"steps": (34, 42), "tokens": (34,), "parameters": (34,), "base parameters": (34,)},
        [],
    )

    def wrong(situation):
        transfer = right(situation)
        return replace(transfer, multipliers=replace(transfer.multipliers, residual=0.5))

    monkeypatch.setattr(mupp, "transfer", wrong)
    (problem,) = departures.explanations(case)[1]
    assert re.fullmatch(r"branches times: ArchScale 0.17677\d+, with the departures 0.17677\d+, here 0.5", problem)


def test_the_page_is_what_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """A number that is gone or twice, a size that is wrong, a departure that is no longer one."""
    page = departures.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(departures, "cases", lambda: iter([Case("scaling_mup", "transformer", 16)]))
    monkeypatch.setattr(departures, "PAGE", tmp_path / "departures.md")
    departures.PAGE.write_text(page.replace("260.8e9", "261.8e9"), encoding="utf-8")
    problems = departures.check()
    assert "| 187.1e9 | 260.8e9 |" in problems[0]
    assert {f"D{n} changes no field of any Plan" for n in ALL - {34, 42}} <= set(problems)
    with pytest.raises(AssertionError, match=r"numbers of departures\.md"):
        departures.numbered(page.replace("**D17**", "**D18**"))


def test_every_number_that_is_cited_exists() -> None:
    numbers = departures.numbered(departures.PAGE.read_text(encoding="utf-8"))
    root = departures.PAGE.parents[1]
    files = [*(root / "lit_gpt").rglob("*.py"), *(root / "docs").glob("*.md")]
    cited = {(f.name, int(n)) for f in files for n in re.findall(r"\bD(\d+)\b", f.read_text(encoding="utf-8"))}
    assert len(cited) > len(numbers), "the page itself, and files that cite it"
    assert not [(name, n) for name, n in cited if n not in numbers]


@pytest.mark.parametrize("family", [*departures.FAMILIES, "transformer_gqa4_moe"])
def test_the_count_by_hand_is_the_models(family: str) -> None:
    case = Case("v2scale_mup_tie_ga_qknorm", family, 12 if "gqa4" in family else 8, sparsity=4, top_k=2)
    run = departures.run_of(case)
    counted = count(meta_model(model_config(run, case.depth, None)))
    found = counted.budget_parameters(run.param_count, run.count_embeddings)
    assert plan(case, ALL)["parameters"] == found
