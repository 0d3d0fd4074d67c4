"""Scaling laws: one file each, with `LAW` and `fit(data, fixed)`. The file name is the CLI value."""

from lit_gpt.errors import UserError
from lit_gpt.registry import Registry
from lit_gpt.scaling.law import Law

LAWS = Registry("lit_gpt.scaling.laws", "law", "fit(data, fixed)")


def law_named(name: str) -> Law:
    """The law of this name. Raises UserError with suggestions where there is none, and for a file that states none."""
    law = getattr(LAWS.load(LAWS.resolve(name)), "LAW", None)
    if not isinstance(law, Law):
        raise UserError(f"lit_gpt/scaling/laws/{name}.py has no LAW = Law(...); docs/adding.md says what a law has.")
    return law
