"""The recipes of configs/: each says for whom it is and what to type, and that command line makes a Plan."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from tiny_run import ROOT, make_corpus, pretrain, rows

from lit_gpt.train import reporter

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def header(config: Path) -> str:
    """The comment at the top, without its marks."""
    return "\n".join(re.findall(r"\A(?:#.*\n)+", config.read_text(encoding="utf-8"))).replace("#", "")


def options(config: Path) -> list[str]:
    """The words after pretrain.py, or after the -- of a sweep, of the command in the header."""
    (line,) = (line for line in header(config).splitlines() if f"--config configs/{config.name}" in line)
    words = shlex.split(line)
    if "--" in words:
        assert (ROOT / words[2]).is_file(), "the table of a sweep"
    return words[words.index("--" if "--" in words else "pretrain.py") + 1 :]


def test_all_recipes_are_here() -> None:
    assert [c.stem for c in CONFIGS] == ["baseline", "eight_gpus", "laptop", "long_context", "moe", "one_gpu", "sweep"]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_recipe_says_for_whom_it_is_and_why_each_line_is_there(config: Path) -> None:
    assert re.search(r"\bFor \w", header(config)) and re.search(r"\b(minutes|hours)\b", header(config))
    lines = [line for line in config.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    bare = [line for line in lines if "  # " not in line and line not in ("base_hps:", "")]
    assert [line.split(":")[0] for line in bare] == ["train_model"] * len(bare), "every other line says why"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_a_recipe_is_planned(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert pretrain.main([*options(config), "--dry_run", "true", "--out_dir", str(tmp_path)]) == 0
    plan = capsys.readouterr().out
    assert "defaults for so small a budget" not in plan, "a recipe says its batch and its warm-up"
    assert "nothing in" not in plan, "and nothing that its model does not read"


def test_the_laptop_recipe_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(reporter, "draw_loss_curve", lambda *_: None)
    data = str(make_corpus(tmp_path))
    words = ["--config", "configs/laptop.yaml", "--train_data_dir", data, "--val_data_dir", data, "--log_step", "1"]
    assert pretrain.main([*words, "--max_tokens", "8192", "--out_dir", str(tmp_path / "out")]) == 0
    losses = list(rows(tmp_path / "out").values())
    assert losses[0] == pytest.approx(5.549, abs=0.1), "near ln 257, the uniform guess"
    assert len(losses) == 8 and losses[-1] < losses[0] - 1
