"""Arithmetic over the row of a study, such as `2 ** round(log2(tokens / 4096))` or `depth > 12 and seed != 0`.

An expression is read with Python's own grammar and computed here, node by node: numbers, text, arithmetic, comparisons,
`and`, `or`, `not`, `a if b else c`, lists and the functions of FUNCTIONS. Nothing else is there to be called, so a
study of a stranger can compute and do nothing more.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

from lit_gpt.errors import UserError

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "exp": math.exp,
    "floor": math.floor,
    "int": int,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
LARGEST_POWER = 1e4  # exponents and bases of whole numbers beyond it only fill the memory


def evaluate(text: str, value_of: Callable[[str], Any]) -> Any:
    """The value of an expression; value_of: a name, which may have dots, such as base_hps.eta0.

    Raises UserError for what is no such expression, and for one that cannot be computed.
    """
    try:
        return _value(ast.parse(str(text).strip(), mode="eval").body, value_of)
    except SyntaxError as error:
        raise UserError(f"{text!r} is no expression that can be read ({error.msg}).") from error
    except (ArithmeticError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{text!r} cannot be computed: {error}.") from error


def _value(node: ast.AST, value_of: Callable[[str], Any]) -> Any:
    def inner(part: ast.AST) -> Any:
        return _value(part, value_of)

    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return value
        case ast.Name() | ast.Attribute():
            return value_of(_dotted(node))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_number(inner(left)), _number(inner(right)))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_number(inner(left)), _number(inner(right)))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            return OPERATORS[type(op)](inner(operand))
        case ast.BoolOp(op=op, values=parts):
            return _first(map(inner, parts), isinstance(op, ast.Or))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in OPERATORS for op in ops):
            values = [inner(part) for part in (left, *others)]
            return all(OPERATORS[type(op)](a, b) for op, a, b in zip(ops, values, values[1:]))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return inner(body if inner(test) else orelse)
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [inner(part) for part in parts]
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](*map(inner, arguments))
    raise UserError(
        f"{ast.unparse(node)!r} is not allowed in an expression: it takes numbers, names of options and facts of the "
        f"row, arithmetic, comparisons, and, or, not, if else, and {', '.join(FUNCTIONS)}."
    )


def _first(values: Iterator[Any], wanted: bool) -> Any:
    """The first value that is true (or false), else the last one: Python's `or` (and `and`)."""
    value = None
    for value in values:
        if bool(value) == wanted:
            break
    return value


def _number(value: Any) -> Any:
    """The value, where it is a number: text and lists could be multiplied until they fill the memory."""
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _power(base: float, exponent: float) -> Any:
    if max(abs(base), abs(exponent)) > LARGEST_POWER:
        return math.pow(base, exponent)
    value = base**exponent
    return value if isinstance(value, int | float) else math.nan  # the root of a negative number


def _dotted(node: ast.AST) -> str:
    """a.b.c of a name with dots. Raises UserError for an attribute of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise UserError(f"{ast.unparse(node)!r} is not allowed in an expression: only names have dots.")
