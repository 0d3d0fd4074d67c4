"""APOLLO-Mini (arXiv:2412.05270): APOLLO with rank 1 and one factor per tensor; almost SGD's memory."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.optim import apollo
from lit_gpt.scaling.optimizer_facts import OptimizerFacts, UpdateRule, hidden

OPTIONS = {"rank": 1, "scale": 128.0, "scale_type": "tensor"}
RULE = UpdateRule("apollo_mini", lambda shape, args: apollo.memory(shape, {"rank": 1, **args}), apollo.RULE.constants)
FACTS = OptimizerFacts(hidden(RULE), gathered=True)
ENTRY = replace(apollo.ENTRY, facts=FACTS, options=OPTIONS)
