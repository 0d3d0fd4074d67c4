"""The names that expressions of a study may use: options of the row, what the study derives, and facts of its model."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from lit_gpt.config.cli import build_parser, parse
from lit_gpt.config.words import read_tokens
from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.expressions import evaluate
from lit_gpt.lab.facts import NOT_OF_THE_MODEL, model_facts, planned, tokens_of
from lit_gpt.lab.rows import words_of

MODEL_FACTS = ("parameters", "parameters_all", "width", "context", "flops_per_token")
FACTS = (*MODEL_FACTS, "tokens", "flops", "batch", "budget", "steps")


class Values:
    """Values by name of one row, each computed when it is asked for.

    options: the row's. extra: values of axes that are no options. derived: name -> expression. budget: (kind, amount),
    or None where max_tokens or the default says how long it trains. Raises UserError for a name that nothing has, and
    for one that needs itself.
    """

    def __init__(
        self,
        options: dict[str, Any],
        derived: Mapping[str, str],
        budget: tuple[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        self.options, self.derived, self.budget, self.extra = options, derived, budget, extra or {}
        self._asked: list[str] = []
        self._typed: Any = None

    def __call__(self, name: str) -> Any:
        if name in self._asked:
            raise UserError(f"{' -> '.join([*self._asked, name])}: these expressions of the study need each other.")
        self._asked.append(name)
        try:
            return self._value(name)
        finally:
            self._asked.pop()

    def tokens(self) -> int:
        """How long the row trains."""
        if self.budget is not None:
            return tokens_of(*self.budget, self.settled(NOT_OF_THE_MODEL))
        if "max_tokens" in self.options:
            return round(read_tokens(self.options["max_tokens"]))
        return planned(self.options).plan.tokens

    def settled(self, without: Collection[str] = ()) -> dict[str, Any]:
        """The options of the row, with those that are derived, but `without`."""
        return self.options | {key: self(key) for key in self.derived if is_option(key) and key not in without}

    def _value(self, name: str) -> Any:
        if name in self.derived:
            value = evaluate(self.derived[name], self)
            if value is None:
                raise UserError(f"{name}: {self.derived[name]!r} has no value, as an option in it has none. Give one.")
            return value
        if name in self.options or name in self.extra:
            return as_number(self.extra.get(name, self.options.get(name)))
        if name in FACTS:
            return self._fact(name)
        if short := [key for key in (*self.derived, *self.options, *self.extra) if key.rpartition(".")[2] == name]:
            return self(short[0])
        return self._default(name)

    def _fact(self, name: str) -> Any:
        if name in MODEL_FACTS:
            return model_facts(self.settled(NOT_OF_THE_MODEL))[name]
        if name == "budget":
            return as_number(self.budget[1]) if self.budget else self.tokens()
        if name == "tokens":
            return self.tokens()
        if name == "flops":
            return self.tokens() * model_facts(self.settled(NOT_OF_THE_MODEL))["flops_per_token"]
        plan = planned({**self.settled(), "max_tokens": self.tokens()}).plan
        return plan.batch_tokens if name == "batch" else plan.steps

    def _default(self, name: str) -> Any:
        """What an option has that the row does not name: from its recipe (--config), or its default."""
        known = build_parser().run_options
        if not is_option(name):
            allowed = {*self.options, *self.extra, *self.derived, *FACTS, *known}
            raise UserError(
                f"There is no {name!r} in a row of this study.{did_you_mean(name, allowed)} Expressions may name "
                f"options, what is derived, and {', '.join(FACTS)}."
            )
        if self._typed is None:
            self._typed = parse(words_of(self.options))
        value = self._typed
        for part in name.split("."):
            value = getattr(value, part)
        return value


def is_option(name: str) -> bool:
    """Whether pretrain.py has an option of this name."""
    return name in build_parser().run_options or name == "config"


def as_number(value: Any) -> Any:
    """A text that is a number, such as 1e-3 or 10B, as one; anything else as it is."""
    if not isinstance(value, str):
        return value
    for read in (int, float, read_tokens):
        try:
            return read(value)
        except ValueError:
            continue
    return value


def _short(options: Mapping[str, Any]) -> str:
    """Options such as --mixer_options as a part of a folder's name: gate-true_expand-2."""
    return "_".join(
        _short(value) if isinstance(value, Mapping) else f"{name}-{json.dumps(value)}".replace('"', "")
        for name, value in options.items()
    )


def filled(template: str, values: Values) -> str:
    """A text with {expression} or {expression:format} in it; numbers and mappings are short without a format.

    Raises UserError for an expression that has no value, and for a format that does not fit it.
    """

    def value(found: re.Match[str]) -> str:
        computed = evaluate(found["expression"], values)
        computed = _short(computed) if isinstance(computed, Mapping) else computed
        form = found["form"] or ("g" if isinstance(computed, float) else "")
        try:
            return format(computed, form)
        except (ValueError, TypeError) as error:
            raise UserError(f"The name {template!r} cannot be written: {error}.") from error

    return re.sub(r"\{(?P<expression>[^{}:]+)(?::(?P<form>[^{}]*))?\}", value, template)
