"""State in 8 bits: against the definition in float64, without bias, the same after a restart and on any shard."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_optimizers import Bag, build, gradients
from torch import Tensor
from torch.nn import functional as F

from lit_gpt.optim.engine import packed
from lit_gpt.optim.engine.packed import BLOCK, SCALE, pack_new
from lit_gpt.optim.engine.role_optimizer import Control, FusedAdamW

WIDTH = 300  # a whole block and a part of one
OPTIMIZERS = ("adamw", "muon", "lion", "hadam", "ademamix")


def heavy_tailed(rows: int) -> Tensor:
    """Numbers over eight powers of ten, with zeros and a block of zeros."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, WIDTH, generator=generator) * 10 ** (-8 * torch.rand(rows, WIDTH, generator=generator))
    x[:, 7], x[0, BLOCK:] = 0, 0
    return x


def count(n: int) -> Tensor:
    return torch.tensor(n, dtype=torch.int32)


def decode(codes: Tensor, scales: Tensor) -> Tensor:
    """One tensor of those that packed.py does together; so do the next two."""
    return packed.decode([codes], [scales])[0]


def encode_signed(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    (codes,), (scales,) = packed.encode_signed([x], [writes])
    return codes, scales


def encode_root(x: Tensor, writes: Tensor) -> tuple[Tensor, Tensor]:
    (codes,), (scales,) = packed.encode_root([x], [writes])
    return codes, scales


def neighbours(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scales, and for each number of x from 0 on the values of the codes below and above it, in float64."""
    scales = np.stack([x[:, i : i + BLOCK].max(1) for i in range(0, x.shape[1], BLOCK)], 1)
    s = np.repeat(scales, BLOCK, 1)[:, : x.shape[1]]
    low = np.floor(levels * np.divide(x, s, out=np.zeros_like(x), where=s > 0) ** 0.25)
    return scales, s * (low / levels) ** 4, s * (np.minimum(low + 1, levels) / levels) ** 4


def near(found: np.ndarray, values: np.ndarray, s: np.ndarray) -> np.ndarray:
    return np.abs(found - values) <= 1e-5 * np.abs(values) + 1e-12 * s


def test_codes_are_those_of_the_definition() -> None:
    x = heavy_tailed(20)
    codes, scales = encode_signed(x, count(3))
    expected, below, above = neighbours(x.abs().double().numpy(), 127)
    np.testing.assert_allclose(scales.numpy(), expected, rtol=1e-7)
    found, s = decode(codes, scales).double().numpy(), np.repeat(expected, BLOCK, 1)[:, :WIDTH]
    assert codes.dtype == torch.int8 and (near(abs(found), below, s) | near(abs(found), above, s)).all()
    assert (found * x.numpy() >= 0).all() and (abs(found) == s)[x.abs().numpy() == s].all()
    codes, scales = encode_root(x.square(), count(3))
    expected, below, above = neighbours(x.square().double().sqrt().numpy(), 255)
    found, s = decode(codes, scales).double().sqrt().numpy(), np.repeat(expected, BLOCK, 1)[:, :WIDTH]
    assert codes.dtype == torch.uint8 and (near(found, below, s) | near(found, above, s)).all()


def test_nothing_is_lost_on_average() -> None:
    """Over 400 writes the mean is within five times its own standard error, which a code of the neighbours gives."""
    x = heavy_tailed(1)[:, :BLOCK]
    _, below, above = neighbours(x.abs().double().numpy(), 127)
    mean = torch.stack([decode(*encode_signed(x, count(i))) for i in range(400)]).double().mean(0).abs().numpy()
    error = (above - below) / 2 / 400**0.5
    assert (abs(mean - x.abs().double().numpy()) <= 5 * error + 1e-12).all()


def test_the_mean_of_a_second_moment() -> None:
    """Over 400 writes; with the mean of the root kept, squares were larger by the variance, 0.4% over these numbers."""
    root = torch.cat([torch.ones(1), torch.logspace(-2, -5, BLOCK - 1)])[None]
    mean = torch.stack([decode(*encode_root(root.square(), count(i))) for i in range(400)]).double().mean(0).numpy()
    square = root.square().double().numpy()
    _, below, above = neighbours(root.double().numpy(), 255)
    assert (abs(mean - square) <= 5 * (above**2 - below**2) / 2 / 400**0.5 + 1e-6 * square).all()
    assert abs((mean / square).mean() - 1) < 1.5e-3


def test_a_slow_average_does_not_stand_still() -> None:
    """Beside a number that stays 1, those around 0.1 shrink by 0.1% a step, a fortieth of the distance of codes."""
    v = 0.05 + 0.1 * torch.rand(64, BLOCK, generator=torch.Generator().manual_seed(0))
    v[:, 0], start = 1, v[:, 1:].mean().item()
    for step in range(500):
        v[:, 1:] *= 0.999
        v = decode(*encode_root(v, count(step)))
    assert v[:, 1:].mean().item() == pytest.approx(start * 0.999**500, rel=0.03)


def test_what_is_written_again_stays() -> None:
    codes, scales = encode_signed(heavy_tailed(20), count(0))
    again, _ = encode_signed(decode(codes, scales), count(1))
    assert (again != codes).float().mean() < 1e-3  # a value may fall below its own code by a rounding


def test_shards_have_the_codes_of_the_whole() -> None:
    x = heavy_tailed(6)
    whole = encode_signed(x, count(5))
    for rows in (slice(0, 1), slice(1, 6)):
        for part, all_rows in zip(encode_signed(x[rows], count(5)), whole):
            assert torch.equal(part, all_rows[rows])


def test_tensors_together_have_the_codes_of_each_alone() -> None:
    tensors, counts = [heavy_tailed(6), heavy_tailed(4)[:, :BLOCK], heavy_tailed(6).view(2, 3, -1)], [3, 0, 7]
    for one, together in ((encode_signed, packed.encode_signed), (encode_root, packed.encode_root)):
        codes, scales = together([x.abs() for x in tensors], [count(n) for n in counts])
        for x, n, c, s in zip(tensors, counts, codes, scales):
            assert all(map(torch.equal, one(x.abs(), count(n)), (c, s)))
            assert torch.equal(packed.decode(codes, scales)[counts.index(n)], decode(c, s))


def test_parts_end_where_they_are_full() -> None:
    params = [torch.zeros(n) for n in (1, 2, 3, 0, 4)]
    assert [[len(p) for p in part] for part in packed.parts(params, 3)] == [[1, 2], [3], [0, 4]]
    assert packed.parts([], 3) == []


@pytest.mark.parametrize("width", [64, BLOCK, WIDTH])
def test_adamw_with_rows_that_blocks_do_not_fill(width: int) -> None:
    """torch's fused kernel on a CPU sees no gaps between rows, and took the state of other weights."""
    wide = torch.randn(8, width, generator=torch.Generator().manual_seed(0))
    both, rule = [wide.clone() for _ in range(2)], FusedAdamW()
    state = {p: rule.new_state(p) for p in both}
    state[both[1]] = pack_new(both[1], state[both[1]])
    group: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "params": both}
    for step in range(3):
        for p in both:
            p.grad = torch.randn(wide.shape, generator=torch.Generator().manual_seed(step + 1))
        with torch.no_grad():
            list(rule.tasks(group, state, Control(torch.tensor(False), torch.ones(()))))
    off, moved = (both[1] - both[0]).abs(), (both[0] - wide).abs().mean()
    assert off.mean() < 0.02 * moved


def steps(bag: Bag, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        for name, g in gradients(step).items():
            bag.get_parameter(name).grad = g
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_restart_continues_to_the_bit(name: str) -> None:
    bag, again = Bag(), Bag()
    optimizer = build(bag, name, state="int8")
    steps(bag, optimizer, 0, 3)
    restarted = build(again, name, state="int8")
    wide = bag.get_parameter("wide")
    assert any(key.endswith(SCALE) for key in optimizer.state[wide])
    assert not any(x.shape == wide.shape and x.dtype == torch.float32 for x in optimizer.state[wide].values())
    with torch.no_grad():  # as a checkpoint is loaded, in place
        for p, q in zip(bag.parameters(), again.parameters()):
            q.copy_(p)
            for key, value in restarted.state[q].items():
                value.copy_(optimizer.state[p][key])
    steps(bag, optimizer, 3, 6)
    steps(again, restarted, 3, 6)
    assert all(torch.equal(p, q) for p, q in zip(bag.parameters(), again.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_that_is_skipped_leaves_no_trace(name: str) -> None:
    bag, plain = Bag(), Bag()
    optimizer: Any = build(bag, name, state="int8")
    steps(bag, optimizer, 0, 2)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(torch.inf), torch.tensor(1.0)
    for p in bag.parameters():
        p.grad = torch.full_like(p, torch.nan)
    optimizer.step()
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    steps(bag, optimizer, 2, 4)
    steps(plain, build(plain, name, state="int8"), 0, 4)
    assert all(torch.equal(p, q) for p, q in zip(bag.parameters(), plain.parameters()))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_training_stays_near_that_with_fp32_state(name: str) -> None:
    """Regression of a random map through one hidden matrix; both end far below the start."""
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(512, n, generator=generator) for n in (94, 256))
    target = (x @ torch.randn(94, 256, generator=generator)).relu() + 0.1 * target
    found = []
    for state in ("fp32", "int8"):
        bag = Bag()
        optimizer, losses = build(bag, name, state=state), []
        for _ in range(100):
            loss = F.mse_loss((x @ bag.get_parameter("wide")).relu(), target)
            bag.zero_grad()
            loss.backward()
            for p in bag.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            optimizer.step()
            losses.append(loss.item())
        found.append(losses)
    assert found[0][-1] < 0.8 * found[0][0] and found[1][-1] == pytest.approx(found[0][-1], rel=0.05)
