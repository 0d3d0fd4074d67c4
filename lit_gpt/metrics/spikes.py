"""Loss spikes."""

from __future__ import annotations

import math
import statistics
from collections import deque

SPIKE_SIGMAS = 6.0  # OLMo-core's, see SpikeDetector


class SpikeDetector:
    """Flags a loss or gradient norm far above its recent past.

    window: values that count as the recent past; nothing but a non-finite value is flagged
    before half of them were seen. Flagged values join the past, so a level that stays
    high stops being news. The rule of OLMo-core's skip-step optimizers, there 6 sigma over 128.
    """

    def __init__(self, window: int = 128, sigmas: float = SPIKE_SIGMAS):
        self._past: deque[float] = deque(maxlen=window)
        self._sigmas = sigmas

    def update(self, value: float) -> bool:
        """Take the next value; True if it is a spike or not finite."""
        if not math.isfinite(value):
            return True
        spike = False
        if len(self._past) >= max(2, (self._past.maxlen or 0) // 2):
            mean, sigma = statistics.fmean(self._past), statistics.stdev(self._past)
            spike = value > mean + self._sigmas * sigma
        self._past.append(value)
        return spike
