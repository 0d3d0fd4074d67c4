"""The demo on a small standard library: its figures are of the bytes that gzip gets, and are on its last screen."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path

import pytest
from tiny_run import make_text

from lit_gpt.data import open_corpus
from lit_gpt.ops.loss import IGNORE
from lit_gpt.tools import demo
from lit_gpt.train import reporter


@pytest.fixture
def stdlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty files of a kilobyte in place of the real ones; beyond ASCII, since characters are not bytes."""
    folder = tmp_path / "lib"
    (folder / "test").mkdir(parents=True)
    for i in range(40):
        (folder / f"module{i}.py").write_text(f"# caf\u00e9 \u4e2d {i}\n" + make_text(i, 20), encoding="utf-8")
    (folder / "test" / "test_x.py").write_text("left out" * 1000)
    monkeypatch.setattr(demo.sysconfig, "get_paths", lambda: {"stdlib": str(folder)})
    monkeypatch.setattr(demo, "VOCABULARY", 300)
    monkeypatch.setattr(reporter, "draw_loss_curve", lambda *_: None)
    return folder


def test_the_demo(stdlib: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--output", str(tmp_path / "out"), "--max_tokens", str(16 * 1024)]) == 0
    shown = capsys.readouterr().out
    data = tmp_path / "out" / demo.DATA
    text = demo.held_out(data)
    # The bytes by which validation divides are those that gzip gets: of every target but the ends of documents.
    split = open_corpus(str(data), "validation", demo.CONTEXT, seed=0, shuffle=False, repeat=False)
    windows = [split.sample(i) for i in range(split.num_samples)]
    assert split.token_bytes is not None
    assert len(text) == sum(int(split.token_bytes.of(w[None, :-1], w[None, 1:]).sum()) for w in windows)
    assert "\u4e2d".encode() in text and b"left out" not in text
    (summary,) = (tmp_path / "out").glob("*/*/summary.json")
    found = json.loads(summary.read_text())
    targets = sum(int((w[1:] != IGNORE).sum()) for w in windows)
    bits = found["metric/val_loss@1x"] * targets / math.log(2) / len(text)
    assert found["metric/val_bpb@1x"] == pytest.approx(bits)
    assert re.search(
        rf"bits per byte +{bits:.3f} .* gzip -9 makes {8 * len(gzip.compress(text, 9)) / len(text):.3f}", shown
    )
    assert f"continuing {demo.PROMPT!r}\n{demo.PROMPT}" in shown and str(summary.parent) in shown
    assert found["metric/val_loss@1x"] < math.log(300) - 1, "it learned"
