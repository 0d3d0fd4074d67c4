"""Tokens that travel to their experts against experts that are where the tokens are: gradients, and what is kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from moe_models import N, config, inputs, layer
from spawn import run_distributed
from tiny_model import full
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.tensor import DTensor

from lit_gpt import ops
from lit_gpt.config.model import Experts
from lit_gpt.model import GPT
from lit_gpt.nn.moe import MixtureOfExperts
from lit_gpt.ops.expert_parallel import _Combine, _Gather, parallel_expert_ffn
from lit_gpt.parallel import start_runtime
from lit_gpt.parallel.parallelize import _place_experts
from lit_gpt.preflight.activations import kept_by_layers

S2K8, DTYPES = Experts(sparsity=2, top_k=8, aux_gamma=0.0), (torch.float32, torch.bfloat16)
Tensors = dict[str, torch.Tensor]


def on_this_rank(check: Callable[[MixtureOfExperts, Callable[[], None], torch.Tensor], Any], *arguments: Any) -> Any:
    """check(a layer, what shards its experts, this rank's tokens, *arguments)."""
    runtime = start_runtime()
    assert runtime.mesh is not None
    moe = layer(S2K8)
    return check(moe, lambda: _place_experts(moe, runtime.mesh), inputs(seed=runtime.rank), *arguments)


def gradients(moe: MixtureOfExperts, x_BTD: torch.Tensor) -> Tensors:
    """Of the tokens, and of the weights over the tokens of all ranks; and the output."""
    x = x_BTD.clone().requires_grad_()
    moe.zero_grad()
    y, _ = moe(x)
    (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    assert x.grad is not None
    found = {"y": y.detach(), "x": x.grad}
    for name, p in moe.named_parameters():
        assert p.grad is not None
        if not isinstance(p, DTensor):
            dist.all_reduce(p.grad)
        found[name] = full(p.grad)
    return found


def both(moe: MixtureOfExperts, shard: Callable[[], None], x_BTD: torch.Tensor) -> tuple[Tensors, Tensors]:
    expected = gradients(moe, x_BTD)
    shard()
    return expected, gradients(moe, x_BTD)


@pytest.mark.parametrize("world_size", [2, 3])  # of 16 experts, 3 hold 6, 6 and 4
def test_gradients_equal_those_of_experts_at_hand(world_size):
    for expected, found in run_distributed(on_this_rank, world_size, both):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_rows_in_bf16_are_summed_in_fp32():
    """In bf16 256 + 1 is 256, and 271 is not a number."""
    order_P = torch.arange(7)
    rows_PD = torch.ones(7, N, dtype=torch.bfloat16)
    rows_PD[0] = 256
    x_TD = torch.zeros(1, N, dtype=torch.bfloat16, requires_grad=True)
    _Gather.apply(x_TD, order_P, order_P[None], False).backward(rows_PD)
    assert x_TD.grad.tolist() == [[262] * N]
    gates_TK, rows_PD = torch.ones(1, 7, requires_grad=True), rows_PD.requires_grad_()
    y_TD = _Combine.apply(rows_PD, gates_TK, order_P, order_P[None], False)
    y_TD.backward(rows_PD[0].index_fill(0, torch.arange(1, N), 1)[None])
    assert y_TD.tolist() == [[262] * N] and y_TD.dtype == rows_PD.grad.dtype == torch.bfloat16
    assert gates_TK.grad.tolist() == [[256 * 271.0] + [271.0] * 6]


def kept_per_token(moe: MixtureOfExperts, x_BTD: torch.Tensor) -> float:
    """Bytes that a forward pass keeps in floating-point tensors, each once, but parameters; mean over the ranks."""
    parameters = {(p.to_local() if isinstance(p, DTensor) else p).data_ptr() for p in moe.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.is_floating_point() and not isinstance(x, DTensor) and x.data_ptr() not in parameters:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        moe(x_BTD.clone().requires_grad_())
    total = torch.tensor(sum(x.untyped_storage().nbytes() for x in kept.values()))
    dist.all_reduce(total)
    return total.item() / (x_BTD.numel() // N) / dist.get_world_size()


def kept(moe: MixtureOfExperts, shard: Callable[[], None], x_BTD: torch.Tensor) -> list[tuple[float, float]]:
    """Experts at hand, experts on all ranks; for every dtype of the tokens."""
    at_hand = [kept_per_token(moe, x_BTD.to(dtype)) for dtype in DTYPES]
    shard()
    return list(zip(at_hand, [kept_per_token(moe, x_BTD.to(dtype)) for dtype in DTYPES]))


def test_what_is_kept_and_what_a_plan_says_of_it():
    """Beyond experts at hand the rows that travelled, each way once, in the dtype in which they did."""
    counted, other = run_distributed(on_this_rank, 2, kept)
    assert counted == other
    for dtype, (at_hand, found) in zip(DTYPES, counted):
        travelled = 2 * S2K8.active * N * dtype.itemsize
        assert found - at_hand <= travelled + 1, dtype
        with torch.device("meta"):
            gpt = GPT(config(S2K8), compute_dtype=dtype)
        for usual, parallel in zip(kept_by_layers(gpt), kept_by_layers(gpt, expert_parallel=True)):
            planned = sum(parallel.values()) - sum(usual.values())
            assert planned == travelled == pytest.approx(found - at_hand, rel=0.07), dtype


def compiled(moe: MixtureOfExperts, shard: Callable[[], None], x_BTD: torch.Tensor) -> list[tuple[Tensors, set[str]]]:
    """Eager, then as in a compiled block: gradients, and what was compiled."""
    names: set[str] = set()

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        counter = CompileCounterWithBackend("aot_eager")  # no machine code
        inner = torch.compile(function, backend=counter)

        def run(*arguments: Any) -> Any:
            result = inner(*arguments)
            names.update([function.__name__] if counter.frame_count else [])
            return result

        return run

    ops.experts._compiled = cache(compile)  # this process is the test's own
    shard()
    eager = gradients(moe, x_BTD), set(names)
    moe._ffn = lambda x_ND, gates_NK, routes, backend: parallel_expert_ffn(
        x_ND, gates_NK, moe.up, moe.down, routes, kind=moe.kind, compiled=True
    )
    return [eager, (gradients(moe, x_BTD), names)]


def test_compiled_it_is_the_same():
    """Although a compiler that comes from outside is kept out."""
    for (eager, none), (found, names) in run_distributed(on_this_rank, 2, compiled):
        assert (none, names) == (set(), {"_forward", "_backward", "_sum", "_sum_backward"})
        torch.testing.assert_close(found, eager)
