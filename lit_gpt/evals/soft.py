"""Soft metrics of lm-eval's tasks: how likely the right answer was, where accuracy only says whether it won.

Small models are at chance in accuracy long before the probability of the right answer stops growing ("Are Emergent
Abilities of Large Language Models a Mirage?", arXiv:2304.15004; OLMES and the ladders of arXiv:2412.04403 fit these).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lit_gpt.evals.results import Metric


def soft_metrics(samples: Iterable[Mapping[str, Any]]) -> dict[str, Metric]:
    """From lm-eval's logged examples of one task; {} for tasks without log-likelihoods.

    soft/bits_per_byte: -log2 p of the right answer over its bytes. soft/choice_p: its probability among the choices,
    by log-likelihood. soft/choice_p_per_byte: the same with log-likelihoods per byte, as acc_norm compares them.
    """
    seen, rows = set(), []
    for sample in samples:
        if sample["doc_id"] not in seen:  # an example is logged once for each filter
            seen.add(sample["doc_id"])
            rows.append(_of_example(sample))
    if not rows or not all(rows):
        return {}
    better = {"soft/bits_per_byte": "lower"}
    return {name: Metric.mean([row[name] for row in rows], better.get(name, "higher")) for name in rows[0]}


def _of_example(sample: Mapping[str, Any]) -> dict[str, float]:
    asked = list(zip(sample["arguments"], sample["resps"]))
    if any(args[0] for args, _ in asked):  # acc_mutual_info asks for each answer once more, after nothing
        asked = [(args, resp) for args, resp in asked if args[0]]
    if not asked or not all(_is_scored(resp) for _, resp in asked):
        return {}
    texts, totals = zip(*((args[1], resp[0][0]) for args, resp in asked))
    right = _right(sample["target"], texts)
    if right is None:
        return {}
    sizes = [max(1, len(text.encode())) for text in texts]
    found = {"soft/bits_per_byte": -totals[right] / sizes[right] / math.log(2)}
    if len(texts) > 1:
        found["soft/choice_p"] = softmax(totals)[right]
        found["soft/choice_p_per_byte"] = softmax([t / n for t, n in zip(totals, sizes)])[right]
    return found


def _is_scored(resp: Any) -> bool:
    """Whether a request was answered by (ln p, greedy)."""
    return bool(resp) and isinstance(resp[0], Sequence) and not isinstance(resp[0], str) and len(resp[0]) == 2


def _right(target: Any, texts: Sequence[str]) -> int | None:
    """Which of the continuations is the answer; None where that cannot be told.

    A text is looked up among the choices, as lm-eval does, and is a number only where it is none of them. One text
    after several contexts, as in winogrande, does not say which context is right.
    """
    if len(texts) == 1:
        return 0
    if isinstance(target, str):
        alike = [i for i, text in enumerate(texts) if text.strip() == target.strip()]
        if alike or not target.strip().isdecimal():
            return alike[0] if len(alike) == 1 else None
        target = int(target)
    return target if isinstance(target, int) and 0 <= target < len(texts) else None


def softmax(values: Sequence[float]) -> list[float]:
    """exp(v) over their sum, which is 1; as many as there are values."""
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / sum(weights) for w in weights]
