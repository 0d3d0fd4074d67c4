"""APOLLO-Mini (arXiv:2412.05270): APOLLO with rank 1 and one factor per tensor; almost SGD's memory."""

from __future__ import annotations

from dataclasses import replace

from lit_gpt.optim import apollo
from lit_gpt.optim._wrapped import Group, Wrapped
from lit_gpt.scaling.base import Plan

ENTRY = replace(apollo.ENTRY, knobs={"rank": 1, "scale": 128.0, "scale_type": "tensor"})


def build(groups: list[Group], plan: Plan) -> Wrapped:
    """APOLLO-Mini over role groups; --optimizer_args are those of Apollo."""
    return ENTRY.build(groups, plan)
