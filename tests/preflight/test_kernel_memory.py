"""What kernels say that they take beside arguments and results, against the tensors that they save and make."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from cuda_on_cpu import COMPILER, install
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_gpt import architectures
from lit_gpt.ops import (
    conv,
    conv_triton,
    delta_rule,
    delta_rule_triton,
    selective_scan,
    selective_scan_cuda,
    ssd,
    ssd_triton,
)
from lit_gpt.ops.backends import Memory
from lit_gpt.ops.linear_recurrence import Call
from lit_gpt.preflight.activations import Kind, kept_by_layers
from lit_gpt.preflight.meta_model import meta_model

CHANNELS, STATES = 192, 16
BF16 = torch.bfloat16


def scan_inputs(rows: int, tokens: int, device: str = "meta") -> selective_scan.Inputs:
    x, dt = (torch.zeros(rows, tokens, CHANNELS, dtype=BF16, device=device) for _ in range(2))
    B, C = (torch.zeros(rows, tokens, STATES, dtype=BF16, device=device) for _ in range(2))
    A, D, bias = (torch.zeros(*shape, device=device) for shape in ((CHANNELS, STATES), (CHANNELS,), (CHANNELS,)))
    return selective_scan.Inputs(x, dt, A, B, C, D, bias, None, None)


def ssd_inputs(rows: int, tokens: int, width: int = 64, states: int = 128, heads: int = 8, groups: int = 2) -> Any:
    x, dt, B, C = (
        torch.zeros(rows, tokens, *shape, dtype=BF16, device="meta")
        for shape in ((heads, width), (heads,), (groups, states), (groups, states))
    )
    A, D, bias = (torch.zeros(heads, device="meta") for _ in range(3))
    return ssd.Inputs(x, dt, A, B, C, D, bias, None, None)


def delta_inputs(rows: int, tokens: int, keys: int, values: int, heads: int = 3) -> Call:
    q, k, v = (torch.zeros(rows, tokens, heads, n, dtype=BF16, device="meta") for n in (keys, keys, values))
    beta, g = (torch.zeros(rows, tokens, heads, device="meta") for _ in range(2))
    return Call(q, k, v, beta, g, 0.1, True, None, None, None)


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Bytes by storage."""
    found = [t.untyped_storage() for t in tensors if isinstance(t, Tensor)]
    return {s._cdata: s.nbytes() for s in found}


def saved(inputs: Any, kernel: Any) -> int:
    """Bytes that a forward pass saves beside its arguments and its results."""
    leaves, kept = [t.requires_grad_() for t in inputs[:7]], []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        results = kernel(inputs)
    known = storages([*leaves, *results])
    return sum(size for key, size in storages(kept).items() if key not in known)


class Peak(TorchDispatchMode):
    """The most bytes that lived at once, of tensors made within it."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()
        self.given, self.alive, self.most = storages(given), {}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and (storage := t.untyped_storage())._cdata not in self.given:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: one for key, one in self.alive.items() if not one[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return result


def made(backward: Any, given: list[Any]) -> int:
    """Bytes at the peak of a backward pass beside the gradients that it returns."""
    with Peak(t for t in given if isinstance(t, Tensor)) as peak:
        gradients = backward(*given)
    return peak.most - sum(storages(gradients).values())


@pytest.mark.skipif(not COMPILER, reason="needs g++")
def test_what_our_scan_saves(monkeypatch):
    install(monkeypatch)
    tokens = 2 * 64
    said = selective_scan_cuda.memory(CHANNELS, STATES).kept
    assert saved(scan_inputs(2, 64, "cpu"), selective_scan._cuda) == said * tokens == 4 * 2 * 2 * CHANNELS * STATES


def test_what_our_scan_of_mamba_2_saves(monkeypatch):
    monkeypatch.setattr(ssd_triton, "processors", lambda device: 1)
    assert saved(ssd_inputs(2, 128), ssd._triton) == 0 == ssd._triton_memory(ssd_inputs(2, 128)).kept


def test_what_our_scan_makes_in_backward(monkeypatch):
    monkeypatch.setattr(selective_scan_cuda, "launch", lambda *_, **__: None)

    def at(tokens: int) -> int:
        inputs = scan_inputs(2, tokens)
        state = inputs.A_CN.new_empty(2 * (tokens // 32), CHANNELS, STATES)
        return made(selective_scan_cuda.backward, [inputs.x_BTC, None, *inputs[:7], None, state, 1])

    assert at(8192) - at(4096) == selective_scan_cuda.memory(CHANNELS, STATES).made * 2 * 4096


@pytest.mark.parametrize(("width", "states"), [(64, 128), (128, 64), (64, 256)])
def test_what_our_scan_of_mamba_2_makes_in_backward(width, states, monkeypatch):
    """And sums of each chunk, less than 1%."""
    monkeypatch.setattr(ssd_triton, "launch", lambda *_, **__: None)

    def at(tokens: int) -> int:
        inputs = ssd_inputs(8, tokens, width, states)
        return made(ssd_triton.backward, [inputs.x_BTHP, None, *inputs[:7], None, None, 1])

    said = ssd._triton_memory(ssd_inputs(8, 64, width, states))
    assert said.made * 8 * 4096 == pytest.approx(at(8192) - at(4096), rel=0.01)


def test_what_our_delta_rule_saves():
    inputs = delta_inputs(2, 128, 64, 128)
    leaves = [t.requires_grad_() for t in inputs[:5] if isinstance(t, Tensor)]
    assert saved(leaves, lambda given: delta_rule._triton(Call(*given, *inputs[5:]))[:1]) == 0
    assert delta_rule._triton_memory(inputs).kept == 0


@pytest.mark.parametrize(("keys", "values"), [(256, 512), (64, 96)])
def test_what_our_delta_rule_makes_in_backward(keys, values, monkeypatch):
    monkeypatch.setattr(delta_rule_triton, "launch", lambda *_, **__: None)

    def at(tokens: int) -> int:
        inputs = delta_inputs(8, tokens, keys, values)
        return made(delta_rule_triton.backward, [inputs.v, None, *inputs[:5], None, None, 0.1, True])

    said = delta_rule._triton_memory(delta_inputs(8, 64, keys, values))
    assert said.made * 8 * 4096 == pytest.approx(at(8192) - at(4096), rel=0.01)


def test_our_convolution_takes_next_to_nothing(monkeypatch):
    """Forward it saves its arguments alone; backward makes 4 bytes for each of K + 1 sums of 512 tokens."""
    monkeypatch.setattr(conv_triton, "launch", lambda *_, **__: None)
    monkeypatch.setattr(conv_triton, "processors", lambda device: 1)
    x, weight = torch.zeros(8, 4096, CHANNELS, dtype=BF16, device="meta"), torch.zeros(CHANNELS, 4, device="meta")
    widths = [128, CHANNELS - 128]

    def inputs(given: list[Tensor]) -> conv.Inputs:
        return conv.Inputs(given[0], given[1], None, "silu", None, None)

    assert saved([x, weight], lambda given: conv._triton(inputs(given), widths)) == 0
    dys = [torch.zeros(8, 4096, width, dtype=BF16, device="meta") for width in widths]
    sums = made(conv_triton.backward, [dys, x.detach(), weight.detach(), None, None, None, True])
    assert 0 < sums < 0.03 * x.nbytes
    assert conv.BACKENDS["triton"].memory(inputs([x, weight]), widths) == Memory()


def test_shapes_of_the_kernels_of_mamba_ssm():
    """x of selective_scan.cpp; of ssd_combined.py (d757aef) dA_cumsum, and what lives in _state_passing_bwd."""
    rows, tokens, heads, width, states, groups = 2, 4096, 8, 64, 128, 2
    inputs, chunks, of_chunk = ssd_inputs(rows, tokens), tokens // 256, 256
    sums = rows * heads * chunks * of_chunk * 4
    of_states, products = rows * chunks * heads * width * states, rows * chunks * groups * of_chunk * of_chunk
    both = of_states * 4 + of_states * 4 + of_states * 2 + of_states * 2 + products * 4 + sums + sums
    expected = Memory(sums / (rows * tokens), both / (rows * tokens))
    assert ssd._mamba_ssm_memory(inputs) == expected
    x, gradients = CHANNELS * math.ceil(tokens / 2048) * 2 * STATES * 4, 2 * tokens * STATES * 4
    assert selective_scan._mamba_ssm_memory(scan_inputs(rows, tokens)) == Memory(x / tokens, gradients / tokens)


def first_layer(mixer: str, **options: int) -> Counter[Kind]:
    config = architectures.build("samba", 2, block_size=256, aspect_ratio=64)
    specs = tuple(replace(s, mixer=mixer) for s in config.layers)
    return kept_by_layers(meta_model(config.replace(layers=specs, mixer_options={mixer: options}), "bf16"))[0]


def test_the_estimate_counts_the_kernel_that_will_run(monkeypatch):
    """On this machine's GPU; where it has none, on one with all libraries, of the kernels that can do it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    auto, wider, mamba2 = first_layer("mamba"), first_layer("mamba", d_state=64), first_layer("mamba2")

    def refused(name: str) -> Counter[Kind]:
        row = selective_scan.BACKENDS[name]._replace(refuses=lambda request: "not on this GPU")
        monkeypatch.setitem(selective_scan.BACKENDS, name, row)
        return first_layer("mamba")

    library, plain = refused("cuda"), refused("mamba_ssm")
    assert auto["kernel"] - plain["kernel"] == 4 * 256 * 16 // 32
    assert library["kernel"] - plain["kernel"] == 8 * 256 * 16 // 2048 and plain["made"] == 0
    assert wider["made"] == 8 * 64, "ours has 8, 16 or 32 states"
    assert mamba2["made"] == ssd._triton_memory(ssd_inputs(1, 8, groups=1)).made
