"""Expressions over the columns of runs: `depth == 8 and loss < 2` chooses runs, `tokens / parameters` makes a column.

An expression is that of lit_gpt/lab/expressions.py. A name is a column (lit_gpt/lab/runs.py), an option of pretrain.py
such as optimizer or base_hps.eta0, an evaluation such as hellaswag/acc, or name, state and folder of the run; between
backquotes it may have any characters. What a run does not have is None.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.expressions import Expression, read_expression
from lit_gpt.lab.runs import COLUMNS, Run

OF_A_RUN = ("name", "state", "folder")


def matching(runs: Sequence[Run], text: str) -> list[Run]:
    """The runs for which an expression is true. Raises UserError for text that is none, or names what no run has."""
    return [run for run, value in zip(runs, _computed(runs, text, names_of(runs))) if value]


def values(runs: Sequence[Run], text: str) -> list[Any]:
    """The value of a column, a setting or an expression for each run; None where a run does not have it."""
    known = names_of(runs)
    return [_of_run(run, text) for run in runs] if text in known else _computed(runs, text, known)


def numbers(runs: Sequence[Run], text: str) -> np.ndarray:
    """As `values`, (runs,), NaN where it is no number."""
    found = values(runs, text)
    return np.array([float(v) if isinstance(v, int | float) else math.nan for v in found], dtype=np.float64)


def names_of(runs: Sequence[Run]) -> set[str]:
    """Every name that an expression over these runs may have."""
    return {*COLUMNS, *OF_A_RUN, *(key for run in runs for part in (run.numbers, run.settings) for key in part)}


def _computed(runs: Sequence[Run], text: str, known: set[str]) -> list[Any]:
    expression = _read(text, known)
    return [expression(_names(run, text, known), f"the run {run.name}") for run in runs]


def _names(run: Run, text: str, known: set[str]) -> Callable[[str], Any]:
    """What a name stands for. It raises UserError for one that no run has."""

    def value_of(name: str) -> Any:
        if name not in known:
            raise UserError(
                f"{text!r}: no run has {name!r}.{did_you_mean(name, known)} "
                "Put text in quotes; python -m lit_gpt.tools.runs FOLDER --names lists the names."
            )
        return _of_run(run, name)

    return value_of


def _of_run(run: Run, name: str) -> Any:
    if name in OF_A_RUN:
        value = getattr(run, name)
        return str(value) if name == "folder" and value else value
    return run.value(name)


def _read(text: str, known: set[str]) -> Expression:
    quoted: list[str] = []

    def keep(found: re.Match[str]) -> str:
        quoted.append(found[1])
        return f"quoted__{len(quoted) - 1}"

    return read_expression(re.sub("`([^`]+)`", keep, text), _OddNames(quoted, known).visit, text)


@dataclass(frozen=True)
class _OddNames(ast.NodeTransformer):
    """Makes one name of what Python's grammar reads otherwise.

    quoted: what stood between backquotes, which the text has as quoted__0 and so on. known: names with a slash, such as
    hellaswag/acc and phonebook/acc@480, which would be arithmetic.
    """

    quoted: Sequence[str]
    known: set[str]

    def visit_Name(self, node: ast.Name) -> ast.Name:
        place = re.fullmatch(r"quoted__(\d+)", node.id)
        return ast.Name(self.quoted[int(place[1])]) if place and int(place[1]) < len(self.quoted) else node

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        whole = ast.unparse(node).replace(" ", "")
        return ast.Name(whole) if whole in self.known else self.generic_visit(node)
