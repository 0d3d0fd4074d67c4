"""The state of a library's optimizer as a tree: dicts, lists, objects and quantised tensors, nested in any way.

The values of the tree are the tensors and numbers in it, each with its path, such as "state/exp_avg/scale".
Checkpoints hold tensors, so tensors are loaded in place, and numbers travel as 0-d tensors and are assigned.
"""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Number
from typing import Any

import torch
from torch import Tensor

Value = tuple[str, Any, Any, Any]  # path, what holds the value, its key there, the value


def values_of(tree: Any, path: str = "") -> Iterator[Value]:
    """All tensors and numbers below a dict, list or object; texts, functions and None are not state."""
    for key, value in _items(tree):
        here = f"{path}/{key}" if path else str(key)
        plain = isinstance(value, Tensor) and not hasattr(value, "__tensor_flatten__")
        if plain or isinstance(value, Number):
            yield here, tree, key, value
        else:
            yield from values_of(value, here)


def _items(tree: Any) -> list[tuple[Any, Any]]:
    if isinstance(tree, Tensor):  # a subclass made of several tensors, such as codes and scales
        return [(name, getattr(tree, name)) for name in tree.__tensor_flatten__()[0]]  # type: ignore[operator]
    if isinstance(tree, dict):
        return list(tree.items())
    if isinstance(tree, (list, tuple)):
        return list(enumerate(tree))
    return [] if tree is None or isinstance(tree, str) or callable(tree) else list(vars(tree).items())


def as_tensor(value: Any) -> Tensor:
    """A tensor itself; a number as a 0-d tensor, a float in float64, which is what Python's float is."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def assign(place: Value, loaded: Tensor) -> None:
    """Put a loaded number where it belongs; a tensor has been loaded in place."""
    _, holder, key, value = place
    if isinstance(value, Tensor):
        return
    number = type(value)(loaded.item())
    if isinstance(holder, (dict, list)):
        holder[key] = number
    else:
        setattr(holder, key, number)
