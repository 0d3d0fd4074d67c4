"""FSDP2 and HSDP on several processes equal one process, on the real model."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from replicas import replicas_in_sync
from spawn import run_distributed
from tiny_model import ONE_LAYER, batch, build_adamw, build_model, full, snapshot
from torch._dynamo import lookup_backend
from torch.distributed.tensor import DTensor

from lit_gpt.optim.engine.averages import WeightAverages
from lit_gpt.parallel import (
    finish_gradients,
    grad_norms,
    gradient_sync,
    scale_gradients_,
    start_runtime,
)

CASES: list[dict[str, Any]] = [
    {},
    {"tied": True, "act_ckpt": "full"},
    {"act_ckpt": "selective", "compute_dtype": torch.bfloat16},
    {"keep_gathered": True},
    {"compute_dtype": torch.bfloat16, "tied": True},
]
STEPS, MICRO_BATCHES = 2, 2


def train(kind: str = "foreach", shards: int | None = None, **options: Any) -> dict[str, Any]:
    """A few accumulated, scaled steps; everything that could differ between numbers of ranks."""
    runtime = start_runtime(shards=shards)
    model = build_model(runtime, **options)
    optimizer = build_adamw(model, kind)
    losses, norms, wrong_norms = [], [], []
    averages = WeightAverages(model, [100])
    for step in range(STEPS):
        valid = sum(batch(MICRO_BATCHES * step + i, runtime)[2] for i in range(MICRO_BATCHES))
        loss = torch.zeros(())
        for i in range(MICRO_BATCHES):
            gradient_sync(model, i == MICRO_BATCHES - 1)
            tokens, targets, _ = batch(MICRO_BATCHES * step + i, runtime)
            summed = model(tokens, targets).loss
            (summed * runtime.world_size / valid).backward()
            loss += summed.detach() / valid
        finish_gradients(model, runtime)
        norm = grad_norms(model.parameters(), runtime)
        wrong_norms += [] if close_to_torch(model, norm) else [(step, norm)]
        before = full(model.wte.weight.grad)
        scale_gradients_(model.parameters(), torch.tensor(0.5))
        assert torch.equal(full(model.wte.weight.grad), before * 0.5)
        optimizer.step()
        optimizer.zero_grad()
        averages.update(10)
        with torch.no_grad(), averages.in_model(100):  # leaves FSDP2's weights gathered; what follows must cope
            averaged = runtime.sum(model(tokens, targets).loss)
        losses += [runtime.sum(loss).item(), averaged.item()]
        norms.append([n.item() for n in norm[:3]])
    with torch.no_grad():
        model(tokens, targets)
    return {
        "losses": losses,
        "norms": norms,
        "wrong_norms": wrong_norms,
        "in_sync": replicas_in_sync(model, runtime),
        "weights": snapshot(model),
        "sharded": {name: isinstance(p, DTensor) for name, p in model.named_parameters()},
        "roles": {name: p.role for name, p in model.named_parameters()},
    }


def close_to_torch(model, norm) -> bool:
    """The norms against torch's, over all full gradients in float64."""
    grads = {True: [], False: []}
    for p in model.parameters():
        grads[p.role == "vector"].append(full(p.grad).double().flatten())
    vector, weight = torch.cat(grads[True]).norm(), torch.cat(grads[False]).norm()
    expected = torch.stack([torch.hypot(vector, weight), weight, vector])
    return torch.allclose(torch.stack(norm[:3]).double(), expected, rtol=1e-5)


def disturbed() -> tuple[bool, bool]:
    """replicas_in_sync after rank 1 changed a vector, and after it changed a shard."""
    runtime = start_runtime()
    answers = []
    for name in ("norm.weight", "wte.weight"):
        model = build_model(runtime)
        if runtime.rank == 1:
            p = model.get_parameter(name)
            (p.to_local() if isinstance(p, DTensor) else p).data[0] += 1e-6
        answers.append(replicas_in_sync(model, runtime))
    return answers[0], answers[1]


def travelled(shards: int | None) -> list[str]:
    """Gradients of two micro-batches, reduced in bf16, that are not the fp32 sum of what bf16 makes of each.

    Every rank sees the same tokens, so that their mean over ranks is exact.
    """
    runtime = start_runtime(shards=shards)
    tokens, targets, _ = batch(0, alone := replace(runtime, rank=0, world_size=1, mesh=None))
    half = len(tokens) // 2
    plain = build_model(alone)
    model = build_model(runtime, reduce_dtype=torch.bfloat16)
    expected = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for i, part in enumerate((slice(half), slice(half, None))):
        gradient_sync(model, i == 1)
        model(tokens[part], targets[part]).loss.backward()
        plain(tokens[part], targets[part]).loss.backward()
        for name, p in plain.named_parameters():
            expected[name] += p.grad if p.role == "vector" else p.grad.bfloat16().float()
            p.grad = None
    finish_gradients(model, runtime)
    return [name for name, p in model.named_parameters() if not torch.equal(full(p.grad), expected[name])]


def all_cases(shards: int) -> list[Any]:
    """shards: processes that share one copy of the weights, in the last two."""
    results = [train(**case) for case in CASES]
    return [*results, train("fused"), train(shards=shards), *map(travelled, (None, shards)), disturbed()]


@pytest.fixture(scope="module")
def alone() -> list[Any]:
    return [train(**case) for case in CASES]


@pytest.mark.parametrize(("world_size", "nodes", "shards"), [(2, 1, 1), (4, 2, 4)])
def test_several_processes_equal_one(alone, world_size, nodes, shards):
    ranks = run_distributed(all_cases, world_size, shards, nodes=nodes)
    cases: list[dict[str, Any]] = [*CASES, {"kind": "fused"}, {"shards": shards}]
    for i, (case, expected) in enumerate(zip(cases, [*alone, alone[0], alone[0]], strict=True)):
        tolerance = 2e-2 if "compute_dtype" in case else 1e-4
        for found in (rank[i] for rank in ranks):
            assert found["in_sync"] and not found["wrong_norms"], case
            assert found["roles"] == expected["roles"]
            assert found["sharded"] == {n: r != "vector" for n, r in found["roles"].items()}
            torch.testing.assert_close(found["losses"], expected["losses"], rtol=tolerance / 10, atol=0, msg=str(case))
            torch.testing.assert_close(found["norms"], expected["norms"], rtol=tolerance, atol=0)
            torch.testing.assert_close(found["weights"], expected["weights"], rtol=tolerance, atol=tolerance)
    assert [rank[-3:-1] for rank in ranks] == [[[], []]] * world_size
    # A copy of a shard exists only across nodes; without one, a rank's shard is its own.
    assert {rank[-1] for rank in ranks} == {(False, nodes == 1)}


def test_recomputing_changes_nothing(alone):
    found = train(act_ckpt="selective")
    assert found["losses"] == alone[0]["losses"]
    torch.testing.assert_close(found["weights"], alone[0]["weights"], rtol=0, atol=0)


@pytest.mark.slow
def test_compiled_blocks_equal_eager_ones():
    expected = train(config=ONE_LAYER)
    for found in run_distributed(compiled, 2):
        torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["weights"], expected["weights"], rtol=1e-4, atol=1e-4)


def compiled() -> dict[str, Any]:
    """One layer: machine code takes seconds, half a minute of them here. One rank makes it, the other stops before."""
    backend = machine_code if os.environ["RANK"] == "0" else "aot_eager"
    torch.compile = partial(torch.compile, backend=backend)  # in a process of this call's own
    return train(config=ONE_LAYER, compile=True, act_ckpt="selective")


def machine_code(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
    """Of what trains; the pass without gradients, which nothing is compared with, stops at autograd's graph."""
    return lookup_backend("inductor" if torch.is_grad_enabled() else "aot_eager")(graph, inputs)
