"""What all figures share: looks that differ, axes with numbers on them, legends beside the panels, and whole files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_gpt.errors import UserError
from lit_gpt.lab import figures
from lit_gpt.utils.files import NotWritten


@pytest.mark.parametrize("count", [1, 7, 8, 40])
def test_groups_differ_in_color(count: int) -> None:
    found = figures.looks(count)
    assert len({look.color for look in found}) == count == len(found)
    assert len({look.marker for look in found}) == min(count, len(figures.MARKERS))


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.5), (1e18, 4e18), (1e18, 1.2e19), (2e18, 1e21), (3e-4, 3e-2), (7e5, 3e12), (5.0, 5.0)]
)
@pytest.mark.parametrize("which", ["x", "y"])
def test_every_axis_has_numbers_to_read(low: float, high: float, which: str) -> None:
    figure, grid = figures.panels()
    axes = grid[0, 0]
    axes.plot(*[[low, high]] * 2)
    figures.along(axes, which, "flops", [low, high])
    figure.draw_without_rendering()
    axis = getattr(axes, f"{which}axis")
    ends = axis.get_view_interval()
    shown = [
        label.get_text() for label, at in zip(axis.get_ticklabels(), axis.get_ticklocs()) if ends[0] <= at <= ends[1]
    ]
    assert 2 <= len([text for text in shown if text]) <= 8


def test_depths_are_whole_numbers_on_an_axis() -> None:
    """Depths 2 to 5 stood at 2.4, 3.2, 4.0 and 4.8."""
    figure, grid = figures.panels()
    grid[0, 0].plot([2, 5], [0, 1])
    figures.along(grid[0, 0], "x", "depth", [2.0, 3.0, 4.0, 5.0])
    figure.draw_without_rendering()
    assert all(float(at).is_integer() for at in grid[0, 0].get_xticks())


def test_axes_without_finite_values_are_left_as_they_are() -> None:
    _, grid = figures.panels()
    figures.along(grid[0, 0], "x", "flops", [np.nan, np.inf])
    assert grid[0, 0].get_xscale() == "linear"


def test_a_legend_is_below_the_panels_and_names_some_of_many() -> None:
    figure, grid = figures.panels()
    for i in range(40):
        grid[0, 0].plot([1, 2], [i, i], label=f"{i}_{'long_' * 20}")
    figures.dress(grid[0, 0], "compute (FLOPs)", "loss (nats per token)")
    figures.legend(figure, [grid[0, 0]])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == figures.LISTED and max(map(len, texts)) <= figures.LONGEST
    assert texts[0].startswith("0_") and texts[-1].startswith("39_") and "of 40" in legend.get_title().get_text()
    renderer = figure.canvas.get_renderer()
    assert legend.get_window_extent(renderer).y1 <= grid[0, 0].xaxis.label.get_window_extent(renderer).y0


def test_one_name_needs_no_legend() -> None:
    figure, grid = figures.panels()
    grid[0, 0].plot([1, 2], label="runs")
    figures.legend(figure, [grid[0, 0]])
    assert not figure.legends


def test_files_are_called_alike_also_with_dots(tmp_path: Path) -> None:
    figure, _ = figures.panels()
    paths = figures.write(figure, tmp_path / "new/loss.0.5x", {"a": np.float64(1), "b": np.nan})
    assert [path.name for path in paths] == ["loss.0.5x.png", "loss.0.5x.pdf", "loss.0.5x.json"]
    assert json.loads(paths[2].read_text()) == {"a": 1.0, "b": None}
    assert Image.open(paths[0]).width == pytest.approx(figures.COLUMN * figures.DPI, abs=2)
    first = paths[1].read_bytes()
    figures.write(figure, tmp_path / "new/loss.0.5x")
    assert paths[1].read_bytes() == first, "the same figure is the same file"


def test_a_picture_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    figure, _ = figures.panels()
    with pytest.raises((NotWritten, UserError), match="could not be written"):
        figures.write(figure, tmp_path / "file/a.png")


@pytest.mark.parametrize(
    ("value", "text"), [(0.02, "0.02"), (500.0, "500"), (1e18, "$10^{18}$"), (3e18, r"$3\!\times\!10^{18}$")]
)
def test_numbers_as_axes_say_them(value: float, text: str) -> None:
    assert figures.said(value) == text
