"""What decides that two sides differ, and the two ways to train them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lab_runs import SUMMARY, make_run

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.evals.results import Metric, Result, Subject, save
from lit_gpt.lab import trials
from lit_gpt.lab.comparison import compare
from lit_gpt.lab.fit_runs import _other_settings
from lit_gpt.lab.runs import Run, read_runs
from lit_gpt.tools.compare import main


def side(folder: Path, *losses: float, depth: int = 2, curve: float = 3.0, finished: bool = True) -> list[Run]:
    """A run for each loss, with seeds 1, 2, ..."""
    for seed, loss in enumerate(losses, 1):
        make_run(
            folder / f"{folder.name}_{seed}",
            plan={"seed": seed, "data_seed": seed, "depth": depth},
            summary={**SUMMARY, "metric/val_loss@1x": loss, "finished": finished},
            metrics=[{"step": step, "metric/train_loss": curve if step == 2 else 4.0} for step in (1, 2)],
            depth=depth,
        )
    return read_runs([folder])


def test_noise_is_that_within_sides_and_controls(tmp_path: Path) -> None:
    """Sides of one run each, two groups of controls with deviations 0.1 and 0.1 (a gap of 0.1 sqrt(2))."""
    a, b = side(tmp_path / "a", 2.0), side(tmp_path / "b", 2.7, depth=3)
    gap = 0.1 * 2**0.5
    controls = side(tmp_path / "c", 5.0, 5.0 + gap, depth=8) + side(tmp_path / "d", 9.0, 9.0 + gap, depth=9)
    found = compare(a, b, controls)
    assert found.noise.deviation == pytest.approx(0.1) and found.noise.free == 2
    assert found.means.value == pytest.approx(0.7) and found.means.error == pytest.approx(0.1 * 2**0.5)
    assert not found.means.is_tie and "more than noise" in found.in_words()
    assert "no run was repeated" in compare(a, b, []).in_words()


def test_a_control_of_a_sides_configuration_belongs_to_it(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", 2.0), side(tmp_path / "b", 2.3, depth=3)
    (_, control) = side(tmp_path / "c", 2.0, 2.2)
    assert compare(a, b, [control]).noise.free == 1
    same = side(tmp_path / "e", 2.3)  # another backend, say: the same configuration as a
    assert compare(a, same, [control]).noise.free == 0
    assert compare(a, same, [*a, control]).noise.free == 0, "a run is no control of itself"
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert compare(a, same, [*read_runs([tmp_path / "link"]), control]).noise.free == 0


def test_a_side_is_not_compared_with_itself(tmp_path: Path, monkeypatch, capsys) -> None:
    side(tmp_path / "a", 2.0, 2.1)
    monkeypatch.chdir(tmp_path)
    for words, said in ((["a", "a"], "a is given twice"), (["a", "./a/../a"], "a and a/../a hold a/../a/")):
        assert exit_code(main, words) == 2
        assert said in capsys.readouterr().err


def test_pairs_and_the_first_step_that_differs(tmp_path: Path) -> None:
    a, b = side(tmp_path / "a", 2.0, 3.0, 4.0), side(tmp_path / "b", 2.1, 3.11, 4.09, depth=3, curve=3.5)
    found = compare(a, b, [])
    assert found.means.is_tie, "the seeds differ by more"
    assert found.pairs is not None and not found.pairs.is_tie and found.pairs.free == 2
    assert "so they decide: +0.1000" in found.in_words() and "so they decide" not in compare(a, b[:2], []).in_words()
    assert found.parted == 2 and compare(a, a, []).parted == 0
    assert "same to the last digit" in compare(a, a, []).in_words()


def test_copies_and_runs_of_one_seed_are_no_noise_of_seeds(tmp_path: Path) -> None:
    """A copied folder made every difference "more than noise", of infinitely many standard errors."""
    a, b = side(tmp_path / "a", 2.0), side(tmp_path / "b", 2.0001, depth=3)
    shutil.copytree(tmp_path / "a" / "a_1", tmp_path / "copy")
    with pytest.raises(UserError, match="copy equals a_1 in every number"):
        compare(a, b, read_runs([tmp_path / "copy"]))
    (tmp_path / "copy" / "summary.json").write_text(json.dumps({**SUMMARY, "time/train": 41.0}))
    again = compare(a, b, read_runs([tmp_path / "copy"]))
    assert again.one_seed and "warning: the repeated runs share their seeds" in again.in_words()
    assert "share their seeds" not in compare(a, b, side(tmp_path / "c", 2.0, 2.1)[1:]).in_words()


def test_lines_of_a_table_may_be_equal_by_chance(tmp_path: Path) -> None:
    """Without times and seeds, such as accuracies of ten answers: these are no copies."""
    (tmp_path / "runs.csv").write_text("name,size,acc\na,1,0.4\na,1,0.5\na,1,0.5\nb,2,0.6\nb,2,0.6\n")
    runs = read_runs([tmp_path / "runs.csv"])
    found = compare(runs[:3], runs[3:], [], "acc")
    assert found.noise.free == 3 and found.noise.deviation == pytest.approx((0.02 / 9) ** 0.5)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = side(tmp_path / "a", 2.0)
    with pytest.raises(UserError, match="are one side and differ in depth"):
        compare(a + side(tmp_path / "b", 2.0, depth=3), a, [])
    with pytest.raises(UserError, match="is not finished"):
        compare(a, side(tmp_path / "c", 2.0, finished=False), [])
    with pytest.raises(UserError, match="no number 'bits'"):
        compare(a, a, [], "bits")


STUB = """
import json, sys
from pathlib import Path
words = [part for word in sys.argv[1:] for part in word.split("=")]
options = dict(zip(words[::2], words[1::2]))
folder = Path(options["--out_dir"]) / "run"
folder.mkdir(parents=True)
seed, rate = int(options["--seed"]), float(options.get("--rate", 0))
if rate < 0:
    sys.exit("the rate is negative")
plan = {"seed": seed, "data_seed": seed, "rate": rate}
(folder / "config.yaml").write_text(json.dumps({"seed": seed, "rate": rate}))
(folder / "plan.json").write_text(json.dumps(plan))
loss = LOSS + rate + 0.01 * (seed == 2)
(folder / "summary.json").write_text(json.dumps({"finished": True, "metric/val_loss@1x": loss}))
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two commits (tags one and two) of a pretrain.py that writes a run without training."""
    root = tmp_path / "checkout"
    root.mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    for tag, loss in (("one", 2.0), ("two", 3.0)):
        (root / "pretrain.py").write_text(f"LOSS = {loss}{STUB}")
        for words in (["add", "-A"], ["commit", "-qm", tag], ["tag", tag]):
            subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(trials, "ROOT", root)
    return root


def test_two_commits_are_trained_and_compared(repository: Path, tmp_path: Path, capsys) -> None:
    words = ["--commits", "one", "two", "--seeds", "2", "--output", str(tmp_path / "out"), "--", "--depth", "8"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "difference: +1.0000" in said and "more than noise" in said
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True)
    assert len(listed.stdout.splitlines()) == 1, "the worktrees are gone"
    assert main(words) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    (repository / "pretrain.py").write_text(f"LOSS = 2.5{STUB}")
    assert main(["--commits", "two", ".", "--seeds", "2", "--output", str(tmp_path / "now")]) == 0
    assert "difference: -0.5000" in capsys.readouterr().out, "the files as they are"


def test_two_settings_are_trained_and_compared(repository: Path, tmp_path: Path, capsys) -> None:
    out = ["--seeds", "2", "--output", str(tmp_path / "out")]
    assert main(["--run", "rate=0.5", f"launcher='{sys.executable}' rate=0.501", *out]) == 0
    said = capsys.readouterr().out
    assert "rate: 0.5 -> 0.501" in said and "a tie" in said
    row = json.loads((tmp_path / "out/a/seed_1/row.json").read_text())
    assert row == {"name": "a seed 1", "side": "a", "typed": "--rate=0.5 --seed 1"}
    assert exit_code(main, ["--run", "rate=0.7", "rate=0.5", *out]) == 2
    assert "was trained with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Give two folders"),
        (["a"], "Give two folders"),
        (["a", "b", "--commits", "c", "d"], "Give two folders"),
        (["a", "b", "--", "--depth", "8"], "after -- go with"),
        (["--run", "rate=1", "rate=2", "--seeds", "0"], "--seeds is 0"),
        (["--run", "rate=-1", "rate=1"], "the rate is negative"),
        (["--run", "", "rate=1"], "are no settings"),
        (["--run", "rate", "rate=1"], "are no settings"),
        (["--commits", "three", "one"], "Give commits of"),
    ],
)
def test_refusals_are_sentences(repository: Path, monkeypatch, capsys, words: list[str], says: str) -> None:
    monkeypatch.chdir(repository.parent)
    assert exit_code(main, words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("figure", "part"), [("loss", "validation"), ("train_loss", "train")])
def test_losses_of_different_data_are_said(tmp_path: Path, figure: str, part: str) -> None:
    """Two vocabularies gave "more than noise", and nothing but the last lines of a long list told why."""
    a, b = side(tmp_path / "a", 2.0, 2.01), side(tmp_path / "b", 5.0, 5.02, depth=3)
    for run, content in zip([*a, *b], "xxyy"):
        assert run.folder is not None
        (run.folder / "environment.json").write_text(json.dumps({"data": {part: {"content": content}}}))
    assert f"warning: {figure} is of different data, such as of a_1 and b_1" in compare(a, b, [], figure).in_words()
    assert "warning" not in compare(a[:1], a[1:], [], figure).in_words()
    assert "warning" not in compare(a, b, [], "tokens").in_words()


def test_evaluations_with_other_settings_are_said(tmp_path: Path) -> None:
    """Five examples before each question on one side, and none on the other."""
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, shots, value in ((a, 5, 0.5), (b, 0, 0.4)):
        side(folder, 2.0, depth=shots + 2)
        subject = Subject("run", "step-000004", "", "trained", 4, 2048)
        save(Result("mine", 9, {"acc": Metric(value)}, subject, {"num_fewshot": shots}), folder / f"{folder.name}_1")
    runs = read_runs([a]), read_runs([b])
    said = compare(*runs, [], "mine/acc").in_words()
    assert "warning: mine/acc was measured with other num_fewshot" in said
    assert "warning" not in compare(*runs, []).in_words()
    assert list(_other_settings([*runs[0], *runs[1]], ["mine/acc", "loss"])) == [
        "mine/acc was measured with other num_fewshot in some runs: evaluate them alike"
    ]
