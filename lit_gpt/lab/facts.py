"""What is known of a row before it runs: sizes and FLOPs of its model, and the tokens that a budget means for it."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lit_gpt.config.cli import parse
from lit_gpt.config.words import read_tokens
from lit_gpt.errors import UserError
from lit_gpt.lab.rows import words_of
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run

# Tokens per parameter of the compute-optimal models of arXiv:2203.15556, and of marin's and OLMo-core's ladders.
CHINCHILLA = 20
BUDGETS = ("tokens", "flops", "chinchilla")
# Options that decide nothing about the model, so that rows which differ in them alone share one count of it.
NOT_OF_THE_MODEL = (
    "seed",
    "max_tokens",
    "total_bsz",
    "schedule",
    "decay",
    "decay_at",
    "decay_tokens",
    "decay_fraction",
    "fork_from",
    "base_hps.eta0",
    "base_hps.weight_decay",
    "base_hps.warmup_tokens",
)


def planned(options: Mapping[str, Any], ranks: int = 1) -> ResolvedRun:
    """The run of these options with its Plan and memory, without its data. Raises UserError as pretrain.py does."""
    return resolve_run(replace(parse(words_of(options)), dry_run=True), ranks)


def model_facts(options: Mapping[str, Any]) -> dict[str, float]:
    """Of the model of these options: parameters (active ones without embeddings), parameters_all, width, depth, context
    and flops_per_token (forward and backward, with head and attention).
    """
    kept = {key: value for key, value in options.items() if key not in NOT_OF_THE_MODEL}
    return _counted(tuple(words_of({**kept, "max_tokens": "1e15", "base_hps.warmup_tokens": 0})))


@functools.cache
def _counted(words: tuple[str, ...]) -> dict[str, float]:
    resolved = resolve_run(replace(parse(list(words)), dry_run=True), 1)
    plan, counts = resolved.plan, resolved.plan.counts
    return {
        "parameters": counts["non_embedding"] - counts["total"] + counts["active"],
        "parameters_all": counts["total"],
        "width": resolved.model.n_embd,
        "depth": plan.depth,
        "context": plan.context,
        "flops_per_token": plan.model_flops_per_token,
    }


def tokens_of(kind: str, amount: Any, options: Mapping[str, Any]) -> int:
    """The training tokens of a budget: of tokens, of FLOPs, or in multiples of 20 tokens per parameter.

    Parameters are the active ones without embeddings, FLOPs those of all matrix products, as COLUMNS of lab/runs.py
    says. Raises UserError for another kind, and for an amount that is none.
    """
    try:
        number = read_tokens(str(amount).removesuffix("x") if kind == "chinchilla" else amount)
    except ValueError as error:
        raise UserError(f"The budget {amount!r} of {kind} is no number such as 1e18, 10B or 0.5.") from error
    if not 0 < number < math.inf:
        raise UserError(f"The budget {amount!r} of {kind} must be above 0 and finite.")
    if kind == "tokens":
        return round(number)
    facts = model_facts(options)
    if kind == "chinchilla":
        return round(number * CHINCHILLA * facts["parameters"])
    return round(number / facts["flops_per_token"])
