"""Plain lines without a terminal, a bar with one, nothing on other ranks."""

from __future__ import annotations

import io

import pytest

from lit_gpt.metrics.console import Console, duration, human


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_line_without_a_terminal():
    out = io.StringIO()
    console = Console(19.7e6, 1000, enabled=True, stream=out)
    console.update(120, 1.97e6, 2.3)
    console.line(120, 1.97e6, 2.3412, lr=4.8e-4, grad_norm=0.61, tokens_per_sec=92343.75, mfu=0.412, mfu_palm=0.471)
    console.close()
    assert out.getvalue() == (
        "step 120/1000 | 1.97M tok | loss 2.3412 (avg 2.3412) | lr 4.8e-04 | gnorm 0.61"
        " | 92.3k tok/s | MFU 41.2% causal, PaLM 47.1% | eta 3m12s\n"
    )


def test_unknown_fields_are_left_out():
    line = Console(100, 10, enabled=True, stream=io.StringIO()).line(1, 10, 2.0, lr=1e-3)
    assert line == "step 1/10 | 10 tok | loss 2.0000 (avg 2.0000) | lr 1.0e-03"


def test_smoothed_loss_is_unbiased_and_survives_nan():
    console = Console(100, 10, enabled=False, smoothing=0.5)
    assert "(avg nan)" in console.line(1, 10, float("nan"), lr=1e-3)
    console.line(2, 20, 4.0, lr=1e-3)
    console.line(3, 30, float("nan"), lr=1e-3)
    # weights 1/4 and 1/2, normalised
    assert "(avg 2.0000)" in console.line(4, 40, 1.0, lr=1e-3)


def test_bar_on_a_terminal_keeps_notes_on_lines_of_their_own():
    out = Terminal()
    console = Console(100, 10, enabled=True, start_tokens=50, stream=out)
    console.update(6, 60, 2.5)
    console.note("checkpoint saved")
    console.update(10, 100, 2.25)
    console.close()
    text = out.getvalue()
    assert "checkpoint saved\n" in text
    assert "100%" in text and "step=10/10" in text and "loss=2.2500" in text


def test_other_ranks_are_silent():
    out = Terminal()
    console = Console(100, 10, enabled=False, stream=out)
    console.update(1, 10, 2.0)
    console.line(1, 10, 2.0, lr=1e-3)
    console.note("hello")
    console.close()
    assert out.getvalue() == ""


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (999.7, "1.00k"), (45_100, "45.1k"), (999_499, "999k"), (999_500, "1.00M")]
    + [(1.97e6, "1.97M"), (12e9, "12.0B"), (3.5e15, "3500T")],
)
def test_human(number: float, text: str):
    assert human(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (59.4, "59s"), (59.6, "1m00s"), (192, "3m12s"), (18_420, "5h07m"), (183_600, "2d03h")],
)
def test_duration(seconds: float, text: str):
    assert duration(seconds) == text
