"""Our own kernels of AdamW's step against torch's AdamW and float64: on a GPU, and where Triton is installed without
one, by its interpreter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from triton_on_cpu import DEVICES, interpret

from lit_gpt.ops import triton_calls
from lit_gpt.optim.engine import adamw_triton as ours
from lit_gpt.optim.engine import role_optimizer
from lit_gpt.optim.engine.matrix_batches import local
from lit_gpt.optim.engine.packed import SCALE, WRITES, encode_root, encode_signed, pack_new
from lit_gpt.optim.engine.role_optimizer import Control, FusedAdamW

# With and without whole programs, rows that blocks of 256 numbers do not fill, and what is left to torch.
SHAPES = ((64, 96), (17, 80), (2, 48, 256), (5, 300), (2, 3, 515), (3, 5), (7,), ())
TAKEN = {"fp32": SHAPES[:3], "int8": SHAPES[:5]}
KINDS = tuple(TAKEN)
# As schedules change them; 1 and 0, of which Triton makes constants where they are integers.
RATES = [(1e-3, 0.1, 0.9, 0.95, 1e-8), (1, 0, 0.8, 0.99, 1e-10), (0.5, 0.0, 0.95, 0.95, 1e-8)]
Bag = tuple[list[Tensor], dict[Tensor, dict[str, Tensor]]]


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    monkeypatch.setattr(ours, "LARGE", 16)
    if request.param == "cuda":
        if reason := ours.gpu_refuses(ours.KERNELS, ours.OLDEST):
            pytest.skip(reason)
    else:
        interpret(monkeypatch)
        monkeypatch.setattr(ours, "gpu_refuses", lambda *_: "")
        monkeypatch.setattr(ours, "DEVICE", "cpu")
    return request.param


@pytest.fixture
def launched(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what our kernels step."""
    found: list[tuple[int, ...]] = []

    def step(params: list[Tensor], *others: Any) -> None:
        found.extend(tuple(p.shape) for p in params)
        take(params, *others)

    take = ours.step
    monkeypatch.setattr(ours, "step", step)
    return found


def bag(device: str, kind: str, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> Bag:
    """Parameters and their state before the first step."""
    g = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=g).to(device) for shape in shapes]
    new = {p: FusedAdamW().new_state(p) for p in params}
    return params, new if kind == "fp32" else {p: pack_new(p, new[p]) for p in params}


def gradient_of(p: Tensor, step: int) -> Tensor:
    """From 1 down to 1e-8, with zeros."""
    g = torch.Generator().manual_seed(step)
    x = torch.randn(p.shape, generator=g) * 10 ** (-8 * torch.rand(p.shape, generator=g))
    return (x if p.ndim == 0 else x * (torch.arange(p.shape[-1]) != 3)).to(p.device)


def control(device: str, divisor: float = 1.0, skip: bool = False) -> Control:
    return Control(torch.tensor(skip, device=device), torch.tensor(divisor, device=device))


def group_of(params: list[Tensor], step: int) -> dict[str, Any]:
    lr, decay, beta1, beta2, eps = RATES[step % len(RATES)]
    return {"params": params, "lr": lr, "weight_decay": decay, "betas": (beta1, beta2), "eps": eps}


def check_near(found: Tensor, expected: Tensor) -> None:
    """g - beta2 g is off by a rounding of g where it is not fused, as in the interpreter: 6e-6 of its result, at most.
    Steps are up to 3 long, and weights up to 10. What torch computes with betas in float64 differs by less.
    """
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)


def take_step(params: list[Tensor], state: Any, step: int, how: Control) -> None:
    for p in params:
        p.grad = gradient_of(p, step)
    with torch.no_grad():
        list(FusedAdamW().tasks(group_of(params, step), state, how))


def skip_step(params: list[Tensor], state: Any, device: str) -> None:
    for p in params:
        p.grad = torch.full_like(p, torch.nan)
    with torch.no_grad():
        list(FusedAdamW().tasks(group_of(params, 0), state, control(device, torch.inf, skip=True)))


def clone(params: list[Tensor], state: Any) -> Bag:
    copies = [p.detach().clone() for p in params]
    return copies, {q: {k: x.clone() for k, x in state[p].items()} for p, q in zip(params, copies)}


def everything(params: list[Tensor], state: Any) -> list[Tensor]:
    return [*params, *(x for p in params for x in state[p].values())]


def with_torch(monkeypatch: pytest.MonkeyPatch, params: list[Tensor], state: Any, step: int, how: Control) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(ours, "taken", lambda params, state: [])
        take_step(params, state, step, how)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("foreach", [True, False])
def test_it_is_torchs_adamw(device, launched, foreach):
    """With a gradient that is divided, and steps between that are skipped. torch has no schedule of betas within a
    step either: they are those of the moment.
    """
    params, state = bag(device, "fp32")
    theirs = [p.clone().requires_grad_() for p in params]
    optimizer = torch.optim.AdamW(theirs, foreach=foreach, fused=not foreach)
    for step in range(6):
        take_step(params, state, step, control(device, 2.5))
        skip_step(params, state, device)
        for q in theirs:
            q.grad = gradient_of(q, step) / 2.5
        optimizer.param_groups[0] |= {k: v for k, v in group_of(params, step).items() if k != "params"}
        optimizer.step()
    assert set(launched) == set(TAKEN["fp32"])
    for p, q in zip(params, theirs):
        check_near(p, q.detach())
        for key in ours.MOMENTS:
            check_near(state[p][key], optimizer.state[q][key])
        assert state[p]["step"] == 6


def naive(p: np.ndarray, grads: list[np.ndarray]) -> np.ndarray:
    """AdamW as arXiv:1711.05101 writes it, in float64."""
    m, v = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        lr, decay, beta1, beta2, eps = RATES[(t - 1) % len(RATES)]
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        p = p - lr * (m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps) + decay * p)
    return p


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_adamw_in_float64(device, kind):
    """A moment in 8 bits is off by up to 3% of itself, and a small second one by much more."""
    params, state = bag(device, kind, TAKEN[kind])
    start = [p.double().cpu().numpy() for p in params]
    for step in range(4):
        take_step(params, state, step, control(device, 3.0))
    for p, begin in zip(params, start):
        expected = naive(begin, [gradient_of(p, step).double().cpu().numpy() / 3 for step in range(4)])
        off = np.abs(p.double().cpu().numpy() - expected)
        assert off.max() < 2e-4 if kind == "fp32" else np.median(off) < 0.1 * np.abs(expected - begin).mean()


def test_int8_is_that_of_torch_between_decoding_and_encoding(device, launched, monkeypatch):
    """From the same state each time, since a code that is rounded the other way changes what follows."""
    params, state = bag(device, "int8")
    for step in range(4):
        theirs, their_state = clone(params, state)
        take_step(params, state, step, control(device, 2.5))
        with_torch(monkeypatch, theirs, their_state, step, control(device, 2.5))
        for p, q in zip(params, theirs):
            check_near(p, q)
            assert state[p].keys() == their_state[q].keys()
            for key, x in state[p].items():
                y = their_state[q][key]
                if x.dtype in (torch.int8, torch.uint8):
                    assert (x.int() - y.int()).abs().max() <= 1
                else:
                    check_near(x, y)
            if WRITES in state[p]:
                assert state[p][WRITES] == step + 1
    assert set(launched) == set(TAKEN["int8"])


def test_codes_are_those_of_the_definition(device):
    """Betas of 0 make moments of the gradient and its square, whatever they were."""
    params, state = bag(device, "int8", TAKEN["int8"])
    for step in range(3):
        for p in params:
            p.grad = gradient_of(p, step)
        with torch.no_grad():
            list(FusedAdamW(betas=(0.0, 0.0)).tasks(group_of(params, 0), state, control(device)))
        for p in params:
            g, count = gradient_of(p, step), torch.tensor(step, dtype=torch.int32, device=device)
            expected = {"exp_avg": encode_signed([g], [count]), "exp_avg_sq": encode_root([g**2], [count])}
            for key, (codes, scales) in expected.items():
                assert torch.equal(state[p][key], codes[0]) and torch.equal(state[p][key + SCALE], scales[0])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of the interpreter, of what is thrown away
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_is_skipped_leaves_no_trace(device, launched, kind, before):
    params, state = bag(device, kind)
    for step in range(before):
        take_step(params, state, step, control(device))
    copies = [x.clone() for x in everything(params, state)]
    launched.clear()
    skip_step(params, state, device)
    assert set(launched) == set(TAKEN[kind])
    assert all(map(torch.equal, everything(params, state), copies))


@pytest.mark.parametrize("kind", KINDS)
def test_bits_repeat_and_continue(device, kind):
    first, other = bag(device, kind), bag(device, kind)
    for step in range(2):
        take_step(*first, step, control(device, 2.0))
        take_step(*other, step, control(device, 2.0))
    assert all(map(torch.equal, everything(*first), everything(*other)))
    resumed = clone(*first)
    for step in range(2, 4):
        take_step(*first, step, control(device, 2.0))
        take_step(*resumed, step, control(device, 2.0))
    assert all(map(torch.equal, everything(*first), everything(*resumed)))


def test_what_is_left_to_torch(device):
    """What the kernels could not read, and what is not worth a launch."""
    flat = torch.zeros(64 * 65 + 4, device=device)
    strange = [
        torch.zeros(64, 64, device=device).T,
        flat[4 : 64 * 64 + 4].view(64, 64)[:, :32],
        flat[1 : 64 * 64 + 1].view(64, 64),
        torch.zeros(3, 67, device=device),
        torch.zeros(64, 64, device=device, dtype=torch.float64),
        torch.zeros(64, 64, device=device, dtype=torch.bfloat16),
        torch.zeros(3, 5, device=device),
        torch.zeros(0, 64, device=device),
    ]
    good = [torch.zeros(64, 64, device=device), flat[4 : 64 * 64 + 4].view(64, 64)]
    for p in (*strange, *good):
        p.grad = torch.zeros_like(p)
    state = {p: FusedAdamW().new_state(p) for p in (*strange, *good)}
    assert [id(p) for p in ours.taken([*strange, *good], state)] == [id(p) for p in good]
    good[0].grad = torch.zeros(64, 64, device=device).T
    assert ours.taken(good[:1], state) == []


def test_what_a_machine_leaves_to_torch(monkeypatch):
    p = torch.zeros(64, 64, device="meta")
    p.grad = torch.zeros_like(p)
    state = {p: FusedAdamW().new_state(p)}
    monkeypatch.setattr(ours, "LARGE", 16)
    assert ours.taken([p], state) == [] and ours.taken([], state) == []
    monkeypatch.setattr(ours, "DEVICE", "meta")
    elsewhere = torch.zeros(64, 64)
    elsewhere.grad = torch.zeros_like(elsewhere)
    state[elsewhere] = FusedAdamW().new_state(elsewhere)
    with monkeypatch.context() as patched:
        patched.setattr(ours, "gpu_refuses", lambda module, oldest: "")
        assert [id(q) for q in ours.taken([p, elsewhere], state)] == [id(p)]
    monkeypatch.setattr(ours, "gpu_refuses", lambda module, oldest: "no Triton")
    assert ours.taken([p], state) == []


@pytest.fixture
def mesh(device) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo" if device == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield DeviceMesh(device, [0])
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_shards(device, launched, kind, mesh):
    shapes = TAKEN[kind]
    (params, _), (whole, state) = bag(device, kind, shapes), bag(device, kind, shapes)
    sharded: list[Tensor] = [DTensor.from_local(p, mesh, [Shard(0)]) for p in params]
    kept = {p: FusedAdamW().new_state(p) for p in sharded}
    kept = kept if kind == "fp32" else {p: pack_new(p, kept[p]) for p in sharded}
    for step in range(2):
        for p, q in zip(sharded, whole):
            q.grad = gradient_of(q, step)
            p.grad = DTensor.from_local(gradient_of(q, step), mesh, [Shard(0)])
        with torch.no_grad():
            list(FusedAdamW().tasks(group_of(sharded, step), kept, control(device)))
            list(FusedAdamW().tasks(group_of(whole, step), state, control(device)))
    assert len(launched) == 4 * len(shapes)
    assert all(torch.equal(local(p), q) for p, q in zip(sharded, whole))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("kind", KINDS)
def test_at_the_sizes_of_models(kind, monkeypatch, launched):
    """As torch's fused kernel; and values of rates make no variants of a kernel."""
    if reason := ours.gpu_refuses(ours.KERNELS, ours.OLDEST):
        pytest.skip(reason)
    params, state = bag("cuda", kind, ((4096, 2048), (8, 1024, 768)))
    kernel = getattr(triton_calls.optional(ours.KERNELS), "adamw" if kind == "fp32" else "adamw_int8")
    variants = []
    for step in range(6):
        theirs, their_state = clone(params, state)
        take_step(params, state, step, control("cuda", 2.5))
        with_torch(monkeypatch, theirs, their_state, step, control("cuda", 2.5))
        for p, q in zip(params, theirs):
            check_near(p, q)
        variants.append(sum(len(compiled[0]) for compiled in kernel.device_caches.values()))
    assert len(launched) == 12 and variants[0] == variants[-1]


def test_the_rule_calls_it():
    assert role_optimizer.adamw_triton is ours
