"""Learning-rate schedules as a fraction of the peak, over tokens.

With w = warm-up tokens, T = total tokens, f = final fraction and p = (t - w) / (T - w):

| name | fraction after warm-up |
|---|---|
| linear | 1 + p (f - 1) |
| cosine | f + (1 + cos(pi p)) / 2 * (1 - f) |
| wsd | 1 until p = 1 - decay_fraction, then the decay shape down to f |
| constant | 1 |

During warm-up the fraction is t / w. The decay shapes of wsd are linear, cosine and 1-sqrt (arXiv:2405.18392), each
over the last decay_fraction (2/7 in ArchScale) of the tokens after warm-up. t are tokens and not micro-batches, so a
resume with another micro-batch does not shift the schedule (departure D43).
"""

from __future__ import annotations

from math import cos, pi, sqrt

from lit_gpt.scaling.base import Schedule


def _decay(shape: str, p: float, final: float) -> float:
    """From 1 at p = 0 to `final` at p = 1."""
    if shape == "cosine":
        return final + (1 + cos(pi * p)) / 2 * (1 - final)
    if shape == "1-sqrt":
        return final + (1 - sqrt(p)) * (1 - final)
    return 1 + p * (final - 1)


def fraction(schedule: Schedule, tokens: float) -> float:
    """Learning rate at `tokens` as a fraction of its peak, in [0, 1]."""
    s = schedule
    if tokens < s.warmup_tokens:
        return tokens / s.warmup_tokens
    if s.name == "constant":
        return 1.0
    if tokens >= s.total_tokens:
        return s.final
    p = (tokens - s.warmup_tokens) / (s.total_tokens - s.warmup_tokens)
    if s.name == "wsd":
        start = 1 - s.decay_fraction
        return 1.0 if p <= start else _decay(s.decay, (p - start) / s.decay_fraction, s.final)
    return _decay(s.name, p, s.final)
