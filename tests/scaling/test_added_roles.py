"""What every rule says of value tables, of projections that start at zero, and of what has no size that could grow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pytest import approx
from test_rules import transfer

from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.preflight.resolved_run import resolve_run
from lit_gpt.scaling.base import HIDDEN, LEARNED_ROLES, UNDECAYED, Init
from lit_gpt.scaling.rules import RULES

SINGLE = ("gate", "scalar", "residual_scalar")


def both(rule, **situation):
    """The same model at the base width and at twice that, with an optimizer that the rule takes."""
    optimizer = "muonh" if rule.startswith("hyperp") else "adamw"
    return [transfer(rule, optimizer, base_width=1024, width=width, **situation) for width in (1024, 2048)]


@pytest.mark.parametrize("rule", RULES.names())
def test_their_rates_and_starts_do_not_follow_the_width(rule):
    base, wide = both(rule)
    assert set(base.lr) == set(LEARNED_ROLES)
    published = {"value_table": 0.5**0.5} if rule == "baseline" else {}  # its rates of tables fall with the root
    for role in ("value_table", *SINGLE):
        assert wide.lr[role] == approx(base.lr[role] * published.get(role, 1.0))
    assert wide.init["value_table"] == base.init["value_table"] and base.init["value_table"].std > 0
    assert wide.init["output"] == base.init["output"] == Init("zeros")


@pytest.mark.parametrize("rule", RULES.names())
def test_numbers_without_a_size_do_not_decay(rule):
    for found in both(rule):
        independent = found.weight_decay if found.independent_decay is None else found.independent_decay
        assert [decays[role] for decays in (found.weight_decay, independent) for role in UNDECAYED] == [0] * 6


@pytest.mark.parametrize("rule", RULES.names())
def test_outputs_are_trained_as_the_matrices_that_they_are(rule):
    assert "output" in HIDDEN
    for found in both(rule):
        assert found.lr["output"] == found.lr["matrix"] and found.weight_decay["output"] == found.weight_decay["matrix"]


@pytest.mark.parametrize("rule", RULES.names())
@pytest.mark.parametrize("tied", [False, True])
def test_a_given_start_of_the_token_table(rule, tied):
    """It is taken as it is, also where muP would shrink the start of a tied table of a narrow model."""
    optimizer = "muonh" if rule.startswith("hyperp") else "adamw"
    for width in (128, 1024, 2048):
        found = transfer(rule, optimizer, base_width=1024, width=width, tied=tied, embedding_init_std=0.8)
        assert found.init["embedding"] == Init("normal", 0.8)


def test_a_sphere_refuses_projections_at_zero():
    """They would stay there for good; the family has zero outputs by itself, so the way out is an option."""
    line = "--train_model baseline --depth 8 --train_name x --optimizer muonh --vocab_size 32000 --dry_run true"
    words: list[str] = [*line.split()]
    run = parse(words)
    with pytest.raises(UserError, match=r"the output would start at zero and never move\. Give --zero_output false"):
        resolve_run(run, 1)
    assert resolve_run(replace(run, zero_output=False), 1).plan.counts["output"] == 0
