"""Expressions such as `2 ** round(log2(tokens / 4096))` or `depth > 12 and loss < 2`, of studies and over runs.

An expression is read with Python's own grammar and computed here, node by node: numbers, text, arithmetic, comparisons,
`and`, `or`, `not`, `a if b else c`, lists and the functions of FUNCTIONS. Nothing else is there to be called, so a
study of a stranger can compute and do nothing more. What has no value is None: arithmetic with it is None, and a
comparison with it is false, but for `== None`, `!= None`, `is None` and `is not None`.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lit_gpt.errors import UserError

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in ("log", "log2", "log10", "exp", "sqrt", "floor", "ceil")},
    "abs": abs,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
}
LARGEST_POWER = 1e4  # exponents and bases of whole numbers beyond it only fill the memory
LONGEST = 2000  # characters of an expression


def _power(base: float, exponent: float) -> float:
    if max(abs(base), abs(exponent)) > LARGEST_POWER:
        return math.pow(base, exponent)
    value = base**exponent
    return value if isinstance(value, int | float) else math.nan  # the root of a negative number


ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
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
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
EQUALITIES = ast.Eq, ast.NotEq, ast.Is, ast.IsNot  # which None can be asked for


@dataclass(frozen=True)
class Expression:
    """What was typed, read once."""

    text: str
    tree: ast.expr

    def __call__(self, value_of: Callable[[str], Any], of: str = "") -> Any:
        """Its value. value_of: a name, which may have dots, such as base_hps.eta0. of: what it is of, for a message.

        Raises UserError for what an expression may not have, and for one that cannot be computed.
        """
        try:
            return _value(self.tree, value_of)
        except (ArithmeticError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f"{self.text!r} cannot be computed{of and f' for {of}'}: {error}.") from error


def read_expression(text: str, change: Callable[[ast.expr], ast.expr] | None = None, shown: str = "") -> Expression:
    """change: what is done to the tree first. shown: the text as it was typed. Raises UserError for what is none."""
    shown = shown or text
    try:
        if len(text) > LONGEST:
            raise ValueError(f"it has more than {LONGEST} characters")
        tree = ast.parse(text.strip(), mode="eval").body
        return Expression(shown, change(tree) if change else tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        why = error.msg if isinstance(error, SyntaxError) else str(error)
        example = 'such as "depth == 8 and loss < 2", with text in quotes and == for equal'
        raise UserError(f"{shown[:200]!r} is no expression that can be read ({why}). Write one {example}.") from error


def evaluate(text: str, value_of: Callable[[str], Any]) -> Any:
    """The value of an expression. Raises UserError for a text that is none, and for what cannot be computed."""
    return read_expression(text)(value_of)


def _value(node: ast.AST, value_of: Callable[[str], Any]) -> Any:
    def inner(part: ast.AST) -> Any:
        return _value(part, value_of)

    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name() | ast.Attribute():
            return value_of(_dotted(node))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return _arithmetic(op, [inner(left), inner(right)])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not inner(operand)
        case ast.UnaryOp(op=op, operand=operand) if type(op) in ARITHMETIC:
            return _arithmetic(op, [inner(operand)])
        case ast.BoolOp(op=op, values=parts):
            return _first(map(inner, parts), isinstance(op, ast.Or))
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [inner(part) for part in (left, *others)]
            return all(_compare(op, a, b) for op, a, b in zip(ops, values, values[1:]))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return inner(body if inner(test) else orelse)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [inner(part) for part in parts]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return _unless_missing(FUNCTIONS[name], list(map(inner, arguments)))
    raise UserError(
        f"{ast.unparse(node)!r} is not allowed in an expression: it takes names, numbers, text, arithmetic, "
        f"comparisons, and, or, not, if else, and {', '.join(FUNCTIONS)}."
    )


def _first(values: Iterator[Any], wanted: bool) -> Any:
    """The first value that is true (or false), else the last one: Python's `or` (and `and`)."""
    value = None
    for value in values:
        if bool(value) == wanted:
            break
    return value


def _arithmetic(op: ast.AST, values: Sequence[Any]) -> Any:
    """Of numbers only: text and lists could be multiplied until they fill the memory."""
    if wrong := [value for value in values if not isinstance(value, int | float | None)]:
        raise TypeError(f"it is arithmetic with text or a list, {str(wrong[0])[:40]!r}")
    return _unless_missing(ARITHMETIC[type(op)], values)


def _compare(op: ast.cmpop, a: Any, b: Any) -> bool:
    """None equals None only, is neither more nor less than anything, and is in no text."""
    missing = b is None or (a is None and not isinstance(b, list))
    if missing and not isinstance(op, EQUALITIES):
        return False
    return bool(COMPARISONS[type(op)](a, b))


def _unless_missing(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    return None if any(argument is None for argument in arguments) else function(*arguments)


def _dotted(node: ast.AST) -> str:
    """a.b.c of a name with dots. Raises UserError for an attribute of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise UserError(f"{ast.unparse(node)!r} is not allowed in an expression: only names have dots.")
