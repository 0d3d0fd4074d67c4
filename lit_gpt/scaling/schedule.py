"""Learning-rate schedules as a fraction of the peak, over tokens.

With w = warm-up tokens, T = total tokens, f = final fraction and p = (t - w) / (T - w):

| name | fraction after warm-up |
|---|---|
| linear | 1 + p (f - 1) |
| cosine | f + (1 + cos(pi p)) / 2 * (1 - f) |
| cos_inf | the same down to f at T - e tokens, then f for the last e (arXiv:2509.01440) |
| wsd | 1 until p = 1 - decay_fraction, then the decay shape down to f |
| wsd_s | several times: a constant peak, then the decay shape down to f times that peak (arXiv:2410.05192) |
| constant | 1 |
| none | 1, and there is no warm-up |

During warm-up the fraction is t / w. The decays of wsd are over the last decay_fraction (2/7 in ArchScale) of the
tokens after warm-up, or over the tokens that --decay_tokens gives. Their shapes are these, of x from 0 to 1; all but
exp are f + (1 - f) times what stands here (arXiv:2405.18392 and the code of arXiv:2509.01440):

| linear | cosine | 1-sqrt | square | mirror_cosine | exp |
|---|---|---|---|---|---|
| 1 - x | (1 + cos(pi x)) / 2 | 1 - sqrt(x) | 1 - x^2 | 2 (1 - x) - (1 + cos(pi x)) / 2 | f^x |

t are tokens and not micro-batches, so a resume with another micro-batch does not shift the schedule (departure
D43).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi, sqrt

from lit_gpt.errors import UserError
from lit_gpt.scaling.base import Decay, Schedule

# From 1 at x = 0 to 0 at x = 1.
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda x: (1 + cos(pi * x)) / 2,
    "1-sqrt": lambda x: 1 - sqrt(x),
    "square": lambda x: 1 - x**2,
    "mirror_cosine": lambda x: 2 * (1 - x) - (1 + cos(pi * x)) / 2,
}


def _decay(shape: str, p: float, final: float) -> float:
    """From 1 at p = 0 to `final` at p = 1."""
    if shape == "exp":
        return final**p
    if shape in SHAPES:
        return final + SHAPES[shape](p) * (1 - final)
    return 1 + p * (final - 1)


def fraction(schedule: Schedule, tokens: float) -> float:
    """Learning rate at `tokens` as a fraction of its peak, in [0, 1]."""
    s = schedule
    if tokens < s.warmup_tokens:
        return tokens / s.warmup_tokens
    if s.name in ("constant", "none"):
        return 1.0
    if s.decays:
        return _of_decays(s, tokens)
    end = s.total_tokens - s.constant_end
    if tokens >= end:
        return s.final
    p = (tokens - s.warmup_tokens) / (end - s.warmup_tokens)
    if s.name == "wsd":
        start = 1 - s.decay_fraction
        return 1.0 if p <= start else _decay(s.decay, (p - start) / s.decay_fraction, s.final)
    return _decay("cosine" if s.name == "cos_inf" else s.name, p, s.final)


def _of_decays(s: Schedule, tokens: float) -> float:
    for d in s.decays:
        if tokens <= d.start:
            return d.peak
        if tokens < d.end:
            return d.peak * _decay(s.decay, (tokens - d.start) / (d.end - d.start), s.final)
    return s.decays[-1].peak * s.final


def period_end(schedule: Schedule, tokens: float) -> float:
    """Where the decay ends that comes next after `tokens`: what a step must not look beyond."""
    return next((d.end for d in schedule.decays if d.end > tokens), schedule.total_tokens)


def checked_ends(s: Schedule, batch: int) -> Schedule:
    """The schedule itself. batch: tokens of the longest step.

    Raises UserError for a constant end that leaves no token for the cosine, and for ends that no whole step would
    see: its rate is that of its middle (plan.step_values), so the last one is as far from the end as half of it.
    """
    if s.warmup_tokens + s.constant_end >= s.total_tokens:
        raise UserError(
            f"--cos_inf_tokens {s.constant_end:,} and a warm-up of {s.warmup_tokens:,.0f} tokens leave nothing of a "
            f"budget of {s.total_tokens:,} for the cosine. Lower one of them, or raise --max_tokens."
        )
    if s.name == "cos_inf":
        option, length = f"--cos_inf_tokens {s.constant_end:,}", float(s.constant_end)
    elif s.name == "wsd" and not s.decays:
        share = s.decay_fraction
        option, length = f"--decay_fraction {share:.3g}", share * (s.total_tokens - s.warmup_tokens)
    else:
        return s
    if length <= batch / 2:
        raise UserError(
            f"{option} is about the last {length:,.0f} tokens, and no whole step would see them: half of a step is "
            f"{batch / 2:,.0f}. Give a larger {option.split()[0]} or --max_tokens, or a smaller batch (--total_bsz)."
        )
    return s


def plan_decays(
    ends: Sequence[int], warmup: float, length: int | None, share: float, lower_peaks: bool, batch: int = 1
) -> tuple[Decay, ...]:
    """The decays of wsd_s that end after `ends` tokens.

    length: of each in tokens; None is the last `share` of the tokens after warm-up that are trained by its end, as in
    a wsd run of that budget. lower_peaks: the rate before a decay is sqrt(ends[0] / end) times the peak.
    batch: tokens of the longest step. Raises UserError for a decay that would begin within the warm-up or before the
    decay before it has ended, and for one shorter than a step, which may have no step in it and then would not happen.
    """
    decays, free = list[Decay](), warmup
    for end in ends:
        start = end - (length if length is not None else round(share * (end - warmup)))
        if start < free:
            what = f"the decay before it ends at {free:,.0f}" if decays else f"the warm-up lasts until {warmup:,.0f}"
            raise UserError(
                f"The decay that ends at {end:,} tokens would begin at {start:,}, and {what}. "
                "Give a shorter --decay_tokens, or ends that are further apart."
            )
        if end - start < batch:
            raise UserError(
                f"The decay that ends at {end:,} tokens would have {end - start:,} tokens, fewer than the {batch:,} of "
                "a step. Give a longer --decay_tokens, or a smaller batch."
            )
        decays.append(Decay(start, end, sqrt(ends[0] / end) if lower_peaks else 1.0))
        free = float(end)
    return tuple(decays)
