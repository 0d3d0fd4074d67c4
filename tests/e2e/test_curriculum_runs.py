"""Runs under a curriculum: stopped anywhere they are the run that was not, and what differs is refused and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from spawn import run_distributed
from test_resume import assert_same_run, newest
from tiny_run import make_corpus, pretrain, rows, run, words

from lit_gpt.checkpoint import read_meta
from lit_gpt.config.cli import parse
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.train.build import open_training, open_validation
from lit_gpt.train.identity import identity, known_as
from lit_gpt.train.stopping import EXIT_INTERRUPTED

# Batches of 4 sequences of 64 tokens; phases change inside the third one, at the end of the sixth, and never again.
PHASES = [
    {"until": 700, "weights": {"web/data": 1}},
    {"until": "1.5k", "weights": {"web/data": 1, "code/data": 2}},
    {"until": "1M", "weights": {"code/data": 1}},
    {"weights": {"web/data": 1}},
]
STEPS = 10
OPTIONS: dict[str, Any] = {"max_tokens": STEPS * 256, "total_bsz": 256, "micro_bsz": 2}
EPOCHS = ("data/epoch/web/data", "data/epoch/code/data")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """Two prepared sets, and a curriculum of them."""
    root = tmp_path_factory.mktemp("sources")
    make_corpus(root / "web", 8)
    make_corpus(root / "code", 2)
    (root / "phases.json").write_text(json.dumps(PHASES))
    return root


def assert_same(out: Path, expected: Path) -> None:
    assert_same_run(out, expected)
    for key in EPOCHS:
        assert rows(out, key) == rows(expected, key) and len(rows(out, key)) == STEPS


def test_stopped_inside_phases_and_continued(sources, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    options = {"data_mixture": sources / "phases.json", **OPTIONS}
    assert run(sources, whole, **options) == 0
    for steps in (2, 1, 2, 2):  # after 512, 768, 1280 and 1792 tokens
        assert run(sources, parts, resume="auto", stop_after=steps, **options) == EXIT_INTERRUPTED
    assert run(sources, parts, resume="auto", **options) == 0
    assert_same(parts, whole)
    web, code = (rows(whole, key) for key in EPOCHS)
    assert code[2] == 0.0 < code[4] and web[6] == web[STEPS]
    seen = {name: source["windows"] for name, source in read_meta(newest(parts))["data"]["sources"].items()}
    assert sum(seen.values()) == 4 * STEPS and seen["web/data"] - 11 in (4, 5), "a third of the 13 of the second phase"


def test_on_two_processes(sources, tmp_path):
    alone, whole, parts = tmp_path / "alone", tmp_path / "whole", tmp_path / "parts"
    options = {"data_mixture": sources / "phases.json", **OPTIONS}
    assert run(sources, alone, **options) == 0
    assert run_distributed(pretrain.main, 2, words(sources, whole, **options)) == [0, 0]
    stopped = words(sources, parts, stop_after=3, **options)
    assert run_distributed(pretrain.main, 2, stopped) == [EXIT_INTERRUPTED] * 2
    assert run_distributed(pretrain.main, 2, words(sources, parts, resume="auto", **options)) == [0, 0]
    assert_same(parts, whole)
    for key in EPOCHS:
        assert rows(parts, key) == rows(alone, key)
    assert rows(parts) == pytest.approx(rows(alone), rel=1e-5)  # sums over ranks in another order


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.partition("error: ")[2]


def test_another_curriculum_is_another_run(sources, tmp_path, capsys):
    given, out = tmp_path / "given.json", tmp_path / "out"
    given.write_text(json.dumps(PHASES))
    options = {"data_mixture": given, **OPTIONS}
    assert run(sources, out, stop_after=1, **options) == EXIT_INTERRUPTED
    given.write_text(json.dumps([{**PHASES[0], "until": 701}, *PHASES[1:]]))
    capsys.readouterr()
    assert run(sources, out, resume="auto", **options) == 2
    message = said(capsys)
    assert "plan.curriculum: [" in message and "'from_tokens': 700" in message and "'from_tokens': 701" in message
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"web/data": 1}))
    given.write_text(json.dumps(PHASES))
    assert run(sources, out, resume="auto", **{**options, "data_mixture": other}) == 2
    assert f"--data_mixture: {given} -> {other}" in said(capsys)
    assert run(sources, out, resume="auto", stop_after=1, **options) == EXIT_INTERRUPTED


def test_a_dry_run_tells_the_phases(sources, tmp_path, capsys):
    path = tmp_path / "short.json"
    path.write_text(json.dumps([{**PHASES[0], "until": 5}, *PHASES]))
    assert run(sources, tmp_path / "out", dry_run=True, data_mixture=path, **OPTIONS) == 0
    printed = capsys.readouterr().out
    assert "curriculum   from 0: web/data 1\n             from 5: web/data 1\n" in printed
    assert "from 700: web/data 0.3333, code/data 0.6667\n             from 1,500: code/data 1\n" in printed
    assert "note         the phase from 1,000,000 tokens on is never reached, the run has 2,560" in printed
    assert printed.count("the phase from ") == 1
    path.write_text(json.dumps([{"until": 65, "weights": {"a": 1}}, {"until": 66, "weights": {"b": 1}}, PHASES[-1]]))
    assert run(tmp_path / "none", tmp_path / "out", dry_run=True, data_mixture=path, **OPTIONS) == 0
    assert "note         the phase from 65 tokens on is shorter than one sequence" in capsys.readouterr().out
    path.write_text("[]")
    assert run(tmp_path / "none", tmp_path / "out", dry_run=True, data_mixture=path, **OPTIONS) == 2
    assert "neither a JSON object nor a list of phases" in said(capsys)


def test_only_the_training_data_has_a_curriculum(sources, tmp_path):
    """Validation is what it is without; and the identity of a run without a curriculum is that of an older version."""
    options = {"val_data_dir": sources / "web/data", **OPTIONS}
    mixed = resolve_run(parse(words(sources, tmp_path, data_mixture=sources / "phases.json", **options)), 1)
    plain = resolve_run(parse(words(sources / "web/data", tmp_path, **options)), 1)
    assert len(mixed.plan.curriculum) == 4 and plain.plan.curriculum == []
    prints = [corpora[""].fingerprint for corpora in map(open_validation, (mixed, plain))]
    assert len(prints) == 2 and len(set(prints)) == 1
    assert [source.name for source in open_training(mixed).sources] == ["web/data", "code/data"]
    old = identity(plain)
    del old["plan"]["curriculum"]
    assert known_as(old) == identity(plain)


def test_a_fork_on_other_data(sources, tmp_path):
    """The fork's phases count the tokens of its trunk, and no window is read twice."""
    plain = tmp_path / "plain.json"
    plain.write_text(json.dumps({"code/data": 1, "web/data": 1}))
    trunk, whole, parts = (tmp_path / name for name in ("trunk", "whole", "parts"))
    assert run(sources, trunk, schedule="constant", stop_after=4, data_mixture=plain, **OPTIONS) == EXIT_INTERRUPTED
    options = {"data_mixture": sources / "phases.json", "fork_from": newest(trunk), **OPTIONS}
    assert run(sources, whole, **options) == 0
    for steps in (1, 3):
        assert run(sources, parts, resume="auto", stop_after=steps, **options) == EXIT_INTERRUPTED
    assert run(sources, parts, resume="auto", **options) == 0
    assert_same_run(parts, whole)
    assert list(rows(parts)) == list(range(5, STEPS + 1))
    web, code = (rows(parts, key) for key in EPOCHS)
    assert web[6] == web[STEPS] and code[6] < code[7], "the last phase begins after 1,500 tokens of both"
    seen, now = (read_meta(newest(out))["data"]["sources"] for out in (trunk, parts))
    assert sum(source["windows"] for source in seen.values()) == 16
    assert sum(source["windows"] for source in now.values()) == 4 * STEPS
    again = {"data_mixture": tmp_path / "again.json", "fork_from": newest(parts), **OPTIONS, "max_tokens": 12 * 256}
    again["data_mixture"].write_text(json.dumps({"code/data": 1}))
    assert run(sources, tmp_path / "again", **again) == 0, "a source that an earlier fork went on with is gone"
    last = read_meta(newest(tmp_path / "again"))["data"]["sources"]
    assert last["code/data"]["windows"] == now["code/data"]["windows"] + 8 and len(last) == 1
