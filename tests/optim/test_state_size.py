"""What optimizers declare that they keep between steps (their facts) is what they have after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_optimizers import QUICK, plan_for
from spawn import run_distributed
from test_external import skip_if_missing, tiny
from tiny_model import ONE_LAYER, train_step
from torch import Tensor, nn

from lit_gpt import optim
from lit_gpt.model import GPT
from lit_gpt.optim import OPTIMIZERS
from lit_gpt.optim.engine.groups import parameter_groups
from lit_gpt.optim.engine.matrix_batches import local
from lit_gpt.optim.engine.state_size import shard_bytes, state_bytes
from lit_gpt.optim.engine.state_tree import values_of
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.roles import REPLICATED, role
from lit_gpt.scaling.base import Schedule

SHARDED = ("adam_mini", "adamw", "muonball", "muonh", "normuon", "adan", "sgd")  # by their rows
GATHERED = ("adafactor", "apollo", "soap")
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {  # some are whole blocks of quantised state
    "table": ("embedding", (130, 64)),
    "head": ("head", (130, 40)),
    "wide": ("matrix", (64, 96)),
    "tall": ("matrix", (60, 40)),
    "experts": ("expert", (2, 6, 40)),
    "router": ("router", (4, 40)),
    "gain": ("vector", (40,)),
    "scale": ("vector", ()),
    "decays": ("vector", (12, 5)),
    "kernel": ("conv", (24, 1, 4)),
}
# Options that change what is kept.
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {"ams_bound": True}) for name in ("adabelief", "adafactor", "came", "mars_adamw", "schedulefree_adamw")),
    *((name, {"momentum": 0.0}) for name in ("lars", "sgd")),
    *(("galore", {"rank": 16, "projection_type": kind}) for kind in ("std", "reverse_std", "right", "left", "full")),
    *(("conda", {"projection_type": kind}) for kind in ("reverse_std", "right", "left", "full")),
    *(("soap", {"max_precondition_dim": 50, "precondition_1d": flag}) for flag in (True, False)),
    ("laprop", {"ams_bound": True, "centered": True}),
    ("normuon", {"normuon_of": "longer"}),
    ("apollo", {"rank": 16}),
    ("apollo_mini", {"rank": 4}),
    ("adamw8bit", {"block_size": 100}),
    *((name, {"state": "int8"}) for name in ("adam_mini", "ademamix", "lion", "muonball", "muonh", "normuon")),
]


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step."""
    with torch.compiler.set_stance("force_eager"):
        yield


class Weights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name, (kind, shape) in SHAPES.items():
            p = nn.Parameter(torch.randn(shape))
            self.register_parameter(name, role(p, kind, 1.0 if kind == "vector" else None))  # type: ignore[arg-type]


def kept(optimizer: Any, p: Tensor) -> list[Tensor]:
    """The tensors of a parameter's state; libraries' may be anything, and in the gradients."""
    trees: list[Any] = []
    for inner in getattr(optimizer, "inner", []):
        trees += [inner.state[q] for q in optimizer.pieces[p] if q in inner.state]
    if hasattr(optimizer, "traits") and optimizer.traits.keeps_gradients:
        trees += [[q.grad for q in optimizer.pieces[p]]]
    return [*optimizer.state[p].values(), *(x for *_, x in values_of(trees) if isinstance(x, Tensor))]


def size(x: Tensor) -> int:
    return local(x).numel() * x.element_size()


@pytest.mark.parametrize(
    ("name", "args"), [*((name, {}) for name in OPTIMIZERS.names()), *OPTIONS], ids=lambda x: str(x).replace(" ", "")
)
def test_every_optimizer_keeps_what_it_declares(name: str, args: dict[str, Any]) -> None:
    """An `except Exception` hid what an optimizer could not be asked. A few single numbers need not be declared."""
    skip_if_missing(name)
    model = Weights()
    plan = plan_for(name, optimizer_args=args, steps=20, schedule=Schedule("constant", 0, 1))
    optimizer = optim.build(groups := parameter_groups(model, plan), plan)
    declared = state_bytes(groups, OPTIMIZERS.facts(name), args, dict.fromkeys(model.parameters(), 1))
    assert declared is not None
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    for key, p in model.named_parameters():
        numbers = 4 * (len(p) if SHAPES[key][0] == "expert" else 1)
        found = sum(size(x) for x in kept(optimizer, p) if x.numel() > 1)
        assert abs(declared[p] - found) <= 4 * numbers, (key, declared[p], found)


def worker() -> dict[str, tuple[int, int]]:
    """Bytes of this process's weights, and of its optimizer's state but single numbers."""
    runtime = start_runtime()
    return {name: after_training(name, runtime) for name in (*SHARDED, *GATHERED)}


def after_training(name: str, runtime: Runtime) -> tuple[int, int]:
    model, optimizer = tiny(name, runtime)
    for step in range(2):
        train_step(model, optimizer, runtime, step)
    state = [x for p in model.parameters() for x in kept(optimizer, p)]
    return sum(size(p) for p in model.parameters()), sum(size(x) for x in state if x.numel() > 1)


def test_three_processes() -> None:
    """17, 34 and 51 rows over 3 processes; what the first one holds is what counts."""
    skip_if_missing("soap")
    found = run_distributed(worker, 3)[0]
    for name in (*SHARDED, *GATHERED):
        with torch.device("meta"):
            model: nn.Module = GPT(ONE_LAYER)
        groups = parameter_groups(model, plan_for(name))
        shards = {p: 1 if group["role"] in REPLICATED else 3 for group in groups for p in group["params"]}
        state = state_bytes(groups, OPTIMIZERS.facts(name), QUICK.get(name, {}), shards)
        assert state is not None
        copies = sum(4 * p.numel() for p, n in shards.items() if n > 1) if name in GATHERED else 0
        assert (sum(shard_bytes(p, n) for p, n in shards.items()), sum(state.values()) - copies) == tuple(
            found[name]
        ), name
