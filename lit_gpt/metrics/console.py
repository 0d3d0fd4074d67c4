"""What a person watching the run sees: a progress bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import math
import sys
from typing import TextIO

from tqdm import tqdm


class Console:
    """Progress on stderr; the bar counts tokens and appears on a terminal only.

    total_tokens, total_steps: of the whole run. start_tokens: where a resumed run begins.
    enabled: False (every rank but the main one) makes every method silent.
    smoothing: weight of the past in the smoothed loss, a bias-corrected moving average.
    """

    def __init__(
        self,
        total_tokens: float,
        total_steps: int,
        *,
        enabled: bool,
        start_tokens: float = 0,
        smoothing: float = 0.9,
        stream: TextIO | None = None,
    ):
        self._stream = stream or sys.stderr
        self._enabled, self._total_tokens, self._total_steps = enabled, total_tokens, total_steps
        self._smoothing, self._average, self._weight = smoothing, 0.0, 0.0
        self._bar: tqdm | None = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total_tokens,
                initial=start_tokens,
                unit="tok",
                unit_scale=True,
                dynamic_ncols=True,
                file=self._stream,
            )

    def update(self, step: int, tokens_seen: float, loss: float | None = None) -> None:
        """Move the bar; cheap enough for every step. Pass a loss only when it is on the host already."""
        if self._bar is None:
            return
        shown = {"step": f"{step}/{self._total_steps}"} | ({} if loss is None else {"loss": f"{loss:.4f}"})
        self._bar.set_postfix(shown, refresh=False)
        # The last step may go past the budget, and tqdm draws no bar beyond its total.
        self._bar.update(min(tokens_seen, self._total_tokens) - self._bar.n)

    def line(
        self,
        step: int,
        tokens_seen: float,
        loss: float,
        *,
        lr: float,
        grad_norm: float | None = None,
        tokens_per_sec: float | None = None,
        mfu: float | None = None,
        mfu_palm: float | None = None,
    ) -> str:
        """Print one line about an interval, and return it; None leaves a field out.

        mfu, mfu_palm: fractions, by the two conventions of metrics/throughput.py.
        """
        parts = [f"step {step}/{self._total_steps}", f"{human(tokens_seen)} tok"]
        parts += [f"loss {loss:.4f} (avg {self._smooth(loss):.4f})", f"lr {lr:.1e}"]
        parts += [] if grad_norm is None else [f"gnorm {grad_norm:.2f}"]
        if tokens_per_sec:
            parts += [f"{human(tokens_per_sec)} tok/s"]
            palm = "" if mfu_palm is None else f", PaLM {mfu_palm:.1%}"
            parts += [] if mfu is None else [f"MFU {mfu:.1%} causal{palm}"]
            parts += [f"eta {duration((self._total_tokens - tokens_seen) / tokens_per_sec)}"]
        text = " | ".join(parts)
        self.note(text)
        return text

    def note(self, text: str) -> None:
        """Print a message on a line of its own, above the bar."""
        if self._enabled:
            tqdm.write(text, file=self._stream)
            self._stream.flush()

    def close(self) -> None:
        """End the progress bar, which stays on the terminal as it is."""
        if self._bar is not None:
            self._bar.close()

    def _smooth(self, loss: float) -> float:
        if math.isfinite(loss):  # one NaN must not hide every later value
            self._average = self._smoothing * self._average + (1 - self._smoothing) * loss
            self._weight = self._smoothing * self._weight + (1 - self._smoothing)
        return self._average / self._weight if self._weight else math.nan


def human(number: float) -> str:
    """Three significant digits with a unit: 999, 45.1k, 1.97M, 12.0B."""
    if abs(number) < 999.5:
        return f"{number:.0f}"
    power = next((i for i in (1, 2, 3) if abs(number) < 999.5 * 1000**i), 4)
    number /= 1000**power
    digits = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{digits}f}{' kMBT'[power]}"


def duration(seconds: float) -> str:
    """The two largest units: 42s, 3m12s, 5h07m, 2d03h."""
    total = max(0, round(seconds))
    minutes, s = divmod(total, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days}d{h:02d}h"
    if hours:
        return f"{h}h{m:02d}m"
    return f"{m}m{s:02d}s" if minutes else f"{s}s"
