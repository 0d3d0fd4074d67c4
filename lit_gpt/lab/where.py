"""Expressions over the columns of runs: `depth == 8 and loss < 2` chooses runs, `tokens / parameters` makes a column.

An expression is Python's, with numbers, text in quotes, names, comparisons, `and`, `or`, `not`, `in`, arithmetic and
the functions below, and nothing else. A name is a column (lit_gpt/lab/runs.py), an option of pretrain.py such as
optimizer or base_hps.eta0, an evaluation such as hellaswag/acc, or name, state and folder of the run; between
backquotes it may have any characters. What a run does not have is None: arithmetic with it is None, and a comparison
with it is false.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lit_gpt.errors import UserError, did_you_mean
from lit_gpt.lab.runs import COLUMNS, Run

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("log", "log2", "log10", "exp", "sqrt", "floor", "ceil")},
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
}
ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: float(a) ** float(b),  # of whole numbers, 9 ** 9 ** 9 would not end
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
OF_A_RUN = ("name", "state", "folder")
LONGEST = 2000  # characters of an expression
HELP = 'Write comparisons such as "depth == 8 and loss < 2", with text in quotes'


@dataclass(frozen=True)
class Expression:
    """What was typed, read once. names: the columns and settings that it reads."""

    text: str
    tree: ast.expr
    quoted: tuple[str, ...]  # what stood between backquotes

    def __call__(self, run: Run, known: set[str]) -> Any:
        """Its value for one run. known: the names that any run has; another name raises UserError."""
        try:
            return _Evaluation(self, run, known).value(self.tree)
        except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
            raise UserError(f"{self.text!r} cannot be computed for the run {run.name} ({error}). {HELP}.") from error


def read_expression(text: str) -> Expression:
    """Raises UserError for text that is none."""
    quoted: list[str] = []

    def keep(found: re.Match[str]) -> str:
        quoted.append(found[1])
        return f"quoted__{len(quoted) - 1}"

    try:
        if len(text) > LONGEST:
            raise ValueError(f"it has more than {LONGEST} characters")
        return Expression(text, ast.parse(re.sub("`([^`]+)`", keep, text.strip()), mode="eval").body, tuple(quoted))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        raise UserError(f"{text[:200]!r} is no expression ({why}). {HELP}, and == for equal.") from error


def matching(runs: Sequence[Run], text: str) -> list[Run]:
    """The runs for which an expression is true. Raises UserError for text that is none, or names what no run has."""
    expression, known = read_expression(text), names_of(runs)
    return [run for run in runs if expression(run, known)]


def values(runs: Sequence[Run], text: str) -> list[Any]:
    """The value of a column, a setting or an expression for each run; None where a run does not have it."""
    known = names_of(runs)
    if text in known:
        return [_of_run(run, text) for run in runs]
    expression = read_expression(text)
    return [expression(run, known) for run in runs]


def numbers(runs: Sequence[Run], text: str) -> np.ndarray:
    """As `values`, (runs,), NaN where it is no number."""
    found = values(runs, text)
    return np.array([float(v) if isinstance(v, int | float) else math.nan for v in found], dtype=np.float64)


def names_of(runs: Sequence[Run]) -> set[str]:
    """Every name that an expression over these runs may have."""
    return {*COLUMNS, *OF_A_RUN, *(key for run in runs for part in (run.numbers, run.settings) for key in part)}


def _of_run(run: Run, name: str) -> Any:
    if name in OF_A_RUN:
        value = getattr(run, name)
        return str(value) if name == "folder" and value else value
    return run.value(name)


@dataclass(frozen=True)
class _Evaluation:
    """Of one expression for one run."""

    expression: Expression
    run: Run
    known: set[str]

    def value(self, node: ast.expr) -> Any:
        """Of a part of the expression. Raises UserError for what an expression may not have."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None as constant):
                return constant
            case ast.Name() | ast.Attribute():
                return self._named(ast.unparse(node))
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return [self.value(part) for part in parts]
            case ast.BoolOp(op=op, values=parts):
                return (all if isinstance(op, ast.And) else any)(self.value(part) for part in parts)
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return not self.value(part)
            case ast.UnaryOp(op=op, operand=part) if type(op) in ARITHMETIC:
                return _unless_missing(ARITHMETIC[type(op)], [self.value(part)])
            case ast.BinOp():
                return self._binary(node)
            case ast.Compare():
                return self._comparison(node)
            case ast.Call(func=ast.Name(id=name), args=parts, keywords=[]) if name in FUNCTIONS:
                return _unless_missing(FUNCTIONS[name], [self.value(part) for part in parts])
        allowed = f"names, numbers, text, comparisons, arithmetic and {', '.join(FUNCTIONS)}"
        raise UserError(f"{self.expression.text!r}: {ast.unparse(node)} is not allowed here. Use {allowed}.")

    def _named(self, name: str) -> Any:
        place = re.fullmatch(r"quoted__(\d+)", name)
        if place and int(place[1]) < len(self.expression.quoted):
            name = self.expression.quoted[int(place[1])]
        if name not in self.known:
            raise UserError(
                f"{self.expression.text!r}: no run has {name!r}.{did_you_mean(name, self.known)} "
                "Put text in quotes; python -m lit_gpt.tools.runs FOLDER --names lists the names."
            )
        return _of_run(self.run, name)

    def _binary(self, node: ast.BinOp) -> Any:
        whole = ast.unparse(node).replace(" ", "")
        if whole in self.known:  # hellaswag/acc, phonebook/acc@480
            return _of_run(self.run, whole)
        if type(node.op) not in ARITHMETIC:
            raise UserError(f"{self.expression.text!r}: {ast.unparse(node)} is no arithmetic and no name of a column.")
        left, right = self.value(node.left), self.value(node.right)
        if isinstance(left, str | list) or isinstance(right, str | list):  # "a" * 10**12
            raise UserError(f"{self.expression.text!r}: {ast.unparse(node)} is arithmetic with text. {HELP}.")
        return _unless_missing(ARITHMETIC[type(node.op)], [left, right])

    def _comparison(self, node: ast.Compare) -> bool:
        parts = [self.value(part) for part in (node.left, *node.comparators)]
        return all(_compare(op, a, b) for op, a, b in zip(node.ops, parts, parts[1:]))


def _compare(op: ast.cmpop, a: Any, b: Any) -> bool:
    """None equals None only, and is neither more nor less than anything."""
    if isinstance(op, ast.Is | ast.IsNot):
        return (a is b) == isinstance(op, ast.Is)
    if isinstance(op, ast.Eq | ast.NotEq | ast.In | ast.NotIn) and b is not None:
        return bool(COMPARISONS[type(op)](a, b))
    if a is None or b is None:
        return isinstance(op, ast.Eq | ast.NotEq) and (a == b) == isinstance(op, ast.Eq)
    return bool(COMPARISONS[type(op)](a, b))


def _unless_missing(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    return None if any(argument is None for argument in arguments) else function(*arguments)
