"""The parts of lm-eval's interface that lit_gpt.evals.lm_eval_model is made for, where lm-eval is not installed.

As in lm-eval 0.4.13: api/instance.py, api/model.py (TemplateLM) and models/utils.py, of causal models, without bars.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple


@dataclass
class Instance:
    """A request to a model."""

    request_type: str
    doc: dict[str, Any]
    arguments: tuple[Any, ...]
    idx: int
    metadata: tuple[str | None, int | None, int | None] = (None, None, None)

    args = property(lambda self: self.arguments if isinstance(self.arguments, tuple) else (self.arguments,))
    task_name = property(lambda self: self.metadata[0])
    doc_id = property(lambda self: self.metadata[1])


class _Hook(NamedTuple):
    """Where answers are remembered; here nowhere."""

    add_partial: Any = lambda *_: None


class TemplateLM:
    """What turns texts into tokens for a model."""

    def __init__(self) -> None:
        self.cache_hook = _Hook()

    def loglikelihood(self: Any, requests: list[Instance], disable_tqdm: bool = False) -> Any:
        tokens = []
        for context, continuation in (request.args for request in requests):
            if context == "":
                after = self.tok_encode(continuation, add_special_tokens=False)
                alone = self.prefix_token_id != after[0]
                before, after = ([self.prefix_token_id], after) if alone else (after[:1], after[1:])
            else:
                before, after = self._encode_pair(context, continuation)
            tokens.append(((context, continuation), before, after))
        return self._loglikelihood_tokens(tokens, disable_tqdm=disable_tqdm)

    def _encode_pair(self: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
        kept = context.rstrip()
        continuation, context = context[len(kept) :] + continuation, kept
        before = self.tok_encode(context)
        return before, self.tok_encode(context + continuation)[len(before) :]


def handle_stop_sequences(until: Any, eos: str | None) -> list[str]:
    """A list of texts."""
    until = [until] if isinstance(until, str) else [] if until is None else until
    if not isinstance(until, list):
        raise ValueError(f"Expected `kwargs['until']` to be of type Union[str,list] but got {until}")
    return until if eos is None or eos in until else [*until, eos]


def normalize_gen_kwargs(given: dict[str, Any], default_max_gen_toks: int = 256) -> dict[str, Any]:
    """temperature is there only where it was given, or sampling was refused. Of `until: null` it makes [None]."""
    until = given.get("until", [])
    found = {"do_sample": None, **given, "until": until if isinstance(until, list) else [until]}
    if found["do_sample"] is None:
        found["do_sample"] = float(given.get("temperature", 0)) > 0
    most = (found.pop(name, None) for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"))
    found["max_gen_toks"] = next((int(n) for n in list(most) if n is not None), default_max_gen_toks)
    return found | ({"temperature": 0.0} if given.get("do_sample") is False else {})


def modules() -> dict[str, ModuleType]:
    """By name, for sys.modules."""
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.instance", "lm_eval.api.model", "lm_eval.models.utils")
    here, found = sys.modules[__name__], {name: ModuleType(name) for name in (*names, "lm_eval.models")}
    for name in names[2:]:
        vars(found[name]).update(vars(here) | {"__name__": name})
    return found
