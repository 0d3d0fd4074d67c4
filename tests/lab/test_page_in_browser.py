"""The report in a real browser: sort, filter, zoom, differences, a phone's width, print.

Needs PySide6 with WebEngine (pip install "PySide6-Addons<6.10") in this Python or in that of BROWSER_PYTHON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_report import ladder

from lit_gpt.lab.page import page
from lit_gpt.lab.report import content

PYTHON = os.environ.get("BROWSER_PYTHON", sys.executable)
BROWSER = Path(__file__).parents[1] / "browser.py"


def has_browser() -> bool:
    done = subprocess.run([PYTHON, "-c", "import PySide6.QtWebEngineWidgets"], capture_output=True)
    return done.returncode == 0


pytestmark = pytest.mark.skipif(not has_browser(), reason="there is no PySide6 with WebEngine")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    path = folder / "page.html"
    path.write_text(page({**content([ladder(folder / "study")], None, [], samples=20), "live": 0}), encoding="utf-8")
    return path


def browse(file: Path, width: int, *steps: list[Any]) -> list[Any]:
    """What each step found; a complaint of the page's scripts fails."""
    words = [PYTHON, str(BROWSER), str(file), str(width), "900"]
    done = subprocess.run(words, input=json.dumps(steps), capture_output=True, text=True, timeout=120)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(steps) and not [line for line in lines if "console" in line], done.stdout + done.stderr
    return [line["found"] for line in lines]


ROWS = "[...document.querySelectorAll('#runs tbody tr')].map(row => row.dataset.run)"
TEXTS = "[...document.querySelectorAll('#curves svg text')].map(text => text.firstChild.data)"
LINE = "document.querySelector('#curves path[data-name]').getAttribute('d')"
TARGET = "(window.target = document.querySelector('#curves .surface'), window.target.scrollIntoView(), 1)"


def press(selector: str) -> str:
    return f"(document.querySelector('{selector}').click(), 1)"


def choose(key: str, value: str, event: str = "change") -> str:
    place = f"document.querySelector('{key}')"
    return f"({place}.value = '{value}', {place}.dispatchEvent(new Event('{event}')), 1)"


def test_sorting_and_filtering(file: Path) -> None:
    found = browse(
        file,
        1200,
        ["js", ROWS],
        ["js", press("button[data-column=loss]")],
        ["js", ROWS],
        ["js", press("button[data-column=loss]")],
        ["js", ROWS],
        ["js", choose("#filter", "depth=8 loss<5 lr0.01", "input")],
        ["js", ROWS],
        ["js", "document.querySelectorAll('#curves path[data-name]').length"],
        ["js", press("#runs tbody input")],
        ["js", "document.querySelectorAll('#curves path[data-name]').length"],
    )
    names, rising, falling, filtered = found[0], found[2], found[4], found[6]
    assert names[0] == "d2_lr0.01_s1" and names[-1] == "d9_lr0.01_s1" and len(names) == 16
    assert rising[0].startswith("d8_lr0.01") and rising[-2].startswith("d2_lr0.02") and rising[-1] == "d9_lr0.01_s1"
    assert falling[0].startswith("d2_lr0.02") and falling[-1] == "d9_lr0.01_s1", "what has no loss stays last"
    assert sorted(filtered) == ["d8_lr0.01_s1", "d8_lr0.01_s2"]
    assert (found[7], found[9]) == (2, 1), "the curves are those of the table"


def test_zoom_and_logarithmic_axes(file: Path) -> None:
    found = browse(
        file,
        1200,
        ["js", TARGET],
        ["js", TEXTS],
        ["drag", 0.5, 0.2, 0.75, 0.8],
        ["js", TEXTS],
        ["js", TARGET],
        ["double", 0.5, 0.5],
        ["js", TEXTS],
        ["js", LINE],
        ["js", press('[data-key="log x"]')],
        ["js", LINE],
    )
    whole, zoomed, again, even, logarithmic = found[1], found[3], found[6], found[7], found[9]
    assert whole == again and whole != zoomed
    assert "2k" in whole and "2k" not in zoomed and "1.45k" in zoomed, "a part of 512 to 2048 tokens"
    assert even != logarithmic


def test_any_two_runs_are_compared(file: Path) -> None:
    compared = "document.getElementById('compared').innerText"
    found = browse(
        file,
        1200,
        ["js", choose("[data-key=a]", "0")],
        ["js", choose("[data-key=b]", "14")],
        ["js", compared],
        ["js", choose("[data-key=b]", "")],
        ["js", compared],
    )
    assert "more than noise" in found[2] and "base_hps.eta0" in found[2] and "roles.matrix.lr" in found[2]
    assert "optimizer" not in found[2] and "optimizer" in found[4]


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_window_and_nothing_is_hidden(file: Path, width: int) -> None:
    wide = "[document.documentElement.scrollWidth, window.innerWidth]"
    covered = (
        "[...document.querySelectorAll('select, input, button, a')].filter(one => one.checkVisibility() && "
        "!one.closest('.scroll') && (one.getBoundingClientRect().right > window.innerWidth || "
        "one.getBoundingClientRect().left < 0)).length"
    )
    ((page_width, window), hidden, charts) = browse(
        file, width, ["js", wide], ["js", covered], ["js", "document.querySelectorAll('svg .surface').length"]
    )
    assert page_width <= window and hidden == 0 and charts == 3


def test_print_has_all_runs_and_no_controls(file: Path, tmp_path: Path) -> None:
    shown = (
        "[...document.querySelectorAll('.controls')].length > 0 && [...document.styleSheets[0].cssRules]"
        ".some(rule => rule.conditionText === 'print' || (rule.media && rule.media.mediaText === 'print'))"
    )
    browse(file, 1200, ["js", shown], ["pdf", str(tmp_path / "page.pdf")], ["shot", str(tmp_path / "page.png")])
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "page.png").stat().st_size > 10_000
    pages = subprocess.run(
        [PYTHON, "-c", PDF_TEXT, str(tmp_path / "page.pdf")], capture_output=True, text=True,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen"},
    ).stdout  # fmt: skip
    assert (
        "d2_lr0.01_s1" in pages and "d9_lr0.01_s1" in pages and "Zoom in" not in pages and "Add a column" not in pages
    )


PDF_TEXT = """
import sys
from PySide6.QtGui import QGuiApplication
from PySide6.QtPdf import QPdfDocument
application, document = QGuiApplication(sys.argv[:1]), QPdfDocument()
document.load(sys.argv[1])
print("".join(document.getAllText(i).text() for i in range(document.pageCount())))
"""
