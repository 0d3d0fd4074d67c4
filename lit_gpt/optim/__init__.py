"""Optimizers: one file each, `build(groups, plan, device) -> Optimizer`. The file name is the CLI value."""

from lit_gpt.registry import Registry

OPTIMIZERS = Registry("lit_gpt.optim", "optimizer", exclude=("groups", "external"))
