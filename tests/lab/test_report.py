"""What a report holds, and that it is one file that says nothing but what it should."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lab_runs import PLAN, SUMMARY, make_run

from lit_gpt.config.command import exit_code
from lit_gpt.errors import UserError
from lit_gpt.lab.curves import thin
from lit_gpt.lab.fit_runs import lowest_per
from lit_gpt.lab.fits import fit_of
from lit_gpt.lab.page import PARTS, SCRIPTS, page, plain
from lit_gpt.lab.report import content, is_done, read_law
from lit_gpt.lab.runs import read_runs
from lit_gpt.scaling.noise import student
from lit_gpt.tools import report
from lit_gpt.train.lease import take_lease

EVIL = '</script><script>alert(1)</script> & \u2028 "quoted" <b>'


def ladder(folder: Path, noise: float = 0.002) -> Path:
    """Loss = 50 C^-0.1 + 1 at five sizes, two rates at each, two seeds of the better rate; one row waits."""
    rng, rows = np.random.default_rng(0), []
    for depth in (2, 3, 4, 6, 8):
        for rate, seed in ((0.01, 1), (0.01, 2), (0.02, 1)):
            flops = 2048 * 10.0**depth
            loss = 50 * flops**-0.1 + 1 + 0.1 * (rate > 0.01) + rng.normal(0, noise)
            rows.append({"name": f"d{depth}_lr{rate}_s{seed}", "depth": depth, "base_hps.eta0": rate, "seed": seed})
            roles = {"matrix": {"lr": rate, "weight_decay": 0.1}}
            make_run(
                folder / rows[-1]["name"] / "run",
                row=rows[-1],
                plan={
                    "depth": depth,
                    "seed": seed,
                    "data_seed": seed,
                    "model_flops_per_token": 10.0**depth,
                    "roles": roles,
                },
                summary={**SUMMARY, "metric/val_loss@1x": loss},
                metrics=[{"step": s, "total_tokens": 512 * s, "metric/train_loss": 9.0 / s} for s in range(1, 5)],
                train_name=EVIL,
                **rows[-1],
            )
    rows.append({"name": "d9_lr0.01_s1", "depth": 9})
    (folder / "study.yaml").write_text(yaml.safe_dump({"question": EVIL, "rows": rows}))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ladder(tmp_path_factory.mktemp("lab") / "study")


@pytest.fixture(scope="module")
def found(study: Path) -> dict[str, Any]:
    return content([study], None, [], samples=50)


def test_runs_settings_and_what_is_the_same_in_all(found: dict[str, Any]) -> None:
    assert found["title"] == "study" and found["question"] == EVIL
    assert [run["name"] for run in found["runs"]][-3:] == ["d8_lr0.01_s2", "d8_lr0.02_s1", "d9_lr0.01_s1"]
    assert found["runs"][-1]["state"] == "waiting" and not is_done(found)
    assert set(found["shown"][:3]) == {"depth", "seed", "base_hps.eta0"}
    run = found["runs"][0]
    whole = {**found["shared"], **run["own"]}
    assert whole["train_name"] == EVIL
    assert whole["plan.roles.matrix.lr"] == 0.01 and whole["plan.context"] == PLAN["context"]
    assert run["curves"]["metric/train_loss"]["y"].tolist() == [9.0, 4.5, 3.0, 2.25]


def test_the_default_fit_is_of_the_lowest_losses(found: dict[str, Any], study: Path) -> None:
    (fit,) = found["fits"]
    numbers = {one["name"]: one for one in fit["numbers"]}
    assert len(fit["points"]["names"]) == 10, "both seeds of the better rate of each size"
    for name, truth in (("b", 0.1), ("c", 1.0)):
        one = numbers[name]
        assert one["low"] < one["value"] < one["high"] and abs(one["value"] - truth) < 3 * (one["high"] - one["low"])
        assert one["without"][0] <= one["value"] <= one["without"][1]
    assert len(fit["points"]["residual"]) == 10 and np.all(fit["lines"][0]["low"] < fit["lines"][0]["high"])
    chosen = lowest_per(read_runs([study]), "flops", "loss")[0]
    assert {run.settings["base_hps.eta0"] for run in chosen} == {0.01}


def test_a_number_that_is_given_has_no_interval(study: Path) -> None:
    """The page said that the offset lay between 0 and 0, as if the runs had shown it."""
    given = fit_of(read_runs([study]), "power", {}, {"c": 1.0}, 20)["numbers"][-1]
    assert given["words"] == "offset (given)" and given["low"] != given["low"] and given["without"] is None


def test_noise_is_that_of_the_repeated_runs(found: dict[str, Any]) -> None:
    both = found["noise"]["kinds"]["both"]
    assert both["free"] == 5 and both["t"] == student(5) and 0 < both["deviation"] < 0.02
    assert [len(group["runs"]) for group in found["noise"]["groups"]] == [2] * 5
    beside = found["noise"]["beside"]  # five pairs of two seeds, which the corpus of this study gives nothing in common
    assert beside["free"] == 4 and beside["t"] == student(4) and 0 < beside["deviation"] < 0.02


def test_a_fit_that_cannot_be_is_a_sentence_and_not_the_end(study: Path) -> None:
    (fit,) = content([study], "depth == 2", ["power"], samples=10)["fits"]
    assert "why" in fit and fit["why"].endswith(".")
    with pytest.raises(UserError, match="There are no runs"):
        fit_of([], "power", {}, {}, 10)


def test_laws_as_they_are_typed() -> None:
    assert read_law("power:x=tokens,c=0") == ("power", {"x": "tokens"}, {"c": 0.0})
    for text, says in (("powr", "power"), ("power:z=3", "'z=3' is not for this law"), ("power:c=x", "c=NUMBER")):
        with pytest.raises(UserError, match=says):
            read_law(text)


class Parts(HTMLParser):
    """The elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)


def test_the_page_is_one_file_and_its_content_comes_back_whole(found: dict[str, Any]) -> None:
    text = page({**found, "title": EVIL, "live": 0})
    parts = Parts(text)
    assert [tag for tag, _ in parts.tags].count("script") == 2, "what the names say is no script"
    assert json.loads(parts.scripts[0]) == plain({**found, "title": EVIL, "live": 0})
    assert not [a for tag, a in parts.tags if tag in ("link", "img", "iframe") or "src" in a]
    outside = re.findall(r"https?://[^\s\"']+", text.replace("http://www.w3.org/2000/svg", ""))
    assert not outside and "@import" not in text and "url(" not in text.replace("url(#${clip})", "")
    assert "innerHTML" not in text and "eval(" not in text
    assert "default-src 'none'" in text


def test_every_part_is_ascii_and_in_the_page() -> None:
    files = {path.name for path in PARTS.iterdir()}
    assert files == {*SCRIPTS, "page.html", "page.css"}
    for name in files:
        (PARTS / name).read_text(encoding="ascii")


def test_numbers_are_json() -> None:
    assert plain({"a": [1.23456789, float("nan"), np.float64(2), np.int64(3), None, True], 1: Path("x")}) == {
        "a": [1.23457, None, 2.0, 3, None, True], "1": "x"}  # fmt: skip


@pytest.mark.parametrize("points", [0, 10, 400, 401, 5000])
def test_thinned_curves_keep_their_ends_and_spikes(points: int) -> None:
    x, y = np.arange(points, dtype=float), np.ones(points)
    if points:
        y[points // 3], y[points // 2] = 9.0, np.nan
    a, b = thin(x, y)
    assert len(a) == len(b) <= 400 and np.all(np.diff(a) > 0) and np.isfinite(b).all()
    if points:
        assert b.max() == 9.0 and a[0] == 0 and a[-1] == points - 1


def test_a_live_page_is_written_until_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = make_run(tmp_path / "study/a/run", row={"name": "a"}, summary=None)
    lease, output, seen = take_lease(folder), tmp_path / "x/page.html", []

    def wait(seconds: float) -> None:
        seen.append(json.loads(Parts(output.read_text()).scripts[0])["live"])
        if len(seen) == 1:
            (folder / "summary.json").write_text("{")  # half of a file
        elif len(seen) == 2:
            (folder / "summary.json").write_text(json.dumps(SUMMARY))
            lease.close()

    monkeypatch.setattr(report.time, "sleep", wait)
    assert report.main([str(tmp_path / "study"), "--output", str(output), "--live", "7"]) == 0
    assert seen == [7.0, 7.0] and "not written this time" in capsys.readouterr().err
    last = json.loads(Parts(output.read_text()).scripts[0])
    assert last["live"] == 0 and last["runs"][0]["state"] == "finished"


def test_a_table_of_others_has_a_page_too(tmp_path: Path, capsys) -> None:
    table = tmp_path / "runs.csv"
    table.write_text("name,flops,loss\n" + "".join(f"r{i},1e{i},{2 + 9 / i}\n" for i in range(10, 15)))
    assert report.main([str(table), "--samples", "20"]) == 0
    assert "runs_report.html" in capsys.readouterr().out
    (fit,) = json.loads(Parts((tmp_path / "runs_report.html").read_text()).scripts[0])["fits"]
    assert "why" not in fit


def test_refusals_are_sentences(study: Path, tmp_path: Path, capsys) -> None:
    for words, says in (
        ([str(tmp_path / "no")], "does not exist"),
        ([str(study), "--where", "depth == 77"], "No run in"),
        ([str(study), "--law", "powr"], "power"),
        ([str(study), "--live", "0"], "--live is 0"),
        ([str(study), "--samples", "0"], "--samples is 0"),
    ):
        assert exit_code(report.main, [*words, "--output", str(tmp_path / "x.html")]) == 2
        assert says in capsys.readouterr().err
    assert not (tmp_path / "x.html").exists()
