"""Steps on small weights of every role, so that what a library cannot be used with is said before a run starts.

What a class accepts and what its steps survive are two things, and its documentation tells neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.roles import FILLED, role

# More than 10, after which SOAP and Shampoo renew their bases, and more than 5, after which RAdam's start ends: what
# fails in either is seen.
STEPS = 12
# Small, and with sides that differ, so that a transposed use of a shape fails.
SHAPES = {
    "embedding": (12, 8),
    "head": (12, 8),
    "matrix": (16, 8),
    "expert": (2, 6, 8),
    "router": (4, 8),
    "vector": (8,),
    "conv": (6, 1, 4),
    "value_table": (12, 8),
    "output": (16, 8),
    "gate": (2, 4),
    "scalar": (1,),
    "residual_scalar": (1,),
}


Groups = list[dict[str, Any]]
Build = Callable[[Groups], torch.optim.Optimizer]


def objection(build: Build, roles: Iterable[str]) -> str:
    """Why an optimizer cannot be stepped over weights of these roles, "" if it can.

    build: makes it over role groups. Nothing outside is changed, random numbers included.
    """
    try:
        weights = _stepped(build, [_group_of(name) for name in roles])
    except UserError:
        raise
    except Exception as error:  # whatever a library raises
        return f"a step ends with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finite = all(torch.isfinite(p).all() for p in weights)
    return "" if finite else f"weights are not finite after {STEPS} steps with ordinary gradients"


def _stepped(build: Build, groups: Groups) -> list[Tensor]:
    """The weights of role groups after STEPS steps with ordinary gradients, the same at every call."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        weights = [p for group in groups for p in group["params"]]
        optimizer = build(groups)
        for step in range(STEPS):
            for p in weights:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    return weights


def _group_of(name: str) -> dict[str, Any]:
    """A parameter group of one role with one small weight."""
    weight = nn.Parameter(torch.linspace(-1, 1, torch.Size(SHAPES[name]).numel()).view(SHAPES[name]))
    p = role(weight, name, 1.0 if name in FILLED else None)  # type: ignore[arg-type]
    return {"params": [p], "role": name, "names": [name], "lr": 1e-3, "weight_decay": 0.0, "eps_factor": 1.0}
