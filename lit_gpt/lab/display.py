"""What a person sees while a study runs: a line for each event, and one bar for all runs together."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from lit_gpt.lab.rows import Row


class Display:
    """Lines on standard output, and a bar on standard error where that is a terminal.

    rows: those of the study. tokens, flops: row -> what it trains, where that is known. The bar counts FLOPs where
    they are known of all rows, else rows, so that small runs are not taken for large ones.
    """

    def __init__(
        self, rows: Sequence[Row], tokens: Mapping[str, float] | None = None, flops: Mapping[str, float] | None = None
    ) -> None:
        self.numbers = {row.name: number for number, row in enumerate(rows, 1)}
        self.tokens, self.flops = dict(tokens or {}), dict(flops or {})
        self.shares = dict.fromkeys(self.numbers, 0.0)
        self._lock = threading.Lock()
        sizes = [self.flops.get(name, 0.0) for name in self.numbers]
        self._usual = sum(sizes) / len(sizes) if sizes and all(sizes) else 0.0  # of rows that are added later, too
        unit = "FLOP" if self._usual else "run"
        self._bar = tqdm(total=self._total(), disable=None, unit=unit, unit_scale=True, dynamic_ncols=True)

    def budget(self, row: Row) -> float:
        """The tokens that a row trains, 0 where they are not known."""
        return self.tokens.get(row.name, 0.0)

    def say(self, row: Row, text: str) -> None:
        """Print what happens to a row. A row that is done fills its part of the bar."""
        with self._lock:
            number = self.numbers.setdefault(row.name, len(self.numbers) + 1)
            with self._bar.external_write_mode():
                print(f"[{number}/{len(self.numbers)}] {row.name}: {text}", flush=True)
        if text.startswith(("finished", "diverged")):
            self._fill(row, 1.0)

    def note(self, row: Row, tokens: float) -> None:
        """A row has come this far."""
        if budget := self.budget(row):
            self._fill(row, min(tokens / budget, 1.0))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _fill(self, row: Row, share: float) -> None:
        with self._lock:
            self.shares[row.name] = max(share, self.shares.get(row.name, 0.0))
            self._bar.total = self._total()
            done = sum(part * self._size(name) for name, part in self.shares.items())
            self._bar.update(done - self._bar.n)

    def _size(self, name: str) -> float:
        return self.flops.get(name, self._usual) if self._usual else 1.0

    def _total(self) -> float:
        return sum(map(self._size, self.numbers))
