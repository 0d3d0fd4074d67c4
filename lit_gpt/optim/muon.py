"""Muon (Jordan 2024, kellerjordan.github.io/posts/muon; arXiv:2502.16982): orthogonal momentum for matrices.

For weights X with gradient G, learning rate eta, decay lambda and momentum mu, a step is

    M <- mu M + G
    O  = NewtonSchulz(mu M + G)                  # close to U V^T, where U S V^T is the argument
    X <- (1 - eta lambda) X - eta f O            # f: a factor by the shape of X, see `adjust`

It trains matrices, experts (each expert is a matrix of its own) and routers. AdamW trains every other role.

`muon` in engine/reference.py is this step in ten lines of numpy; read it first. The fast one is put together from
Orthogonal (engine/directions.py: M and O), Step (engine/updates.py: f, decay and the new X) and ops/newton_schulz.py;
RoleOptimizer (engine/role_optimizer.py) runs them for every role. Under FSDP2 each process has some rows of a matrix;
for O the matrix is put together on one process, which sends the rows of the result back (`assemble` and `scatter`).
"""

from __future__ import annotations

from typing import Any

from lit_gpt.optim.engine.rules import MakeRule, adamw_rule, orthogonal_rule
from lit_gpt.optim.engine.updates import Step
from lit_gpt.scaling.base import Plan
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, copies, hidden, taking

MUON = UpdateRule("muon", copies(1), taking())  # it keeps one copy of the parameter's shape: the momentum
# What the Plan must know before there is a model; OptimizerFacts explains every field.
FACTS = OptimizerFacts(
    hidden(MUON),
    steps="spectral",  # with f = sqrt(R / C) one learning rate fits every width (arXiv:2310.17813)
    steps_option="adjust",  # --optimizer_args.adjust may choose another f, and with it another growth
    fits_hyperp=True,
    plan_momentum=True,  # mu is --base_hps.muon_beta
    cautious_decay=True,
)


def rules(plan: Plan, *, adjust: str = "spectral", **options: Any) -> dict[str, MakeRule]:
    """How the parameters of each update rule that FACTS names are stepped.

    adjust: f for R x C (fan_out x fan_in), one of spectral, sqrt(R / C); clip, max(1, sqrt(R / C)); rms,
    0.2 sqrt(max(R, C)); none, 1. The scaling rules know how each of them grows with the width
    (optimizer_facts.GROWTH). options: see rules.orthogonal_rule.
    """
    update = Step(plan.cautious_weight_decay, adjust)
    return {"muon": orthogonal_rule(plan, update, **options), "adamw": adamw_rule(plan)}
