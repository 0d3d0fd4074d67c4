"""Averages of the weights: against a naive one in float64, on one process and on shards; exchanged; counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from spawn import run_distributed
from tiny_model import batch, build_adamw, build_model, full, same, snapshot, train_step
from torch.distributed.tensor import DTensor

from lit_gpt.config.cli import parse
from lit_gpt.errors import UserError
from lit_gpt.optim.engine.averages import WeightAverages, label
from lit_gpt.parallel import start_runtime
from lit_gpt.preflight.resolved_run import ResolvedRun, resolve_run
from lit_gpt.train import build

HALF_LIVES = (200, 3000)
BATCHES = (96, 96, 192, 288, 288)  # tokens of each step; they grow, as under --bramp_ratio
LINE = "--train_model transformer --depth 4 --ar 32 --ctx_len 64 --vocab_size 300 --train_name x --max_tokens 1e9"


def averaged(offloading: bool = False) -> dict[str, Any]:
    """The weights before the first step and after every step, and the averages after the last one."""
    runtime = start_runtime(offloading=offloading)
    model = build_model(runtime, offloading=offloading)
    optimizer = build_adamw(model, "fused")
    averages = WeightAverages(model, HALF_LIVES)
    weights = [snapshot(model)]
    for step, tokens in enumerate(BATCHES):
        train_step(model, optimizer, runtime, step)
        averages.update(tokens)
        weights.append(snapshot(model))
    found = whole(averages)
    with averages.in_model(HALF_LIVES[0]):
        inside, kept = snapshot(model), whole(averages)
        with torch.no_grad():
            model(batch(0, runtime)[0])  # leaves FSDP2's root gathered; what follows must cope
    with pytest.raises(KeyError), averages.in_model(HALF_LIVES[1]):
        raise KeyError
    sharded = {name: isinstance(t, DTensor) for name, t in averages.tensors().items()}
    after = snapshot(model), whole(averages)
    next_loss = train_step(model, optimizer, runtime, len(BATCHES))
    result = {"weights": weights, "found": found, "inside": (inside, kept), "after": after}
    return result | {"sharded": sharded, "next_loss": next_loss}


def whole(averages: WeightAverages) -> dict[str, torch.Tensor]:
    return {name: full(t) for name, t in averages.tensors().items()}


def of(half_life: int, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One average, by the names of parameters."""
    prefix = f"{half_life}."
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def naive(weights: list[np.ndarray], half_life: int) -> np.ndarray:
    average = weights[0]
    for after, tokens in zip(weights[1:], BATCHES):
        rho = 2.0 ** (-tokens / half_life)
        average = rho * average + (1 - rho) * after
    return average


def check(result: dict[str, Any]) -> None:
    for half_life in HALF_LIVES:
        lag = 0.0
        for name, found in of(half_life, result["found"]).items():
            seen = [weights[name].numpy().astype(np.float64) for weights in result["weights"]]
            expected = naive(seen, half_life)
            assert found.dtype == torch.float32
            np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6, err_msg=f"{half_life} {name}")
            lag = max(lag, np.abs(seen[-1] - expected).max())
        assert lag > 1e-3, "an average is not the weights"


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return averaged()


def test_one_process(alone):
    check(alone)
    assert not any(alone["sharded"].values())


@pytest.mark.parametrize(("world_size", "offloading"), [(2, False), (1, True)])
def test_shards(alone, world_size, offloading):
    """Two processes, and one with its shards in host memory."""
    for found in run_distributed(averaged, world_size, offloading):
        check(found)
        vectors = {name for name, sharded in found["sharded"].items() if not sharded}
        assert vectors and len(vectors) < len(found["sharded"])
        torch.testing.assert_close(found["found"], alone["found"], rtol=1e-4, atol=1e-4)
        exchanged(found)
        assert found["next_loss"] == pytest.approx(alone["next_loss"], rel=1e-4)


def exchanged(result: dict[str, Any]) -> None:
    """Within, weights and one average have changed places; afterwards every bit is where it was."""
    inside, kept = result["inside"]
    weights, found = result["weights"][-1], result["found"]
    assert same(inside, of(HALF_LIVES[0], found)) and same(of(HALF_LIVES[0], kept), weights)
    assert same(of(HALF_LIVES[1], kept), of(HALF_LIVES[1], found))
    assert same(result["after"][0], weights) and same(result["after"][1], found)


def test_they_change_places_to_the_bit(alone):
    exchanged(alone)


def test_without_half_lives_nothing_is_kept():
    model = build_model(start_runtime())
    averages = WeightAverages(model, [])
    averages.update(100)
    assert not averages.tensors()


def resolved(options: str, ranks: int = 1) -> ResolvedRun:
    words = f"{LINE} --base_hps.warmup_tokens 0 --dry_run true {options}"
    return resolve_run(parse(words.split()), ranks)


def kept_bytes() -> int:
    """Of the averages of a real run, on this process."""
    runtime = start_runtime()
    run = resolved("--ema 100M,1B,2B", runtime.world_size)
    averages = WeightAverages(build.build_model(run, runtime), run.plan.ema)
    local = [t.to_local() if isinstance(t, DTensor) else t for t in averages.tensors().values()]
    return sum(t.nbytes for t in local)


def test_the_memory_in_the_plan_is_that_of_the_tensors():
    """Rows that no number of ranks divides go to the first ones, whose share the Plan gives."""
    for ranks in (1, 2):
        memory = resolved("--ema 100M,1B,2B", ranks).plan.memory
        found = [kept_bytes()] if ranks == 1 else run_distributed(kept_bytes, ranks)
        assert max(found) == memory["averages"] == 3 * memory["weights"]
    without = resolved("").plan.memory
    assert without["averages"] == 0
    assert {k: v for k, v in resolved("--ema 1B").plan.memory.items() if k != "averages"} | {"averages": 0} == without


def test_names():
    assert [label(h) for h in (100, 100_000_000, 1_500_000_000)] == ["ema_100", "ema_100M", "ema_1.5B"]


def test_an_optimizer_that_averages_itself_is_refused():
    pytest.importorskip("pytorch_optimizer")
    options = "--optimizer schedulefree_adamw --schedule constant"
    with pytest.raises(UserError, match=r"schedulefree_adamw averages the weights itself.* Drop --ema"):
        resolved(f"{options} --ema 1B")
    resolved(options)
