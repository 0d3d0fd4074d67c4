"""Evaluations of this project's own: one file each, whose name is what a user types (docs/adding.md).

A file has a dataclass Options, whose fields are the flags, and evaluate(judged, options) -> Outcome. It may have
check(judged, options), which raises UserError for what the model or its tokenizer cannot do: a run that is to be
evaluated while it trains asks it at its start. The model's weights may have no values there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_gpt.evals.results import Metric
from lit_gpt.registry import Registry

if TYPE_CHECKING:
    from lit_gpt.evals.judged import Judged
else:
    Judged = Any  # the flags of an evaluation are read without torch

TASKS = Registry(__name__, "evaluation", "evaluate(judged, options)")


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found.

    examples: how many questions. metrics: name -> figure; a figure at a length is named `name@length`, from which
    plots over length are drawn. settings: what the figures depend on besides the options. sequences: the tokens that
    the model was asked about, an array for each question; --decontaminate looks for them in the training data.
    answers: of each question, the figures by the names of the metrics that are means of them; --answers keeps them, so
    that models can be compared question by question.
    """

    examples: int
    metrics: dict[str, Metric]
    settings: dict[str, Any] = field(default_factory=dict)
    sequences: Sequence[np.ndarray] = ()
    answers: Sequence[dict[str, float]] = ()
