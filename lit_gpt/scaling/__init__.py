"""Scaling rules: one file each, `transfer(situation) -> Transfer`. The file name is the CLI value."""

from lit_gpt.registry import Registry

RULES = Registry(
    "lit_gpt.scaling",
    "scaling rule",
    exclude=("base", "batch", "budget", "decay", "fit", "optimizer_facts", "plan", "schedule"),
)
