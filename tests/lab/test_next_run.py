"""The run to train next: of the size that the law asks for, with tokens that spend the budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from lab_runs import make_run

from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.lab.fit_report import Report, judge
from lit_gpt.lab.fit_runs import finished_runs, sample
from lit_gpt.lab.next_run import write_next
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.laws import law_named
from lit_gpt.scaling.laws.chinchilla import Chinchilla

TRUTH = Chinchilla(50.0, 300.0, 1.7, 0.3, 0.35)  # of tiny models, so that budgets of this test are spent on some
OPTIONS = ("--ar=32", "--ctx_len=64", "--vocab_size=257", "--train_name=mup", "--base_hps.d0=4", "--dry_run=true")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of three depths and three budgets, with the Plans that they would have and losses of a known law."""
    folder = tmp_path_factory.mktemp("study")
    for depth in (2, 4, 6):
        for tokens in (1e6, 4e6, 16e6):
            run = resolve_run(parse([*OPTIONS, f"--depth={depth}", f"--max_tokens={tokens}"]), 1)
            size, plan = run.plan.counts["non_embedding"], run.plan.to_dict()
            summary = {"finished": True, "tokens": run.plan.tokens, "step": run.plan.steps}
            summary["metric/val_loss@1x"] = float(TRUTH(size, run.plan.tokens))
            options = dataclasses.asdict(run.run)
            made = make_run(folder / f"d{depth}_{tokens:g}", plan=plan, summary=summary, **options)
            (made / "model.json").write_text('{"n_embd": 64, "vocab_size": 257}')
    return folder


def fitted(study: Path, name: str, where: str | None = None) -> Report:
    law = law_named(name)
    reads = dict(law.reads)
    runs, _ = finished_runs([study], where, list(reads.values()), False)
    return judge(name, law, sample(law, runs, reads), {}, 0.001, 50, 0.9)


def test_the_next_run(study: Path, tmp_path: Path) -> None:
    budget, path = 1e15, tmp_path / "next.yaml"
    resolved, guess = write_next(fitted(study, "chinchilla"), budget, path)
    best, _ = TRUTH.optimum(budget)
    size = resolved.plan.counts["non_embedding"]
    assert guess.place["N"] == pytest.approx(best, rel=0.05)
    assert size == pytest.approx(best, rel=0.12), "the nearest of the models that there are"
    assert 6 * size * resolved.plan.tokens == pytest.approx(budget, rel=0.02)
    assert resolved.run.base_hps.d0 == 4 and resolved.run.ctx_len == 64 and resolved.model.vocab_size == 257
    text = path.read_text()
    assert f"pretrain.py --config {path}" in text and "# alpha = 0.3" in text and "total_bsz" not in text
    again = resolve_run(parse([f"--config={path}", "--dry_run=true"]), 1)
    assert again.plan == resolved.plan


def test_what_has_no_next_run(study: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not say how to share a budget"):
        write_next(fitted(study, "power"), 1e15, tmp_path / "next.yaml")
    report = fitted(study, "chinchilla")
    table = dataclasses.replace(
        report,
        sample=dataclasses.replace(
            report.sample, runs=[dataclasses.replace(r, folder=None) for r in report.sample.runs]
        ),
    )
    with pytest.raises(UserError, match="give run folders, not a CSV file"):
        write_next(table, 1e15, tmp_path / "next.yaml")
    with pytest.raises(UserError, match="no positive number"):
        write_next(report, -1.0, tmp_path / "next.yaml")
    assert not (tmp_path / "next.yaml").exists()


def test_a_budget_for_about_the_smallest_model(study: Path, tmp_path: Path) -> None:
    """Widths are tried at depths beside the best one, and depth 0 is none."""
    report = fitted(study, "chinchilla")
    found = [write_next(report, budget, tmp_path / "next.yaml")[0] for budget in (5e9, 2e11)]
    assert [run.plan.depth for run in found] == [1, 1] and found[0].model.n_embd != found[1].model.n_embd
