"""Axes of figures are in words and units."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT
from script_module import script_module

from lit_gpt.metrics import curve, figures
from lit_gpt.metrics.curve import draw_loss_curve, draw_overlay
from lit_gpt.metrics.labels import axis_label
from lit_gpt.scaling.sweep_moves import moves
from lit_gpt.tools import _coord_report
from lit_gpt.tools._coord_fit import CoordResult, Fit

KEYS = re.findall(r"^\| `(\w+/[\w@<>/]+)` \|", (ROOT / "docs/loggers.md").read_text(encoding="utf-8"), re.MULTILINE)
RUN = ROOT / "docs/examples/transformer_d8"


def test_every_key_has_words() -> None:
    assert len(KEYS) > 50
    for key in (re.sub("<.*?>", "2", key) for key in KEYS):
        assert re.fullmatch(r"[A-Za-z][\w ,'()/-]*[\w)]", axis_label(key)) and "_" not in axis_label(key), key
    assert axis_label("metric/val_loss@1x") == "validation loss (nats per token)"
    assert axis_label("metric/val_loss@4x") == "validation loss at 4 times the context (nats per token)"
    assert axis_label("system/gpu_memory_peak_gib") == "gpu memory peak (GiB)"


def test_every_axis_of_every_figure_has_a_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The y axis said `val_loss@1x` or `train_loss`, that of the optimizers no unit, and coord_check's `width`."""
    shown: list[Any] = []
    lr, optimizers = (script_module(f"plots/{name}.py") for name in ("plot_lr_transfer", "plot_optimizers"))
    for module, name in ((curve, "save"), (lr, "write"), (optimizers, "write"), (_coord_report.figures, "write")):
        monkeypatch.setattr(module, name, lambda figure, path: shown.append(figure) or [path])
    draw_loss_curve(RUN, bytes_per_token=3.7, output=tmp_path / "a.png")
    draw_overlay([RUN], ["metric/train_loss", "throughput/tokens_per_sec"], tmp_path / "b.png")
    sweep = {4: {(1e-3, 1): 3.0, (2e-3, 1): 2.0, (4e-3, 1): 3.5}}
    lr.draw({"sp": moves(sweep)}, "metric/val_loss@1x", tmp_path / "c.png")
    optimizers.draw({"muon": [(10**6, 4.0), (2 * 10**6, 3.0)]}, tmp_path / "d.png")
    fits = tuple(Fit("width", site, "activation", 0, 0.0, (1.0, 2.0), (0.0, 0.0)) for site in _coord_report.DRAWN)
    _coord_report.write(CoordResult("mupp", {"width": (64, 128)}, fits), tmp_path)
    loss = "validation loss (nats per token)"
    assert shown[-1].get_supylabel() == "mean absolute activation"
    assert [{text for axes in figure.axes for text in labels(axes)} for figure in shown] == [
        {"loss (nats per token)", "loss (bits per byte)", "learning rate of matrices", "training tokens"},
        {"training loss (nats per token)", "speed (tokens per second)", "training tokens"},
        {"base learning rate (--base_hps.eta0)", loss},
        {f"final {loss}", loss, "training tokens"},
        {"width (channels)", *_coord_report.DRAWN},
    ]


def labels(axes: Any) -> list[str]:
    """What the axes say, those of secondary ones too; axes that share another one's numbers have none."""
    texts = [label for a in (axes, *axes.child_axes) for label in (a.get_xlabel(), a.get_ylabel())]
    return [text.replace("\n", " ") for text in texts if text]


def test_counts_of_tokens_are_short() -> None:
    _, ((axes,),) = figures.subplots(3, 3)
    figures.count_tokens(axes.xaxis)
    assert [axes.xaxis.get_major_formatter()(x, 0) for x in (1e4, 2.5e7, 1e9)] == ["10k", "25M", "1B"]
