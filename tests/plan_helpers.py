"""Runs, counted models and Plans for the tests of this folder."""

from __future__ import annotations

from typing import Any

from jsonargparse import CLI

from lit_gpt import architectures
from lit_gpt.config.model import ModelConfig
from lit_gpt.config.resolve import resolve, translate_aliases
from lit_gpt.config.run import BaseHyperparameters, RunConfig
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.plan import Counted, StepValues, build_plan
from lit_gpt.scaling.schedule import fraction


def typed(line: str) -> RunConfig:
    """What a command line means, parsed as an entry point parses it, before resolving."""
    return CLI(RunConfig, as_positional=False, args=translate_aliases(line.split()))  # type: ignore[return-value]


def run_of(train_name: str = "plain", hps: dict[str, Any] | None = None, **fields: Any) -> RunConfig:
    """A resolved run; hps changes base hyper-parameters."""
    return resolve(RunConfig(train_name=train_name, base_hps=BaseHyperparameters(**(hps or {})), **fields))[0]


def counted(config: ModelConfig) -> Counted:
    """The config with a hand count of a gated-MLP attention model, norms left out.

    Per layer: q and o are 2 n H h, k and v are 2 n K h, the feed-forward network 3 n I.
    """
    c = config
    attention = 2 * c.n_embd * (c.n_head + c.n_kv_head) * c.head_dim
    body = c.depth * (attention + 3 * c.n_embd * c.intermediate_size)
    table = c.vocab_size * c.n_embd
    head = 0 if c.tie_embeddings else table
    total = body + table + head
    return Counted(c, {"total": total, "active": total, "embedding": table, "head": head, "matrix": body})


def model_of(run: RunConfig, depth: int, aspect_ratio: int | None = None) -> Counted:
    """The run's family at a depth, with those flags that a Plan depends on."""
    config = architectures.build(run.train_model, depth, aspect_ratio=aspect_ratio, block_size=run.ctx_len)
    return counted(config.replace(tie_embeddings=bool(run.tie_embeddings)))


def plan_of(run: RunConfig, ranks: int = 1) -> Plan:
    """The Plan of a resolved run, with its base model as preflight/resolved_run.py has it."""
    hps = run.base_hps
    model, base = model_of(run, run.depth, run.ar), model_of(run, hps.d0, hps.ar0 or run.ar)
    return build_plan(run, OPTIMIZERS.facts(run.optimizer or "adamw"), model, base, ranks)


def lr_fraction(plan: Plan, tokens_seen: int, step: StepValues) -> float:
    """The schedule in the middle of the part of the budget that this step trains on."""
    return fraction(plan.schedule, tokens_seen + min(step.batch_tokens, plan.tokens - tokens_seen) / 2)
