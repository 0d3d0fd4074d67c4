"""A look at a run from outside, while it trains: how far it is, and whether it has diverged."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lit_gpt.lab.rows import run_folder_of
from lit_gpt.metrics.summary import METRICS_FILE, parse_lines
from lit_gpt.utils.files import read_object_if_any, told, write_text

FILE = "diverged.json"
LOSS, TOKENS = "metric/train_loss", "total_tokens"
# A run is given up when this many logged losses in a row, and a twentieth of its budget, lie above its first one, which
# is that of guessing: spikes are shorter than that, and what is above it for so long has not come back in our runs.
LOOKS, SHARE = 20, 0.05
TRAINED = 1.0  # nats above its first loss, of a run that starts from trained weights, where the first one is mere luck
UNDEFINED_LOOKS = 3  # a loss that is no number does not become one again


class Watch:
    """Reads what a run below a row's folder has logged since the last look.

    budget: its tokens; 0 is unknown. trained: whether it starts from trained weights, as a fork does.
    """

    def __init__(self, folder: Path, budget: float, trained: bool = False) -> None:
        self.folder, self.budget, self.margin = folder, budget, TRAINED if trained else 0.0
        self.tokens, self.loss, self.step = 0.0, math.nan, 0
        self._first: float | None = None
        self._above: list[float] = []  # tokens at the latest looks, all above the first loss
        self._undefined = 0
        self._file: Path | None = None
        self._read = 0

    def look(self) -> str:
        """Why the run has diverged, in words; "" where it has not."""
        for step, tokens, loss in self._new_records():
            self.step, self.tokens, self.loss = step, tokens, loss
            self._note(tokens, loss)
        if self._undefined >= UNDEFINED_LOOKS:
            return f"the loss is no number since step {self.step}"
        long = self._above and self._above[-1] - self._above[0] >= SHARE * self.budget
        if self._first is not None and len(self._above) >= LOOKS and long:
            return f"the loss is {self.loss:.3f} at step {self.step} and began at {self._first:.3f}"
        return ""

    def _note(self, tokens: float, loss: float) -> None:
        self._undefined = 0 if math.isfinite(loss) else self._undefined + 1
        if self._first is None and math.isfinite(loss):
            self._first = loss
        above = self._first is not None and not loss <= self._first + self.margin
        self._above = [*self._above, tokens] if above else []

    def _new_records(self) -> list[tuple[int, float, float]]:
        run = run_folder_of(self.folder)
        file = None if run is None else run / METRICS_FILE
        if file is None or not file.is_file():
            return []
        if file != self._file or file.stat().st_size < self._read:  # a resumed run cuts what came after its checkpoint
            self._file, self._read = file, 0
        with file.open("rb") as opened:
            opened.seek(self._read)
            text = opened.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        rows, _ = parse_lines(whole)
        return [(row["step"], row.get(TOKENS) or 0.0, _loss(row[LOSS])) for row in rows if LOSS in row]


def _loss(value: float | None) -> float:
    return math.nan if value is None else value


def note_divergence(folder: Path, why: str, watch: Watch) -> None:
    """Write diverged.json, for which no ladder starts the row again."""
    values = {"why": why, "step": watch.step, "loss": watch.loss if math.isfinite(watch.loss) else None}
    with told(folder / FILE):
        write_text(folder / FILE, json.dumps(values) + "\n")


def diverged(folder: Path) -> str:
    """Why a row was given up, "" where it was not."""
    return str(read_object_if_any(folder / FILE).get("why", ""))
