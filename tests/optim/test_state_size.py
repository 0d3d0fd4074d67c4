"""Bytes of optimizer state told in advance are those that the optimizer has after training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small import NAMES, plan_for
from spawn import run_distributed
from test_external import ARGS, WRITTEN_HERE, skip_if_missing, tiny
from tiny_model import ONE_LAYER, train_step
from torch import Tensor, nn

from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.optim import external
from lit_gpt.optim._batches import local
from lit_gpt.optim._leaves import leaves
from lit_gpt.optim.groups import parameter_groups
from lit_gpt.optim.memory import shard_bytes, state_bytes
from lit_gpt.parallel import Runtime, start_runtime
from lit_gpt.roles import REPLICATED

LIBRARIES = ("adafactor", "adamw8bit", "galore", "prodigy", "schedulefree_adamw", "scion_light", "sgd", "soap")
SHARDED = ("adam_mini", "adamw", "muonball", "muonh", "normuon", "adan", "sgd")  # by their rows
GATHERED = ("adafactor", "apollo", "soap")


@pytest.fixture(autouse=True)
def eager() -> Iterator[None]:
    """torchao compiles its step."""
    with torch.compiler.set_stance("force_eager"):
        yield


def size(x: Tensor) -> int:
    return local(x).numel() * x.element_size()


def after_training(name: str, runtime: Runtime) -> tuple[int, int]:
    """Bytes of this process's weights, and of its optimizer's state but single numbers."""
    model, optimizer = tiny(name, runtime)
    for step in range(2):
        train_step(model, optimizer, runtime, step)
    trees: list[Any] = [list(inner.state.values()) for inner in getattr(optimizer, "inner", [])]
    if name == "scion_light":
        trees += [[q.grad for pieces in optimizer.pieces.values() for q in pieces]]  # type: ignore[attr-defined]
    state = [x for *_, x in leaves(trees) if isinstance(x, Tensor)]
    state += [x for kept in optimizer.state.values() for x in kept.values()]
    return sum(size(p) for p in model.parameters()), sum(size(x) for x in state if x.numel() > 1)


def told(name: str, parts: int) -> tuple[int, int, int]:
    """The same in advance, and the bytes of whole weights that are sharded."""
    with torch.device("meta"):
        model: nn.Module = GPT(ONE_LAYER)
    groups = parameter_groups(model, plan := plan_for(name, optimizer_args=ARGS.get(name, {}), steps=20))
    shards = {p: 1 if group["role"] in REPLICATED else parts for group in groups for p in group["params"]}
    state = state_bytes(groups, plan, shards)
    assert state is not None, f"{name} cannot be built on the meta device"
    whole = sum(4 * p.numel() for p, n in shards.items() if n > 1)
    return sum(shard_bytes(p, n) for p, n in shards.items()), sum(state.values()), whole


@pytest.mark.parametrize("name", (*NAMES, *WRITTEN_HERE, *LIBRARIES))
def test_one_process(name: str) -> None:
    skip_if_missing(name)
    weights, state, _ = told(name, 1)
    assert (weights, state) == after_training(name, start_runtime())


def worker() -> dict[str, tuple[int, int]]:
    runtime = start_runtime()
    return {name: after_training(name, runtime) for name in (*SHARDED, *GATHERED)}


def test_three_processes() -> None:
    """17, 34 and 51 rows over 3 processes; what the first one holds is what counts."""
    skip_if_missing("soap")
    found = run_distributed(worker, 3)[0]
    for name in (*SHARDED, *GATHERED):
        weights, state, whole = told(name, 3)
        assert (weights, state - (whole if name in GATHERED else 0)) == tuple(found[name]), name


@pytest.mark.parametrize("name", ["adamw", "muon", "soap"])
def test_arguments_that_do_not_fit_are_said(name: str) -> None:
    """So that a dry run finds them."""
    skip_if_missing(name)
    with pytest.raises(UserError, match="no_such"):
        of_tiny(name, {"no_such": 1})


def test_what_is_not_installed_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "missing", lambda module: "no library")
    assert of_tiny("soap", {}) is None


def of_tiny(name: str, arguments: dict[str, Any]) -> dict[Tensor, int] | None:
    with torch.device("meta"):
        model = GPT(ONE_LAYER)
    plan = plan_for(name, optimizer_args=arguments)
    return state_bytes(parameter_groups(model, plan), plan, dict.fromkeys(model.parameters(), 1))
