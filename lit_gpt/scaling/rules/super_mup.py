"""muP++ with a warm-up that grows with the token budget and Adam betas that follow the schedule.

Warm-up: warmup_tokens / t0 * tokens. Betas of the decayed groups, with s = learning rate /
peak: beta1 = 0.95 - 0.10 s, beta2 = 0.975 - 0.05 s (ArchScale's).
The momentum of Muon and its relatives is no beta of Adam's and stays.
"""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.scaling.base import Situation, Transfer
from lit_gpt.scaling.rules import mupp


def transfer(s: Situation) -> Transfer:
    """Factors of muP++ plus the two schedules above."""
    return replace(mupp.transfer(s), warmup="proportional", scheduled_betas=True)


def betas(fraction: float) -> tuple[float, float]:
    """(beta1, beta2) when the learning rate is `fraction` of its peak."""
    return 0.95 - 0.10 * fraction, 0.975 - 0.05 * fraction
