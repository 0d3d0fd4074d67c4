"""Activation statistics against a naive float64 loop, spikes against a stated rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lit_gpt.metrics.hardware import Hardware
from lit_gpt.metrics.health import activation_statistics
from lit_gpt.metrics.spikes import SpikeDetector

WIDTH = 64


class Mixer(nn.Module):
    """Returns a tuple, as mixers with state do, and plants one outlier per token."""

    def __init__(self, scale: float):
        super().__init__()
        self.scale = scale

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        y_BTD = torch.sin(37.0 * x_BTD) * self.scale
        y_BTD[..., 3] += 100 * self.scale
        return y_BTD, None


class Block(nn.Module):
    def __init__(self, scale: float, has_ffn: bool):
        super().__init__()
        self.mixer = Mixer(scale)
        self.ffn = nn.Linear(WIDTH, WIDTH) if has_ffn else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.mixer(x_BTD)[0]
        return x_BTD if self.ffn is None else x_BTD + self.ffn(x_BTD)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList([Block(0.5, True), Block(2.0, False)])

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTD = self.embed(tokens_BT)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return x_BTD


def naive(x: np.ndarray) -> tuple[float, float]:
    """(RMS over everything, percent of elements more than 5 sigma from their token's mean)."""
    square = outliers = count = 0.0
    for token in x.reshape(-1, x.shape[-1]).astype(np.float64):
        mean = sum(token) / len(token)
        sigma = math.sqrt(sum((v - mean) ** 2 for v in token) / len(token))
        for v in token:
            square += v * v
            outliers += abs(v - mean) > 5 * sigma
            count += 1
    return math.sqrt(square / count), 100 * outliers / count


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def test_activation_statistics_match_a_naive_loop(model: Model):
    tokens_BT = torch.randint(11, (2, 5))
    with torch.no_grad():
        x0 = model.embed(tokens_BT)
        a0 = model.blocks[0].mixer(x0)[0]  # type: ignore[operator]
        m0 = model.blocks[0].ffn(x0 + a0)  # type: ignore[operator]
        a1 = model.blocks[1].mixer(x0 + a0 + m0)[0]  # type: ignore[operator]
    found = activation_statistics(model, tokens_BT)
    expected: dict[str, float] = {}
    for key, x in (("attn", a0), ("mlp", m0), ("attn", a1)):
        layer = 1 if x is a1 else 0
        norm, outliers = naive(x.numpy())
        expected[f"metric/{key}_output_rmsnorm_layer_{layer}"] = norm
        expected[f"metric/{key}_outlier_pct_layer_{layer}"] = outliers
    a, b = (expected[f"metric/attn_output_rmsnorm_layer_{i}"] for i in (0, 1))
    expected["metric/attn_output_rmsnorm_mean"] = math.sqrt((a * a + b * b) / 2)
    expected["metric/mlp_output_rmsnorm_mean"] = expected["metric/mlp_output_rmsnorm_layer_0"]
    expected["metric/attn_outlier_pct_mean"] = 100 / WIDTH
    expected["metric/mlp_outlier_pct_mean"] = expected["metric/mlp_outlier_pct_layer_0"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_model_is_left_as_it_was(model: Model):
    model.train()
    activation_statistics(model, torch.zeros(1, 2, dtype=torch.long))
    assert model.training and model.blocks[0].training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


def test_compiled_blocks_are_seen_too(model: Model):
    tokens_BT = torch.randint(11, (2, 5))
    plain = activation_statistics(model, tokens_BT)
    for block in model.blocks:
        block.compile(backend="eager")
    model(tokens_BT)
    assert activation_statistics(model, tokens_BT) == plain


def test_hooks_are_removed_when_the_forward_fails(model: Model):
    def fail(model: nn.Module, tokens_BT: Tensor) -> None:
        raise ValueError

    with pytest.raises(ValueError):
        activation_statistics(model, torch.zeros(1, 2, dtype=torch.long), fail)
    assert not any(module._forward_hooks for module in model.modules())


def test_spikes():
    detector = SpikeDetector(window=8)
    calm = [2.0, 2.1, 1.9, 2.0]
    assert not any(detector.update(v) for v in (50.0, *calm[:3]))  # too early to know
    detector = SpikeDetector(window=8)
    assert [detector.update(v) for v in calm] == [False] * 4
    mean, sigma = np.mean(calm), np.std(calm, ddof=1)
    assert not detector.update(mean + 5.9 * sigma)
    detector = SpikeDetector(window=8)
    for v in calm:
        detector.update(v)
    assert detector.update(mean + 6.1 * sigma)
    assert not detector.update(0.5)  # a fall is good news
    assert detector.update(float("nan")) and detector.update(float("inf"))
    assert not detector.update(2.0)


def test_a_new_level_stops_being_news():
    detector = SpikeDetector(window=8)
    flags = [detector.update(v) for v in [2.0, 2.1] * 4 + [9.0] * 4]
    assert flags[8] and not any(flags[9:])


def test_hardware_on_cpu():
    found = Hardware(torch.device("cpu")).metrics()
    assert found.keys() == {"system/cpu_pct", "system/ram_peak_gib"}
    assert found["system/ram_peak_gib"] > 0.05 and found["system/cpu_pct"] >= 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_hardware_on_a_gpu():
    device = torch.device("cuda", 0)
    hardware = Hardware(device)
    held = torch.empty(2**28, device=device, dtype=torch.uint8)
    found = hardware.metrics()
    assert found["system/gpu_memory_allocated_gib"] >= 0.25 and held.numel() == 2**28
    assert found["system/gpu_memory_peak_gib"] >= found["system/gpu_memory_allocated_gib"]
    assert hardware._queries.keys() <= found.keys()
