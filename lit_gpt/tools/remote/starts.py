"""Parameters of a model that is built and not loaded: each starts with a value good enough to try the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Role = str
P = TypeVar("P", bound=nn.Parameter)

STD = 0.02  # of matrices: GPT-2's
TABLES = ()  # those of lit_gpt.roles may be stored in less than the rest; here all have the dtype that is asked for


def role(
    parameter: P, name: Role, fill: float | Callable[[Tensor, torch.Generator], None] | None = None, **_: float
) -> P:
    """Stands in for lit_gpt.roles.role, which says what a parameter is for: nothing is trained by roles here.

    fill: the value that a vector starts with. The functions of nn.init are those that transformers switches off while
    it loads a model.
    """
    # transformers builds so what it loads: there is no memory yet, and drawing would cost all the same.
    if parameter.is_meta:
        return parameter
    if fill is None:
        nn.init.normal_(parameter, std=STD)
    elif not callable(fill):
        nn.init.constant_(parameter, fill)
    else:
        with torch.no_grad():
            fill(parameter, None)  # type: ignore[arg-type]  # the default generator
    return parameter
