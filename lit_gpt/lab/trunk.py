"""One trunk of constant rate for many budgets, with a decay in a fork at each (WSD, arXiv:2405.18392, section 5).

    trunk: {chinchilla: [0.5, 1, 2, 4], decay_fraction: 0.2}     # or tokens, or flops

Budgets of b tokens cost b runs by themselves; here the constant part is trained once. It is cut into runs that go on
from one another, since a fork starts from the end of a run: NAME_trunk1 trains to the first decay, NAME_trunk2 from
there to the second, and so on; NAME_b1 is the fork of NAME_trunk1 that decays to the first budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.lab.facts import BUDGETS, planned, tokens_of
from lit_gpt.lab.rows import Row, word_of, words_of

DECAY_FRACTION = 0.2  # of all tokens; 10 to 20 percent is enough (arXiv:2405.18392, section 4)


def trunk_rows(name: str, options: Mapping[str, Any], given: Mapping[str, Any]) -> list[Row]:
    """The trunk's parts and the forks, each after the row that it goes on from.

    options: of all of them, without a budget. Raises UserError for budgets that leave no room for their decays.
    """
    ends, fraction = _ends(options, given), given.get("decay_fraction", DECAY_FRACTION)
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise UserError(f"trunk: decay_fraction is {fraction}; it must be a number above 0 and below 1.")
    shared, batch = _settled(options, round((1 - fraction) * ends[0]))
    kept = {"keep_last": 1} if word_of(options.get("keep_last")) == "0" else {}  # of the trunk, which others go on from
    rows, before, done = list[Row](), None, 0
    for number, end in enumerate(ends, 1):
        start = max(round((1 - fraction) * end / batch), 1) * batch  # whole steps, so that no part trains a bit more
        if start <= done:
            raise UserError(f"trunk: two budgets at {end:,} tokens are less than a batch of {batch:,} apart.")
        decay = max(round((end - start) / batch), 1) * batch
        constant = {**shared, **kept, "schedule": "constant", "max_tokens": start}
        rows.append(Row(f"{name}_trunk{number}", constant, before, done, start, "trunk"))
        before, done = rows[-1].name, start
        decayed = {**shared, "schedule": "wsd", "decay_tokens": decay}
        rows.append(Row(f"{name}_b{number}", decayed, before, start, start + decay, "fork"))
    return rows


def _ends(options: Mapping[str, Any], given: Mapping[str, Any]) -> list[int]:
    kinds = [key for key in given if key in BUDGETS]
    if len(kinds) != 1 or not set(given) <= {*kinds, "decay_fraction"}:
        raise UserError(f"trunk needs one of {', '.join(BUDGETS)} with a list of budgets, and may have decay_fraction.")
    amounts = given[kinds[0]] if isinstance(given[kinds[0]], list) else [given[kinds[0]]]
    ends = [tokens_of(kinds[0], amount, options) for amount in amounts]
    if ends != sorted(set(ends)) or not ends:
        raise UserError(f"trunk: the budgets {amounts} must rise, each above the one before.")
    return ends


def _settled(options: Mapping[str, Any], first: int) -> tuple[dict[str, Any], int]:
    """The options with the batch and warm-up of the first part, where they are not typed, and the tokens of a batch.

    Their defaults follow from the budget, and the parts of a trunk, whose budgets differ, must be as if they were one
    run.
    """
    typed = parse(words_of(options))
    plan = planned({**options, "schedule": "constant", "max_tokens": first}).plan
    settled: dict[str, Any] = {} if typed.total_bsz is not None else {"total_bsz": plan.batch_tokens}
    if typed.base_hps.warmup_tokens is None:
        settled["base_hps.warmup_tokens"] = plan.schedule.warmup_tokens
    return {**options, **settled}, plan.batch_tokens
