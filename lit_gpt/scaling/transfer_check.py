"""Whether what a scaling rule answers can be trained with: a rule of one's own may leave out a role, or give no number.

A Plan made of such an answer would train with it in silence, or fail far from the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite
from typing import Any, get_args

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.scaling.base import LEARNED_ROLES, Init, InitKind, Multipliers, Transfer


def checked(rule: str, transfer: Any) -> Transfer:
    """What the rule answered. Raises UserError for what is no Transfer, and for roles and numbers that cannot be."""
    if not isinstance(transfer, Transfer):
        raise UserError(f"transfer of the rule {rule!r} returned {type(transfer).__name__}; return a Transfer.")
    where = f"The rule {rule!r} has a Transfer whose"
    for name in ("lr", "weight_decay", "independent_decay"):
        if (factors := getattr(transfer, name)) is not None:
            _check_roles(f"{where} {name}", factors)
            if missing := [role for role in LEARNED_ROLES if role not in factors]:
                raise UserError(f"{where} {name} has nothing for {', '.join(missing)}; every role needs a factor.")
            for role, factor in factors.items():
                _check_number(f"{where} {name} of {role}", factor)
    for role, factor in transfer.eps.items():
        _check_number(f"{where} eps of {role}", factor)
    _check_roles(f"{where} init", transfer.init)
    for role, start in transfer.init.items():
        if not isinstance(start, Init) or start.kind not in get_args(InitKind):
            kinds = ", ".join(get_args(InitKind))
            raise UserError(f"{where} init of {role} is {start!r}; it must be an Init whose kind is one of {kinds}.")
        _check_number(f"{where} init of {role} has a std that", start.std)
    for field in fields(Multipliers):
        if (value := getattr(transfer.multipliers, field.name)) is not None:
            _check_number(f"{where} multiplier {field.name}", value)
    return transfer


def _check_roles(what: str, by_role: Mapping[str, Any]) -> None:
    for role in by_role:
        if role not in LEARNED_ROLES:
            hint = did_you_mean(role, LEARNED_ROLES)
            raise UserError(f"{what} names {role!r}, which is no role.{hint} The roles are {', '.join(LEARNED_ROLES)}.")


def _check_number(what: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not isfinite(value) or value < 0:
        raise UserError(f"{what} is {value!r}; it must be a finite number of at least 0.")
